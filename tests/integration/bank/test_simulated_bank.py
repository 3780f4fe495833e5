"""The bank as its own process: over loopback, with a real broker, killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pika
import pytest

from infra.local.bank.keys import make_signing_key
from infra.rabbitmq import topology
from infra.security.signatures import Scheme, VerifyingKey, parse_ed25519_public, verify
from schemas.bank_credited import BankCredited
from schemas.bank_debited import BankDebited
from schemas.envelope import Envelope, parse_message
from workers.payout.bank import HttpBank
from workers.payout.transfers import BankWord, TransferInstruction

IBAN = "DE89370400440532013000"
READY_SECONDS = 30


class BankProcess:
    """`python -m infra.local.bank` with a folder of its own."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.ready_file = folder / "ready"
        self.log = folder / "bank.log"
        self.public_key = make_signing_key(folder / "bank.key")
        self.environment = {
            **os.environ,
            "HOLDFAST_BANK_URL": self.url,
            "HOLDFAST_BROKER_URL": broker_url,
            "HOLDFAST_READY_FILE": str(self.ready_file),
            "SIMULATED_BANK_JOURNAL": str(folder / "journal"),
            "SIMULATED_BANK_KEY_FILE": str(folder / "bank.key"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "BankProcess":
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.local.bank"], env=self.environment, stdout=log, stderr=log
            )
        wait_for(self.ready_file.exists, READY_SECONDS)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def client(self, timeout_s: float = 5.0) -> HttpBank:
        return HttpBank(self.url, timeout_s=timeout_s)

    def post(self, path: str, document: object, **headers: str) -> Any:
        return httpx.post(f"{self.url}{path}", json=document, headers=headers).raise_for_status().json()

    def behave(self, **rule: object) -> None:
        httpx.put(f"{self.url}/behaviour", json=rule).raise_for_status()

    def counts(self) -> Any:
        return httpx.get(f"{self.url}/journal/counts").raise_for_status().json()

    def journal(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = httpx.get(f"{self.url}/journal").raise_for_status().json()
        return entries


@pytest.fixture
def bank(tmp_path: Path, broker_url: str) -> Iterator[BankProcess]:
    process = BankProcess(tmp_path, broker_url)
    yield process.start()
    process.stop()


@pytest.fixture
def inbound_queue(broker_url: str) -> Iterator["Inbound"]:
    """Everything that is published to `holdfast.inbound` from here on."""
    inbound = Inbound(broker_url)
    yield inbound
    inbound.close()


class Inbound:
    def __init__(self, broker_url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        self.channel = self.connection.channel()
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue
        # Our queue is bound before any other: a bank that waits for the exchange publishes at once, and
        # until somebody is bound its message comes back to it.
        (inbound,) = (e for e in topology.topology(1).exchanges if e.name == topology.INBOUND_EXCHANGE)
        topology._declare_exchange(self.channel, inbound)
        self.channel.queue_bind(self.queue, topology.INBOUND_EXCHANGE, "#")
        topology.apply(broker_url, 1)

    def take(self) -> tuple[Any, Any, bytes] | None:
        method, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
        return None if method is None else (method, properties, body)

    def close(self) -> None:
        self.connection.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def an_instruction(end_to_end_id: str = "e-1", amount_minor: int = 1_250) -> TransferInstruction:
    return TransferInstruction(
        end_to_end_id=end_to_end_id,
        amount_minor=amount_minor,
        currency="EUR",
        destination_id="d-1",
        destination={"type": "iban", "iban": IBAN, "holder_name": "Seller"},
    )


def credits_of(*references: str) -> list[dict[str, object]]:
    return [{"bank_reference": name, "amount": 500, "currency": "EUR"} for name in references]


def read_authentic(bank: BankProcess, message: tuple[Any, Any, bytes]) -> list[Envelope]:
    """Read a message as Holdfast would: signature first."""
    method, properties, body = message
    verified = verify(
        body=body,
        headers=properties.headers,
        keys=[VerifyingKey("k", Scheme.ED25519, frozenset(), parse_ed25519_public(bank.public_key))],
        now=datetime.now(UTC),
        max_age_s=60,
        max_ahead_s=5,
        scope=None,
    )
    envelopes = [
        event for event in parse_message(body, properties.content_type) if isinstance(event, Envelope)
    ]
    if len(envelopes) == 1:
        assert verified.webhook_id == envelopes[0].id
    assert {envelope.source for envelope in envelopes} == {"/banks/sim"}
    assert {envelope.type for envelope in envelopes} == {method.routing_key}
    assert properties.delivery_mode == 2
    return envelopes


def collect_events(bank: BankProcess, inbound: Inbound, count: int) -> list[Envelope]:
    events: list[Envelope] = []
    deadline = time.monotonic() + 20
    while len(events) < count:
        assert time.monotonic() < deadline, f"{len(events)} of {count} events"
        message = inbound.take()
        if message is None:
            time.sleep(0.01)
        else:
            events += read_authentic(bank, message)
    return events


def test_a_transfer_settles_and_is_found_again(bank: BankProcess) -> None:
    client = bank.client()
    assert client.find("e-1").word is BankWord.NEVER_SEEN
    assert client.submit(an_instruction()).word is BankWord.SETTLED
    assert client.submit(an_instruction()).word is BankWord.SETTLED
    assert client.find("e-1").word is BankWord.SETTLED
    assert client.submit(an_instruction(amount_minor=1)).word is BankWord.UNKNOWN
    assert bank.counts()["totals"]["settled"] == {"EUR": 1_250}


def test_a_rejection_says_why(bank: BankProcess) -> None:
    bank.behave(behaviour="reject", destination=IBAN)
    answer = bank.client().submit(an_instruction())
    assert (answer.word, answer.reason) == (BankWord.REJECTED, "AC04")
    assert bank.counts()["totals"]["settled"] == {}


def test_a_transfer_that_timed_out_after_it_was_accepted_is_found_settled(bank: BankProcess) -> None:
    bank.behave(behaviour="time_out_after_accepting")
    assert bank.client(timeout_s=0.5).submit(an_instruction()).word is BankWord.UNKNOWN
    assert bank.client().find("e-1").word is BankWord.SETTLED
    assert bank.client().submit(an_instruction()).word is BankWord.SETTLED
    assert bank.counts()["totals"]["settled"] == {"EUR": 1_250}


def test_a_late_transfer_and_a_return_survive_a_kill(bank: BankProcess) -> None:
    bank.behave(behaviour="late", delay_seconds=0.5)
    assert bank.client().submit(an_instruction("e-late")).word is BankWord.PENDING
    bank.behave(behaviour="return_after_settling", delay_seconds=0.5)
    assert bank.client().submit(an_instruction("e-back")).word is BankWord.SETTLED
    bank.kill()
    client = bank.start().client()
    wait_for(lambda: client.find("e-late").word is BankWord.SETTLED)
    wait_for(lambda: client.find("e-back").word is BankWord.RETURNED)
    (returned,) = client.returns_after(0, 10)
    assert (returned.end_to_end_id, returned.reason) == ("e-back", "AC06")
    assert client.returns_after(returned.position, 10) == []


def test_killed_again_and_again_under_load_no_money_moves_twice_and_no_answer_is_forgotten(
    bank: BankProcess,
) -> None:
    """Every transfer is sent by two threads at once and again after each kill, under its one id."""
    ids = [f"e-{number}" for number in range(60)]
    settled: set[str] = set()
    lock = threading.Lock()

    def submit(end_to_end_id: str) -> None:
        answer = client.submit(an_instruction(end_to_end_id))
        assert answer.word in {BankWord.SETTLED, BankWord.UNKNOWN}
        if answer.word is BankWord.SETTLED:
            with lock:
                settled.add(end_to_end_id)

    for _ in range(3):
        client = bank.client(timeout_s=2)
        killer = threading.Timer(0.05, bank.kill)
        killer.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(submit, [end_to_end_id for end_to_end_id in ids for _ in range(2)]))
        killer.join()
        client.close()
        bank.start()
        for end_to_end_id in settled:
            assert bank.client().find(end_to_end_id).word is BankWord.SETTLED

    client = bank.client()
    for end_to_end_id in ids:
        assert client.submit(an_instruction(end_to_end_id)).word is BankWord.SETTLED
    moved = [entry["end_to_end_id"] for entry in bank.journal() if entry["kind"] == "transfer_settled"]
    assert sorted(moved) == sorted(ids)
    assert bank.counts()["totals"]["settled"] == {"EUR": 1_250 * len(ids)}


def test_credits_arrive_signed_with_the_lines_that_were_answered(
    bank: BankProcess, inbound_queue: Inbound
) -> None:
    (line,) = bank.post("/credits", credits_of("RF-1"))["statement_lines"]
    (event,) = collect_events(bank, inbound_queue, 1)
    credited = BankCredited.model_validate_json(json.dumps(event.data))
    assert (credited.bank_reference, credited.amount, credited.statement_line) == ("RF-1", 500, line)

    bank.post("/debits", credits_of("RF-1"))
    (event,) = collect_events(bank, inbound_queue, 1)
    debited = BankDebited.model_validate_json(json.dumps(event.data))
    assert (debited.bank_reference, debited.reason) == ("RF-1", "MD06")
    wait_for(lambda: bank.counts()["unpublished"] == 0)


def test_many_credits_arrive_in_batches_under_one_signature_each(
    bank: BankProcess, inbound_queue: Inbound
) -> None:
    names = [f"RF-{number}" for number in range(600)]
    lines = bank.post("/credits", credits_of(*names))["statement_lines"]
    events = collect_events(bank, inbound_queue, len(names))
    assert [event.data["statement_line"] for event in events] == lines
    assert len({event.id for event in events}) == len(names)


def test_credits_wait_for_a_broker_that_takes_none_and_survive_a_kill_meanwhile(
    bank: BankProcess, make_vhost: Callable[[], str]
) -> None:
    """A vhost without our exchange takes nothing; nothing may be lost or come under another id for it."""
    bank.stop()
    bank.environment["HOLDFAST_BROKER_URL"] = make_vhost()
    bank.start()
    lines = bank.post("/credits", credits_of("RF-1", "RF-2"), **{"Idempotency-Key": "k"})["statement_lines"]
    bank.kill()
    bank.start()
    assert (
        bank.post("/credits", credits_of("RF-1", "RF-2"), **{"Idempotency-Key": "k"})["statement_lines"]
        == lines
    )
    assert bank.counts()["unpublished"] == 2

    inbound = Inbound(bank.environment["HOLDFAST_BROKER_URL"])
    events = collect_events(bank, inbound, 2)
    assert [event.data["statement_line"] for event in events] == lines
    wait_for(lambda: bank.counts()["unpublished"] == 0)
    inbound.close()


def test_all_transfers_are_listed_in_order_and_page_by_page(bank: BankProcess) -> None:
    client = bank.client()
    client.submit(an_instruction("e-1"))
    bank.behave(behaviour="reject")
    client.submit(an_instruction("e-2", 7))
    bank.kill()
    client = bank.start().client()
    first, second = client.transfers_after(0, 10)
    assert (first.end_to_end_id, first.word, first.amount_minor) == ("e-1", BankWord.SETTLED, 1_250)
    assert (second.end_to_end_id, second.word, second.currency) == ("e-2", BankWord.REJECTED, "EUR")
    assert client.transfers_after(0, 1) == [first]
    assert client.transfers_after(first.position, 10) == [second]
    assert client.transfers_after(second.position, 10) == []


def test_the_statement_is_published_again_under_the_same_ids(
    bank: BankProcess, inbound_queue: Inbound
) -> None:
    bank.post("/credits", credits_of("RF-1", "RF-2"))
    first = collect_events(bank, inbound_queue, 2)
    wait_for(lambda: bank.counts()["unpublished"] == 0)
    assert bank.post("/statement/again", {}) == {"statement_lines": 2}
    again = collect_events(bank, inbound_queue, 2)
    assert [(event.id, event.data) for event in again] == [(event.id, event.data) for event in first]
    wait_for(lambda: bank.counts()["unpublished"] == 0)


def test_the_bank_serves_while_the_broker_is_away(bank: BankProcess) -> None:
    bank.stop()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    bank.environment["HOLDFAST_BROKER_URL"] = f"amqp://guest:guest@127.0.0.1:{port}/"
    bank.start()
    assert bank.client().submit(an_instruction()).word is BankWord.SETTLED
    bank.post("/credits", credits_of("RF-1"))
    assert httpx.get(f"{bank.url}/health").json()["unpublished"] == 1
    assert bank.terminate() == 0


def test_it_ends_in_good_order_even_with_requests_that_it_never_answers(bank: BankProcess) -> None:
    bank.behave(behaviour="time_out_after_accepting")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bank.client(timeout_s=10).submit, an_instruction())
        wait_for(lambda: "settled" in bank.counts()["transfers"])
        assert bank.terminate() == 0
        assert waiting.result().word is BankWord.UNKNOWN


def test_a_second_bank_on_the_same_journal_does_not_start(bank: BankProcess) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "infra.local.bank"],
        env=bank.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 2
    assert "another bank" in second.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOLDFAST_BANK_URL", ""),
        ("HOLDFAST_BANK_URL", "http://192.0.2.1:80"),
        ("HOLDFAST_BANK_URL", "http://127.0.0.1:99999"),
        ("HOLDFAST_BROKER_URL", ""),
        ("SIMULATED_BANK_JOURNAL", ""),
        ("SIMULATED_BANK_KEY_FILE", ""),
        ("HOLDFAST_ENVIRONMENT", "production"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path, variable: str, value: str) -> None:
    process = BankProcess(tmp_path, "amqp://guest:guest@127.0.0.1:1/")
    process.environment[variable] = value
    ended = subprocess.run(
        [sys.executable, "-m", "infra.local.bank"],
        env=process.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert variable in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_keygen_makes_a_key_once_and_prints_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "bank.key"

    def keygen() -> str:
        command = [sys.executable, "-m", "infra.local.bank", "keygen", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    printed = keygen()
    assert len(parse_ed25519_public(printed)) == 32
    assert keygen() == printed
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["/nothing", "/credits"])
def test_a_wrong_path_or_method_is_answered_in_json(bank: BankProcess, path: str) -> None:
    answer = httpx.get(bank.url + path)
    assert answer.status_code in {404, 405}
    assert "error" in answer.json()


def test_a_bad_request_names_the_field(bank: BankProcess) -> None:
    answer = httpx.post(
        f"{bank.url}/credits", json=[{"bank_reference": "RF-1", "amount": 1.5, "currency": "EUR"}]
    )
    assert answer.status_code == 400
    assert answer.json()["field"] == "0.amount"
    transfer = {
        "end_to_end_id": "e-1",
        "amount": 1,
        "currency": "EUR",
        "destination_id": "d-1",
        "destination": {"type": "iban", "iban": IBAN, "holder_name": "S"},
    }
    answer = httpx.post(f"{bank.url}/transfers", json=transfer, headers={"Idempotency-Key": "e-2"})
    assert answer.status_code == 400
    assert answer.json()["field"] == "Idempotency-Key"
    assert httpx.get(f"{bank.url}/returns?after=-1").json()["field"] == "after"
