"""
What the bank knows and decides. Everything it knows comes from its journal, and nothing is known, done or
answered before the journal has it on disk.

One lock stands around deciding, journalling and knowing, so of any number of equal requests exactly one
moves money.
"""

import bisect
import hashlib
import heapq
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from itertools import islice
from typing import Any

from infra.local.bank.journal import Entry, Journal
from infra.local.bank.wire import (
    Behaviour,
    BehaviourRequest,
    CreditRequest,
    DebitRequest,
    Refused,
    TransferRequest,
    invalid,
)

_LONGEST_SLEEP_SECONDS = 60.0
_WELL_BEHAVED = BehaviourRequest(behaviour=Behaviour.SETTLE)


class TransferState(StrEnum):
    PENDING = "pending"
    SETTLED = "settled"
    REJECTED = "rejected"
    RETURNED = "returned"


class LineKind(StrEnum):
    """The two kinds of line on the statement of the account that buyers pay into."""

    CREDITED = "credited"
    DEBITED = "debited"


@dataclass(slots=True)
class Transfer:
    """One transfer, whatever became of it."""

    end_to_end_id: str
    content_hash: str
    amount: int
    currency: str
    state: TransferState
    # Its place in the journal.
    seq: int
    reason: str | None = None
    # Why it will come back, if it will.
    return_reason: str | None = None

    def answer(self) -> dict[str, str | int | None]:
        return {
            "end_to_end_id": self.end_to_end_id,
            "state": self.state,
            "reason": self.reason,
            "amount": self.amount,
            "currency": self.currency,
        }


@dataclass(frozen=True, slots=True)
class Submitted:
    """`answered` is False where the bank did as it was asked and then never says so."""

    answer: Mapping[str, str | int | None]
    answered: bool = True


@dataclass(frozen=True, slots=True)
class _Repeatable:
    """An earlier request for statement lines, recognised by its Idempotency-Key."""

    content_hash: str
    statement_lines: tuple[str, ...]


@dataclass(slots=True)
class _Totals:
    """Moved money per currency, minor units."""

    settled: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    credited: Counter[str] = field(default_factory=Counter)
    debited: Counter[str] = field(default_factory=Counter)


