"""
The bank: what we ask of it, and how it is asked over HTTP.

Only the bank's own readable word is an answer. Time-outs, broken connections, errors and answers that
can't be read are UNKNOWN: the transfer may have been made, so it is asked for and never called failed.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx
import structlog
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from workers.payout.transfers import (
    BankWord,
    ListedTransfer,
    ReturnedTransfer,
    TransferAnswer,
    TransferInstruction,
)

log = structlog.get_logger(__name__)

_MAX_ANSWER_BYTES = 1024 * 1024
_CONNECTIONS = 32
# Shorter than the bank keeps an idle connection, so that no request is written into one just closed.
_KEEP_IDLE_SECONDS = 20.0


class BankUnavailable(Exception):
    """The bank gave no readable list of returns; asking later can help."""


class Bank(Protocol):
    """A bank that makes transfers, each under an id that we gave it."""

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        """Hand over a transfer. The same `end_to_end_id` again makes no second one."""

    def find(self, end_to_end_id: str) -> TransferAnswer:
        """Ask what became of a transfer."""

    def returns_after(self, position: int, limit: int) -> Sequence[ReturnedTransfer]:
        """
        Read the list of returned transfers after a position, oldest first.

        Raises:
            BankUnavailable: there was no readable answer.
        """


class _Answer(BaseModel):
    # Unknown fields are let through: a bank may say more than we read.
    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class _TransferState(_Answer):
    end_to_end_id: str
    state: Literal["pending", "settled", "rejected", "returned"]
    reason: str | None = None


class _NeverSeen(_Answer):
    error: Literal["never_seen"]
    end_to_end_id: str


class _Listed(_TransferState):
    seq: NonNegativeInt
    amount: NonNegativeInt
    currency: str


class _Transfers(_Answer):
    transfers: list[_Listed]


class _Return(_Answer):
    seq: NonNegativeInt
    end_to_end_id: str
    reason: str


class _Returns(_Answer):
    returns: list[_Return]


_AnswerT = TypeVar("_AnswerT", bound=_Answer)


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    body: bytes


class _NoAnswer(Exception):
    """The exchange did not end with a whole answer; `why` is short and free of bank details."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class HttpBank:
    """
    A bank that speaks the HTTP interface of docs/bank.md; safe to share between threads.

    Args:
        base_url: scheme, host and port.
        timeout_s: bound on connecting and on every wait for bytes; a body that drips is given up after
            twice as long.
    """

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            base_url=base_url,
            timeout=timeout_s,
            limits=httpx.Limits(
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_CONNECTIONS,
                keepalive_expiry=_KEEP_IDLE_SECONDS,
            ),
            # Payments go to the bank that was configured: through no proxy and to no other address.
            trust_env=False,
            follow_redirects=False,
        )

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        """Hand over a transfer; UNKNOWN unless the bank said clearly what it did."""
        content = {
            "end_to_end_id": instruction.end_to_end_id,
            "amount": instruction.amount_minor,
            "currency": instruction.currency,
            "destination_id": instruction.destination_id,
            "destination": dict(instruction.destination),
        }
        try:
            response = self._exchange(
                "POST",
                "/transfers",
                body=json.dumps(content).encode(),
                headers={
                    "Content-Type": "application/json",
                    "Idempotency-Key": instruction.end_to_end_id,
                },
            )
        except _NoAnswer as error:
            return _unknown("submit", instruction.end_to_end_id, error.why)
        return _read_transfer("submit", instruction.end_to_end_id, response)

    def find(self, end_to_end_id: str) -> TransferAnswer:
        """Ask what became of a transfer; NEVER_SEEN only where the bank itself says so."""
        try:
            response = self._exchange("GET", f"/transfers/{quote(end_to_end_id, safe='')}")
        except _NoAnswer as error:
            return _unknown("find", end_to_end_id, error.why)
        if response.status == HTTPStatus.NOT_FOUND:
            # A 404 from anything in between says nothing about the transfer.
            answer = _parse(_NeverSeen, response.body)
            if answer is not None and answer.end_to_end_id == end_to_end_id:
                return TransferAnswer(BankWord.NEVER_SEEN)
        return _read_transfer("find", end_to_end_id, response)

    def returns_after(self, position: int, limit: int) -> Sequence[ReturnedTransfer]:
        """
        Read the list of returned transfers after a position, oldest first.

        Raises:
            BankUnavailable: there was no readable answer.
        """
        try:
            response = self._exchange("GET", f"/returns?after={position:d}&limit={limit:d}")
        except _NoAnswer as error:
            raise BankUnavailable(f"the bank's returns after {position}: {error.why}") from error
        answer = _parse(_Returns, response.body) if response.status == HTTPStatus.OK else None
        if answer is None or any(entry.seq <= position for entry in answer.returns):
            raise BankUnavailable(f"the bank's returns after {position}: unreadable, HTTP {response.status}")
        return [
            ReturnedTransfer(position=entry.seq, end_to_end_id=entry.end_to_end_id, reason=entry.reason)
            for entry in sorted(answer.returns, key=lambda entry: entry.seq)
        ]

    def transfers_after(self, position: int, limit: int) -> Sequence[ListedTransfer]:
        """
        Read the list of all transfers after a position, oldest first; only a recovery needs it.

        Raises:
            BankUnavailable: there was no readable answer.
        """
        try:
            response = self._exchange("GET", f"/transfers?after={position:d}&limit={limit:d}")
        except _NoAnswer as error:
            raise BankUnavailable(f"the bank's transfers after {position}: {error.why}") from error
        answer = _parse(_Transfers, response.body) if response.status == HTTPStatus.OK else None
        if answer is None or any(entry.seq <= position for entry in answer.transfers):
            raise BankUnavailable(
                f"the bank's transfers after {position}: unreadable, HTTP {response.status}"
            )
        return [
            ListedTransfer(
                entry.seq, entry.end_to_end_id, BankWord(entry.state), entry.amount, entry.currency
            )
            for entry in sorted(answer.transfers, key=lambda entry: entry.seq)
        ]

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _exchange(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> _Response:
        deadline = time.monotonic() + 2 * self._timeout_s
        received = bytearray()
        try:
            with self._client.stream(method, path, content=body, headers=headers) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > _MAX_ANSWER_BYTES:
                        raise _NoAnswer("answer too large")
                    # httpx bounds each wait; without this a dripping answer would hold the thread.
                    if time.monotonic() > deadline:
                        raise _NoAnswer("answer too slow")
                return _Response(response.status_code, bytes(received))
        # `from None`: the library's error holds the request, and that holds the seller's account.
        except httpx.TimeoutException as error:
            raise _NoAnswer(f"timed out ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NoAnswer(f"no connection ({type(error).__name__})") from None


def _read_transfer(asked: str, end_to_end_id: str, response: _Response) -> TransferAnswer:
    if response.status not in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED}:
        return _unknown(asked, end_to_end_id, f"HTTP {response.status}")
    answer = _parse(_TransferState, response.body)
    if answer is None:
        return _unknown(asked, end_to_end_id, "unreadable answer")
    if answer.end_to_end_id != end_to_end_id:
        return _unknown(asked, end_to_end_id, "answer about another transfer")
    return TransferAnswer(BankWord(answer.state), answer.reason)


def _parse(kind: type[_AnswerT], body: bytes) -> _AnswerT | None:
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        return None


def _unknown(asked: str, end_to_end_id: str, why: str) -> TransferAnswer:
    log.warning("bank_gave_no_answer", asked=asked, end_to_end_id=end_to_end_id, why=why)
    return TransferAnswer(BankWord.UNKNOWN)
