"""What is said between us and a bank about one transfer: plain values, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class BankWord(StrEnum):
    """What the bank says of a transfer, or that it said nothing."""

    PENDING = "pending"  # accepted, not settled yet
    SETTLED = "settled"
    REJECTED = "rejected"  # final: the money never left
    RETURNED = "returned"  # settled once, and came back
    NEVER_SEEN = "never_seen"  # asked for; the bank knows no such id
    UNKNOWN = "unknown"  # time-out, broken connection, unreadable answer: never a failure


@dataclass(frozen=True, slots=True)
class TransferInstruction:
    """One transfer; `end_to_end_id` is its idempotency key at the bank. Minor units."""

    end_to_end_id: str
    amount_minor: int
    currency: str
    destination_id: str
    # Readable bank details: never logged, never in `repr`.
    destination: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransferAnswer:
    """`reason` is the bank's own code for a rejection or return."""

    word: BankWord
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReturnedTransfer:
    """One entry of the bank's list of returns; `position` grows, so a reader can go on from it."""

    position: int
    end_to_end_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ListedTransfer:
    """One entry of the bank's list of all transfers; minor units."""

    position: int
    end_to_end_id: str
    word: BankWord
    amount_minor: int
    currency: str