class Book:
    """The bank's accounts; safe to share between threads."""

    def __init__(self, journal: Journal) -> None:
        """
        Learn from the journal all that was done before.

        Raises:
            LocalServiceError: the journal is damaged.
        """
        self._journal = journal
        self._changed = threading.Condition()
        self._journal_id = ""
        self._transfers: dict[str, Transfer] = {}
        self._returns: list[tuple[int, str, str]] = []
        # (when, journal number, transfer): what has to happen by itself.
        self._due: list[tuple[float, int, str]] = []
        self._behaviours: dict[str | None, BehaviourRequest] = {None: _WELL_BEHAVED}
        self._lines = 0
        self._statement: dict[str, Entry] = {}
        self._unpublished: dict[str, Entry] = {}
        self._standing: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._repeatable: dict[str, _Repeatable] = {}
        self._counts: Counter[str] = Counter()
        self._totals = _Totals()
        for entry in journal.replay():
            self._apply(entry)
        if not self._journal_id:
            # Part of every statement line, so that a bank with a new journal does not repeat the old one's.
            self._write([{"kind": "journal_opened", "journal_id": secrets.token_hex(4)}])

    # --- transfers ---

    def submit(self, request: TransferRequest) -> Submitted:
        """
        Make a transfer, or say what became of the one that has this id already.

        Raises:
            Refused: 422; the id stands for a transfer with other content.
        """
        with self._changed:
            known = self._transfers.get(request.end_to_end_id)
            if known is None:
                return self._accept(request)
            if known.content_hash != request.content_hash():
                self._write([{"kind": "transfer_conflict", "end_to_end_id": request.end_to_end_id}])
                raise Refused(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    "conflicting_duplicate",
                    "this end_to_end_id stands for a transfer with other content",
                    end_to_end_id=request.end_to_end_id,
                )
            self._write([{"kind": "transfer_repeated", "end_to_end_id": request.end_to_end_id}])
            return Submitted(known.answer())

    def find(self, end_to_end_id: str) -> Mapping[str, str | int | None]:
        """
        Say what became of a transfer.

        Raises:
            Refused: 404; the bank has never seen it.
        """
        with self._changed:
            known = self._transfers.get(end_to_end_id)
            if known is None:
                raise Refused(
                    HTTPStatus.NOT_FOUND,
                    "never_seen",
                    "no transfer has this end_to_end_id",
                    end_to_end_id=end_to_end_id,
                )
            return known.answer()

    def returns_after(self, seq: int, limit: int) -> list[dict[str, str | int]]:
        """List what came back after a place in the journal, oldest first."""
        with self._changed:
            start = bisect.bisect_right(self._returns, seq, key=lambda entry: entry[0])
            return [
                {"seq": at, "end_to_end_id": end_to_end_id, "reason": reason}
                for at, end_to_end_id, reason in self._returns[start : start + limit]
            ]

    def transfers_after(self, seq: int, limit: int) -> list[Mapping[str, str | int | None]]:
        """List what was ever handed over after a place in the journal, oldest first."""
        with self._changed:
            # Kept in the order of the journal.
            later = (transfer for transfer in self._transfers.values() if transfer.seq > seq)
            return [{"seq": one.seq, **one.answer()} for one in islice(later, limit)]

    def behave(self, request: BehaviourRequest) -> None:
        """Treat transfers like this from now on: those to one destination, or all that have no rule."""
        with self._changed:
            self._write([{"kind": "behaviour_set", **request.model_dump(mode="json")}])

    def behave_well(self) -> None:
        """Forget every rule and settle everything."""
        with self._changed:
            self._write([{"kind": "behaviour_reset"}])

    def _accept(self, request: TransferRequest) -> Submitted:
        rule = self._behaviour_for(request)
        now = time.time()
        transfer = {
            **request.model_dump(mode="json"),
            "content_hash": request.content_hash(),
            "behaviour": rule.behaviour,
        }
        end_to_end_id = request.end_to_end_id
        settled = {
            "kind": "transfer_settled",
            "end_to_end_id": end_to_end_id,
            "amount": request.amount,
            "currency": request.currency,
        }
        due_at = now + rule.delay_seconds
        match rule.behaviour:
            case Behaviour.REJECT:
                entries: list[Entry] = [{**transfer, "kind": "transfer_rejected", "reason": rule.reason_code}]
            case Behaviour.LATE:
                entries = [{**transfer, "kind": "transfer_accepted", "due_at": due_at}]
            case Behaviour.RETURN_AFTER_SETTLING:
                fate = {"due_at": due_at, "return_reason": rule.reason_code}
                entries = [{**transfer, **fate, "kind": "transfer_accepted"}, settled]
            case Behaviour.SETTLE | Behaviour.TIME_OUT_AFTER_ACCEPTING:
                entries = [{**transfer, "kind": "transfer_accepted"}, settled]
        self._write(entries)
        self._changed.notify_all()
        return Submitted(
            self._transfers[end_to_end_id].answer(),
            answered=rule.behaviour is not Behaviour.TIME_OUT_AFTER_ACCEPTING,
        )

    def _behaviour_for(self, request: TransferRequest) -> BehaviourRequest:
        for name in request.destination_names:
            if name in self._behaviours:
                return self._behaviours[name]
        return self._behaviours[None]

    # --- what happens by itself ---

    def run_clock(self, stopping: threading.Event) -> None:
        """Settle and return what is due, until told to stop (and woken)."""
        while not stopping.is_set():
            with self._changed:
                self._do_what_is_due(time.time())
                left = self._due[0][0] - time.time() if self._due else _LONGEST_SLEEP_SECONDS
                if left > 0 and not stopping.is_set():
                    self._changed.wait(min(left, _LONGEST_SLEEP_SECONDS))

    def _do_what_is_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            transfer = self._transfers[self._due[0][2]]
            step = {
                "end_to_end_id": transfer.end_to_end_id,
                "amount": transfer.amount,
                "currency": transfer.currency,
            }
            if transfer.state is TransferState.PENDING:
                self._write([{**step, "kind": "transfer_settled"}])
            elif transfer.state is TransferState.SETTLED and transfer.return_reason is not None:
                self._write([{**step, "kind": "transfer_returned", "reason": transfer.return_reason}])
            # Only now: a write that failed leaves it due.
            heapq.heappop(self._due)

    def wake(self) -> None:
        """Let the waiting threads look around."""
        with self._changed:
            self._changed.notify_all()

    # --- the statement of the account that buyers pay into ---

    def credit(self, requests: Sequence[CreditRequest], key: str | None = None) -> list[str]:
        """
        Book that buyers transferred this; return one statement line for each.

        Raises:
            Refused: 422; the key stands for a request with other content.
        """
        with self._changed:
            return self._book_lines(LineKind.CREDITED, requests, key)

    def debit(self, requests: Sequence[DebitRequest], key: str | None = None) -> list[str]:
        """
        Take credits back; return one statement line for each.

        Raises:
            Refused: 400 where more would be taken back than was credited, 422 as in `credit`.
        """
        with self._changed:
            if key is None or key not in self._repeatable:
                self._refuse_overdraft(requests)
            return self._book_lines(LineKind.DEBITED, requests, key)

    def wait_for_statement(self, stopping: threading.Event, limit: int, timeout_s: float) -> list[Entry]:
        """Return the oldest unconfirmed lines, all of one kind; none if none came in time."""
        with self._changed:
            if not self._unpublished and not stopping.is_set():
                self._changed.wait(timeout_s)
            lines = list(islice(self._unpublished.values(), limit))
        return [line for line in lines if line["kind"] == lines[0]["kind"]]

    def mark_published(self, statement_lines: Sequence[str], message_id: str) -> None:
        """Note that the broker has these lines; what isn't noted is published again."""
        with self._changed:
            self._write(
                [
                    {
                        "kind": "statement_published",
                        "statement_lines": list(statement_lines),
                        "message_id": message_id,
                    }
                ]
            )

    def publish_again(self) -> int:
        """Publish the whole statement once more, ids unchanged; return how many lines it has."""
        with self._changed:
            self._write([{"kind": "statement_repeated"}])
            self._changed.notify_all()
            return len(self._unpublished)

    def _refuse_overdraft(self, requests: Sequence[DebitRequest]) -> None:
        wanted: Counter[tuple[str, str]] = Counter()
        for index, request in enumerate(requests):
            account = (request.bank_reference, request.currency)
            wanted[account] += request.amount
            standing = self._standing.get(account, 0)
            if wanted[account] > standing:
                raise invalid(
                    f"{index}.amount",
                    f"only {standing} {request.currency} of this bank_reference can be taken back",
                )

    def _book_lines(self, kind: LineKind, requests: Sequence[CreditRequest], key: str | None) -> list[str]:
        content = hashlib.sha256(kind.encode())
        for request in requests:
            content.update(b"\n" + request.model_dump_json().encode())
        known = self._repeatable.get(key) if key is not None else None
        if known is not None:
            if known.content_hash != content.hexdigest():
                raise Refused(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    "conflicting_duplicate",
                    "this Idempotency-Key stands for other statement lines",
                )
            return list(known.statement_lines)
        statement_lines = [
            f"{self._journal_id}-{number:010d}"
            for number in range(self._lines + 1, self._lines + 1 + len(requests))
        ]
        entries: list[Entry] = [
            {"kind": kind, "statement_line": statement_line, **request.model_dump(mode="json")}
            for statement_line, request in zip(statement_lines, requests, strict=True)
        ]
        if key is not None:
            entries.append(
                {
                    "kind": "request_booked",
                    "key": key,
                    "content_hash": content.hexdigest(),
                    "statement_lines": statement_lines,
                }
            )
        self._write(entries)
        self._changed.notify_all()
        return statement_lines

    # --- looking at it ---

    def read_journal(self) -> Iterator[bytes]:
        """Yield all that the bank ever did as one JSON array."""
        return self._journal.read_json_array()

    def counts(self) -> dict[str, Any]:
        """Say how often each kind of thing happened, and how much money moved."""
        with self._changed:
            return {
                "entries": dict(sorted(self._counts.items())),
                "unpublished": len(self._unpublished),
                "transfers": dict(Counter(transfer.state for transfer in self._transfers.values())),
                "totals": {name: dict(getattr(self._totals, name)) for name in _Totals.__dataclass_fields__},
            }

    @property
    def unpublished(self) -> int:
        return len(self._unpublished)

    # --- journal in, knowledge out ---

    def _write(self, entries: Sequence[Entry]) -> None:
        for entry in self._journal.append(entries):
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        kind = entry["kind"]
        self._counts[kind] += 1
        match kind:
            case "transfer_accepted" | "transfer_rejected":
                self._apply_new_transfer(entry)
            case "transfer_settled" | "transfer_returned":
                self._apply_movement(entry)
            case LineKind.CREDITED | LineKind.DEBITED:
                self._apply_line(entry)
            case "statement_published":
                for statement_line in entry["statement_lines"]:
                    self._unpublished.pop(statement_line, None)
            case "statement_repeated":
                self._unpublished = dict(self._statement)
            case "request_booked":
                self._repeatable[entry["key"]] = _Repeatable(
                    entry["content_hash"], tuple(entry["statement_lines"])
                )
            case "behaviour_set" | "behaviour_reset":
                self._apply_behaviour(entry)
            case "journal_opened":
                self._journal_id = entry["journal_id"]

    def _apply_new_transfer(self, entry: Entry) -> None:
        rejected = entry["kind"] == "transfer_rejected"
        self._transfers[entry["end_to_end_id"]] = Transfer(
            end_to_end_id=entry["end_to_end_id"],
            content_hash=entry["content_hash"],
            amount=entry["amount"],
            currency=entry["currency"],
            state=TransferState.REJECTED if rejected else TransferState.PENDING,
            seq=entry["seq"],
            reason=entry.get("reason"),
            return_reason=entry.get("return_reason"),
        )
        if "due_at" in entry:
            heapq.heappush(self._due, (entry["due_at"], entry["seq"], entry["end_to_end_id"]))

    def _apply_movement(self, entry: Entry) -> None:
        transfer = self._transfers[entry["end_to_end_id"]]
        if entry["kind"] == "transfer_settled":
            transfer.state = TransferState.SETTLED
            self._totals.settled[entry["currency"]] += entry["amount"]
        else:
            transfer.state, transfer.reason = TransferState.RETURNED, entry["reason"]
            self._returns.append((entry["seq"], entry["end_to_end_id"], entry["reason"]))
            self._totals.returned[entry["currency"]] += entry["amount"]

    def _apply_behaviour(self, entry: Entry) -> None:
        if entry["kind"] == "behaviour_reset":
            self._behaviours = {None: _WELL_BEHAVED}
            return
        rule = BehaviourRequest.model_validate(
            {name: entry[name] for name in BehaviourRequest.model_fields}, strict=False
        )
        self._behaviours[rule.destination] = rule
        if rule.destination is not None:
            # An IBAN may be written in groups of four.
            self._behaviours["".join(rule.destination.split()).upper()] = rule

    def _apply_line(self, entry: Entry) -> None:
        self._lines += 1
        self._statement[entry["statement_line"]] = entry
        self._unpublished[entry["statement_line"]] = entry
        account = (entry["bank_reference"], entry["currency"])
        if entry["kind"] == LineKind.CREDITED:
            self._standing[account] += entry["amount"]
            self._totals.credited[entry["currency"]] += entry["amount"]
        else:
            self._standing[account] -= entry["amount"]
            self._totals.debited[entry["currency"]] += entry["amount"]
