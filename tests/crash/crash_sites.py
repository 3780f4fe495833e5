"""Where the crash proof happens: broker, database, a shop, a bank, and one process that is made to die."""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pika
from sqlalchemy import Engine, text
from workflow_support.books import balance, what_is_wrong
from workflow_support.desk import ENCRYPTION_KEY, database_engine
from workflow_support.outsider import Amqp, Ed25519Key, Message, Shop, fresh, now, order_data, signed
from workflow_support.stepped_clock import SteppedClock, stepped_clock

from infra.crash_points import CRASH_AT_VARIABLE, CRASH_EXIT_CODE
from infra.local.bank.keys import make_signing_key
from infra.local.ports import choose_ports
from infra.postgres.audit import run_audit
from infra.postgres.key_store import add_sender_key, ensure_own_keys, find_own_public_keys
from infra.rabbitmq import topology
from infra.rabbitmq.messages import dead_letter_queue
from infra.security.encryption import Vault
from infra.security.signatures import Scheme, parse_ed25519_public
from ledger.accounts import SELLER_KINDS
from ops.store.deployment import ensure_day_length
from ops.store.senders import Terms, ensure_bank, insert_shop

CHECKOUT = Path(__file__).parent.parent.parent
DAY_SECONDS = 1
# For what must happen while money is held: no machine is so slow that a period of such days ends by itself.
LONG_DAY_SECONDS = 3_600
PATIENCE_SECONDS = 60.0
FEE_BPS = 250
RICH_SELLERS = 64
RICHES = 100_000

# What a dead process leaves behind is taken over within a second or two.
SHORT_TIMES = {
    "HOLDFAST_OUTBOX_GRACE_SECONDS": "0.5",
    "HOLDFAST_SWEEP_SECONDS": "0.5",
    "HOLDFAST_SWEEP_GRACE_SECONDS": "1",
    "HOLDFAST_BANK_POLL_SECONDS": "0.5",
    "HOLDFAST_BANK_TIMEOUT_SECONDS": "3",
    "HOLDFAST_LOG_FORMAT": "json",
    # The tests are about counting passwords, not about the cost of one.
    "HOLDFAST_ARGON2_MEMORY_KIB": "8",
    "HOLDFAST_ARGON2_ITERATIONS": "1",
    "HOLDFAST_DATABASE_POOL_SIZE": "8",
}


def wait_until(
    met: Callable[[], bool],
    *,
    what: str,
    log: Callable[[], str] = str,
    patience: float = PATIENCE_SECONDS,
    pause: float = 0.05,
) -> None:
    """Return as soon as it is so; fail with a log as it is then when it does not become so."""
    deadline = time.monotonic() + patience
    while not met():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}\n{log()}"
        time.sleep(pause)


class Nursery:
    """Starts processes by forking one that has imported everything (one_process.py)."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "one_process.py")],
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lock = threading.Lock()
        self._started: dict[str, Future[int]] = {}
        self._ended: dict[str, Future[int]] = {}
        self._names = itertools.count(1)
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    def start(
        self, name: str, environment: Mapping[str, str], log: Path, *, sabotage: str | None = None
    ) -> "Child":
        if name != "bank":
            name = f"{name}-{next(self._names)}"
        started, ended = self._started[name], self._ended[name] = Future[int](), Future[int]()
        order = {"name": name, "environment": dict(environment), "log": str(log), "sabotage": sabotage}
        line = json.dumps(order) + "\n"
        with self._lock:
            assert self._program.stdin is not None
            self._program.stdin.write(line.encode())
            self._program.stdin.flush()
        return Child(started.result(PATIENCE_SECONDS), ended, log)

    def close(self) -> None:
        """End it and all its processes."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(PATIENCE_SECONDS)

    def _listen(self) -> None:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            match line.decode().split():
                case ["started", name, pid]:
                    self._started[name].set_result(int(pid))
                case ["ended", name, code]:
                    self._ended[name].set_result(int(code))


