"""Only the bank's own readable word is an answer; everything else is unknown, and never a failure."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import structlog
from structlog.testing import capture_logs

from workers.payout.bank import BankUnavailable, HttpBank
from workers.payout.transfers import BankWord, ReturnedTransfer, TransferAnswer, TransferInstruction

IBAN = "DE89370400440532013000"
INSTRUCTION = TransferInstruction(
    end_to_end_id="e/1",
    amount_minor=1_250,
    currency="EUR",
    destination_id="d-1",
    destination={"type": "iban", "iban": IBAN, "holder_name": "Seller"},
)
Reply = Callable[[socket.socket], None]


@contextmanager
def a_bank_that(reply: Reply) -> Iterator[str]:
    """Serve every connection of its own socket with one reply, over real TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    received = connection.recv(65_536)
                    if received:
                        reply(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)


def answering(status: int, body: bytes, more: bytes = b"") -> Reply:
    def reply(connection: socket.socket) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n".encode()
        connection.sendall(head + more + b"\r\n" + body)

    return reply


def saying(status: int = 200, **document: object) -> Reply:
    return answering(status, json.dumps(document).encode())


def silent(connection: socket.socket) -> None:
    connection.recv(1)


def resetting(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def closing(_: socket.socket) -> None:
    pass


def half(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def no_http(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.org ESMTP\r\n")


def dripping(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    try:
        while True:
            connection.sendall(b" ")
            threading.Event().wait(0.05)
    except OSError:
        pass


UNREADABLE: dict[str, Reply] = {
    "never answers": silent,
    "resets the connection": resetting,
    "closes the connection": closing,
    "stops in the middle": half,
    "speaks something else": no_http,
    "drips": dripping,
    "fails": saying(500, end_to_end_id="e/1", state="rejected"),
    "is behind a gateway that fails": answering(502, b"<html>"),
    "is behind a gateway that has no such page": answering(404, b"<html>Not Found</html>"),
    "redirects": answering(307, b"", b"Location: http://127.0.0.1:1/\r\n"),
    "refuses the request's form": saying(400, error="invalid_request", field="amount"),
    "knows the id with other content": saying(422, error="conflicting_duplicate"),
    "answers with no JSON": answering(200, b"OK"),
    "answers with another state": saying(end_to_end_id="e/1", state="failed"),
    "answers about another transfer": saying(end_to_end_id="e/2", state="rejected"),
    "answers without end": answering(200, b" " * 2_000_000),
    "answers with null": answering(200, b"null"),
}


@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_readable_answer_is_unknown(reply: Reply) -> None:
    with a_bank_that(reply) as url:
        bank = HttpBank(url, timeout_s=0.3)
        assert bank.submit(INSTRUCTION) == TransferAnswer(BankWord.UNKNOWN)
        assert bank.find("e/1") == TransferAnswer(BankWord.UNKNOWN)
        with pytest.raises(BankUnavailable):
            bank.returns_after(0, 10)
        bank.close()


def test_a_bank_that_does_not_listen_is_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    bank = HttpBank(f"http://127.0.0.1:{port}", timeout_s=0.3)
    assert bank.submit(INSTRUCTION).word is BankWord.UNKNOWN
    with pytest.raises(BankUnavailable):
        bank.returns_after(0, 10)


@pytest.mark.parametrize("state", ["pending", "settled", "rejected", "returned"])
def test_the_banks_word_is_taken_as_it_is(state: str) -> None:
    with a_bank_that(saying(end_to_end_id="e/1", state=state, reason="AC04", more="ignored")) as url:
        bank = HttpBank(url, timeout_s=5)
        assert bank.submit(INSTRUCTION) == TransferAnswer(BankWord(state), "AC04")
        assert bank.find("e/1") == TransferAnswer(BankWord(state), "AC04")


def test_never_seen_needs_the_banks_own_words_about_this_transfer() -> None:
    with a_bank_that(saying(404, error="never_seen", end_to_end_id="e/1")) as url:
        assert HttpBank(url, timeout_s=5).find("e/1").word is BankWord.NEVER_SEEN
        assert HttpBank(url, timeout_s=5).find("e/2").word is BankWord.UNKNOWN
        assert HttpBank(url, timeout_s=5).submit(INSTRUCTION).word is BankWord.UNKNOWN


def test_returns_come_in_the_order_of_their_positions() -> None:
    entries = [
        {"seq": 9, "end_to_end_id": "e-2", "reason": "AC06"},
        {"seq": 4, "end_to_end_id": "e-1", "reason": "AC04"},
    ]
    with a_bank_that(saying(returns=entries)) as url:
        bank = HttpBank(url, timeout_s=5)
        assert bank.returns_after(3, 10) == [
            ReturnedTransfer(4, "e-1", "AC04"),
            ReturnedTransfer(9, "e-2", "AC06"),
        ]
        with pytest.raises(BankUnavailable):
            bank.returns_after(4, 10)


def test_neither_logs_nor_errors_show_the_sellers_account(monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        # A logger of its own: one that was used before keeps the configuration it was first used with.
        monkeypatch.setattr("workers.payout.bank.log", structlog.get_logger())
        for reply in (silent, resetting, no_http, saying(500)):
            with a_bank_that(reply) as url:
                HttpBank(url, timeout_s=0.2).submit(INSTRUCTION)
    assert len(logs) == 4
    assert IBAN not in repr(logs)
    assert IBAN not in repr(INSTRUCTION)


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with a_bank_that(saying(end_to_end_id="e/1", state="settled")) as url:
        assert HttpBank(url, timeout_s=5).submit(INSTRUCTION).word is BankWord.SETTLED


def test_many_threads_share_one_bank() -> None:
    with a_bank_that(saying(end_to_end_id="e/1", state="settled")) as url:
        bank = HttpBank(url, timeout_s=5)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: bank.submit(INSTRUCTION), range(40)))
    assert {answer.word for answer in answers} == {BankWord.SETTLED}