@dataclass(frozen=True, slots=True)
class Child:
    pid: int
    ended: Future[int]
    log: Path

    def kill(self) -> None:
        if not self.ended.done():
            os.kill(self.pid, signal.SIGKILL)
        self.ended.result(PATIENCE_SECONDS)

    def terminate(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.ended.result(PATIENCE_SECONDS)


@dataclass(slots=True)
class BankAtEdge:
    """The simulated bank, as its own process and one for all sites; its key signs statement lines."""

    nursery: Nursery
    folder: Path
    broker_url: str
    url: str = ""
    key: Ed25519Key = field(default_factory=Ed25519Key)

    def start(self) -> None:
        port = choose_ports(self.folder / "bank-ports.json", ["bank"])["bank"]
        self.url = f"http://127.0.0.1:{port}"
        make_signing_key(self.folder / "bank.key")
        ready = self.folder / "bank.ready"
        environment = {
            "HOLDFAST_BANK_URL": self.url,
            "HOLDFAST_BROKER_URL": self.broker_url,
            "HOLDFAST_READY_FILE": str(ready),
            "SIMULATED_BANK_JOURNAL": str(self.folder / "bank"),
            "SIMULATED_BANK_KEY_FILE": str(self.folder / "bank.key"),
        }
        child = self.nursery.start("bank", environment, self.folder / "bank.log")
        wait_until(lambda: ready.exists() or child.ended.done(), what="the bank is ready")
        assert ready.exists(), child.log.read_text()

    def behaves(self, behaviour: str, destination: str, *, delay_seconds: float = 0.2) -> None:
        rule = {"behaviour": behaviour, "destination": destination, "delay_seconds": delay_seconds}
        httpx.put(f"{self.url}/behaviour", json=rule, timeout=30).raise_for_status()

    def journal(self, end_to_end_id: str, kind: str) -> int:
        entries = httpx.get(f"{self.url}/journal", timeout=30).raise_for_status().json()
        return sum((entry["kind"], entry.get("end_to_end_id")) == (kind, end_to_end_id) for entry in entries)

    def has_returned(self, end_to_end_id: str) -> bool:
        told = httpx.get(f"{self.url}/returns?limit=1000", timeout=30).raise_for_status().json()
        return any(entry["end_to_end_id"] == end_to_end_id for entry in told["returns"])


class Site:
    """One broker and one database with one shop; used by one test after the other."""

    def __init__(
        self,
        *,
        broker_url: str,
        database_url: str,
        engine: Engine,
        bank: BankAtEdge,
        folder: Path,
        day_seconds: int,
        clock: SteppedClock | None,
    ) -> None:
        self.broker_url = broker_url
        self.day_seconds = day_seconds
        self._clock = clock
        self.engine = engine
        self.bank = bank
        self._folder = folder
        self.environment = SHORT_TIMES | {
            "HOLDFAST_BROKER_URL": broker_url,
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_BANK_URL": bank.url,
            "HOLDFAST_ENCRYPTION_KEY": ENCRYPTION_KEY,
            "HOLDFAST_READY_FILE": str(folder / "ready"),
            "HOLDFAST_PROTECTION_DAY_SECONDS": str(day_seconds),
        }
        self._child: Child | None = None
        self.shop = self._set_up()
        self._bank_line = Amqp(broker_url)
        self._rich = (f"rich-{number}" for number in range(RICH_SELLERS))

    def _set_up(self) -> Shop:
        topology.apply(self.broker_url, self.day_seconds)
        vault = Vault(ENCRYPTION_KEY)
        shop_id, key = fresh("shop"), Ed25519Key()
        topology.declare_shop_queue(self.broker_url, shop_id)
        with self.engine.begin() as connection:
            ensure_day_length(connection, self.day_seconds)
            ensure_own_keys(connection, vault)
            insert_shop(connection, shop_id, Terms(3, "confirmed", FEE_BPS))
            ensure_bank(connection, "sim")
            for kind, sender, public, scopes in (
                ("shop", shop_id, key.public, ["orders", "sellers"]),
                ("bank", "sim", self.bank.key.public, []),
            ):
                add_sender_key(
                    connection,
                    vault,
                    kind=kind,  # type: ignore[arg-type]  # a literal
                    sender_id=sender,
                    scheme=Scheme.ED25519,
                    material=parse_ed25519_public(public),
                    scopes=scopes,
                )
            public_keys = find_own_public_keys(connection)["keys"]
        return Shop(self.broker_url, shop_id, key, public_keys)

    def close(self) -> None:
        self.kill()
        self.shop.close()
        self._bank_line.close()

    # The process.

    def start(self, *, crash_at: str | None = None, sabotage: str | None = None, **settings: str) -> Child:
        """Start the process, or a spoiled one (sabotages.py); settings as `sweep_seconds="3600"`."""
        self._ready.unlink(missing_ok=True)
        environment = self.environment | {f"HOLDFAST_{k.upper()}": value for k, value in settings.items()}
        if crash_at is not None:
            environment[CRASH_AT_VARIABLE] = crash_at
        self._child = self.bank.nursery.start("everything", environment, self._log, sabotage=sabotage)
        return self._child

    def start_to_die(self, crash_at: str, **settings: str) -> Child:
        """Start the process so that it dies at a place; it is started again, unarmed, when it has."""
        child = self.start(crash_at=crash_at, **settings)

        def start_again(ended: Future[int]) -> None:
            if ended.result() == CRASH_EXIT_CODE:
                # Not here: this is the thread that reads what the nursery says.
                threading.Thread(target=self.start, name="start-again").start()

        child.ended.add_done_callback(start_again)
        return child

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def wait_until_ready(self) -> None:
        wait_until(self._ready.exists, what="the process is ready", log=self.read_log)

    @property
    def _ready(self) -> Path:
        return self._folder / "ready"

    @property
    def _log(self) -> Path:
        return self._folder / "process.log"

    def read_log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    def logged(self, *names: str) -> list[dict[str, Any]]:
        """Return the lines that the process has logged under these names."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line["event"] in names]

    # The outside.

    def reconnect(self) -> None:
        """Let the outside connect to a broker that was away."""
        self.shop.reconnect()
        self._bank_line = Amqp(self.broker_url)

    def a_rich_seller(self) -> str:
        """Return a seller to whom `RICHES` was released, and who has not enrolled yet."""
        return next(self._rich)

    def makes_sellers_rich(self) -> None:
        order = order_data(splits={f"rich-{number}": RICHES for number in range(RICH_SELLERS)})
        self.shop.says("order.paid", order)
        self.credits(order)
        self.shop.hears_all(lambda event: event.type == "hold.released", RICH_SELLERS)

    def credits(self, order: Mapping[str, Any]) -> None:
        self.bank_says("bank.credited", order)

    def bank_says(self, type_: str, order: Mapping[str, Any], **more: Any) -> None:
        """Publish a signed line of the bank's statement, twice: banks repeat themselves too."""
        data = {name: order[name] for name in ("bank_reference", "amount", "currency")}
        data |= {"booked_at": now(), "statement_line": fresh("line"), **more}
        event = {
            "specversion": "1.0",
            "id": fresh("e"),
            "source": "/banks/sim",
            "type": type_,
            "time": now(),
            "datacontenttype": "application/json",
            "data": data,
        }
        body = json.dumps(event).encode()
        message = Message(body, type_, signed(self.bank.key, event["id"], body))
        self._bank_line.publish(message, message)

    def publish_raw(self, message: Message, *, exchange: str) -> None:
        self._bank_line.publish(message, exchange=exchange)

    def purge(self, *queues: str) -> None:
        with _channel(self.broker_url) as channel:
            for queue in queues:
                channel.queue_purge(queue)

    # What became of it.

    def rows(self, statement: str, **values: object) -> list[Any]:
        with self.engine.begin() as connection:
            return list(connection.execute(text(statement), values))

    def value(self, statement: str, **values: object) -> Any:
        return self.rows(statement, **values)[0][0]

    def change(self, statement: str, **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def let_days_pass(self, days: int) -> None:
        """Put the database's clock on; while no process works, or alarms would ring early to it."""
        assert self._clock is not None, "this site goes with PostgreSQL's own clock"
        self._clock.step(days * self.day_seconds)

    def balance(self, seller: str) -> dict[str, int]:
        """Return what is the seller's, by account; the shop's side of the same postings is left out."""
        accounts = balance(self.engine, self.shop.id, seller)
        return {account: minor for account, minor in accounts.items() if account in SELLER_KINDS}

    def come_to_rest(self) -> None:
        """Wait until nothing is on its way, then check every promise there is."""
        queues = [
            *topology.WORK_QUEUES,
            *map(dead_letter_queue, topology.WORK_QUEUES),
            topology.QUARANTINE_QUEUE,
            topology.ORPHANS_QUEUE,
        ]
        wait_until(
            lambda: self.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0,
            what="every outbox row is published",
            log=self.read_log,
        )
        left: dict[str, int] = {}

        def empty() -> bool:
            left.clear()
            left.update((queue, count) for queue, count in self._depths(queues).items() if count)
            return not left

        wait_until(empty, what="queues are empty", log=lambda: f"{left}\n{self.read_log()}")
        self._hear_everything()
        self.check_audit()

    def check_audit(self) -> None:
        with self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            broken = [finding for finding in run_audit(connection) if not finding.ok]
        assert broken == []
        assert what_is_wrong(self.engine) == {}

    def _hear_everything(self) -> None:
        """Every event was delivered at least once under its id, and nothing that is not in the books."""

        def ids() -> set[str]:
            return {
                str(row.event_id)
                for row in self.rows("SELECT event_id FROM events WHERE shop_id = :shop", shop=self.shop.id)
            }

        def all_heard() -> bool:
            while self.shop.listen():
                pass
            return ids() <= {event.id for event in self.shop.received}

        wait_until(all_heard, what="the shop heard every event")
        assert {event.id for event in self.shop.received} <= ids()

    def left_in(self, queue: str) -> int:
        """Return what a queue holds once nobody consumes it: what was unacknowledged is back in it."""
        with _channel(self.broker_url) as channel:

            def state() -> Any:
                return channel.queue_declare(queue, passive=True).method

            wait_until(lambda: state().consumer_count == 0, what=f"{queue} has no consumer any more")
            return int(state().message_count)

    def _depths(self, queues: list[str]) -> dict[str, int]:
        with _channel(self.broker_url) as channel:
            return {
                queue: channel.queue_declare(queue, passive=True).method.message_count for queue in queues
            }


@contextmanager
def _channel(broker_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    try:
        yield connection.channel()
    finally:
        connection.close()


@contextmanager
def open_site(
    *,
    broker_url: str,
    database_url: str,
    bank: BankAtEdge,
    folder: Path,
    sellers: bool = True,
    day_seconds: int = DAY_SECONDS,
) -> Iterator[Site]:
    """Set up a site; some sellers have money that they can withdraw, unless days are too long to wait for."""
    folder.mkdir()
    with ExitStack() as leaving:
        clock = None
        if day_seconds >= LONG_DAY_SECONDS:
            clock = leaving.enter_context(stepped_clock(database_url))
            clock.run()
        engine = leaving.enter_context(database_engine(database_url))
        site = Site(
            broker_url=broker_url,
            database_url=database_url,
            engine=engine,
            bank=bank,
            folder=folder,
            day_seconds=day_seconds,
            clock=clock,
        )
        leaving.callback(site.close)
        if sellers and clock is None:
            site.start()
            site.makes_sellers_rich()
            site.kill()
        yield site


def random_bytes_text() -> str:
    """Text that no other message has."""
    return base64.b64encode(os.urandom(12)).decode()
