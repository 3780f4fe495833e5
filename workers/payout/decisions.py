"""Passwords, withdrawals and the bank's word: pure rules."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ledger.postings import PostingKind
from schemas.reasons import Reason
from workers.payout.transfers import BankWord, TransferAnswer

# Failures in a row, and for how long no further guess is taken.
_LOCKS = {5: timedelta(minutes=15), 10: timedelta(hours=24)}
LOCKED_FOR_GOOD_AT = 15


class Purpose(StrEnum):
    ENROLMENT = "enrolment"
    PASSWORD_CHANGE = "password_change"  # noqa: S105 - a purpose, not a secret
    WITHDRAWAL = "withdrawal"


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Proceed:
    """Nothing speaks against it so far; the password decides."""


def is_locked(*, locked_until: datetime | None, locked_by_failures: bool, now: datetime) -> bool:
    return locked_by_failures or (locked_until is not None and now < locked_until)


def decide_request(
    *,
    shop_active: bool,
    seller_known: bool,
    destination_known: bool,
    locked: bool,
    sealed_problem: str | None,
) -> Proceed | Refused:
    """Judge a request before its password, in the order of refusals that the contract gives."""
    if not shop_active:
        return Refused(Reason.SHOP_SUSPENDED, "the shop is suspended")
    if not seller_known:
        return Refused(Reason.UNKNOWN_SELLER, "no such seller has enrolled")
    if not destination_known:
        return Refused(Reason.UNKNOWN_DESTINATION, "the seller has no such destination")
    if locked:
        return Refused(Reason.LOCKED, "too many wrong passwords; try again later")
    if sealed_problem is not None:
        return Refused(Reason.INVALID_DATA, sealed_problem)
    return Proceed()


@dataclass(frozen=True, slots=True)
class Count:
    """The attempt counts as a failure until its password proves right; this is what follows from it."""

    failed_attempts: int
    locked_until: datetime | None
    locked_for_good: bool


def decide_count(
    *, failed_attempts: int, locked_until: datetime | None, locked_by_failures: bool, now: datetime
) -> Count | Refused:
    """
    Count an attempt before it is checked, or refuse it unchecked while the seller is locked.

    The lock that a failure earns is set before the check and lifted by a right password, so a crash in
    between can only lock, never give a free guess.
    """
    if is_locked(locked_until=locked_until, locked_by_failures=locked_by_failures, now=now):
        return Refused(Reason.LOCKED, "too many wrong passwords; try again later")
    failures = failed_attempts + 1
    lock = _LOCKS.get(failures)
    return Count(failures, now + lock if lock else locked_until, failures >= LOCKED_FOR_GOOD_AT)


@dataclass(frozen=True, slots=True)
class Reserve:
    """The money leaves the withdrawable balance and goes on its way."""


def decide_withdrawal(*, password_ok: bool, amount_minor: int, available_minor: int) -> Reserve | Refused:
    if not password_ok:
        return Refused(Reason.WRONG_PASSWORD, "the withdrawal password is wrong")
    if amount_minor > available_minor:
        return Refused(Reason.INSUFFICIENT_FUNDS, "the amount is more than is withdrawable")
    return Reserve()


class TransferState(StrEnum):
    READY = "ready"
    SENDING = "sending"  # handed to the bank, or about to be; a crash may lie in between
    UNKNOWN = "unknown"  # the bank gave no answer that we could read
    SUBMITTED = "submitted"
    SETTLED = "settled"
    FAILED = "failed"
    RETURNED = "returned"


OPEN_STATES = frozenset(
    {TransferState.READY, TransferState.SENDING, TransferState.UNKNOWN, TransferState.SUBMITTED}
)


@dataclass(frozen=True, slots=True)
class TransferChange:
    """What the bank's word makes of a transfer: its next state, the postings, the events by type."""

    state: TransferState
    postings: tuple[PostingKind, ...] = ()
    events: tuple[str, ...] = ()


_SUBMITTED, _SETTLED = "payout.submitted", "payout.settled"
_FAILED, _RETURNED = "payout.failed", "payout.returned"


def decide_transfer(  # noqa: PLR0911 - one return for each cell of the table
    state: TransferState, answer: TransferAnswer
) -> TransferChange | None:
    """
    Judge the bank's word; None where it changes nothing.

    A time-out is no failure: the transfer becomes unknown and the bank is asked until it says. Only a
    rejection brings the money back, and a return of a settled transfer. Events may be named again;
    their ids are derived, so each is published once as new.
    """
    if state in {TransferState.FAILED, TransferState.RETURNED}:
        return None
    if state is TransferState.SETTLED:
        if answer.word is BankWord.RETURNED:
            return TransferChange(TransferState.RETURNED, (PostingKind.PAYOUT_RETURNED,), (_RETURNED,))
        return None
    match answer.word:
        case BankWord.PENDING:
            if state is TransferState.SUBMITTED:
                return None
            return TransferChange(TransferState.SUBMITTED, (), (_SUBMITTED,))
        case BankWord.SETTLED:
            events = (_SETTLED,) if state is TransferState.SUBMITTED else (_SUBMITTED, _SETTLED)
            return TransferChange(TransferState.SETTLED, (PostingKind.PAYOUT_SETTLED,), events)
        case BankWord.REJECTED:
            return TransferChange(TransferState.FAILED, (PostingKind.PAYOUT_FAILED,), (_FAILED,))
        case BankWord.RETURNED:
            return TransferChange(
                TransferState.RETURNED,
                (PostingKind.PAYOUT_SETTLED, PostingKind.PAYOUT_RETURNED),
                (_SUBMITTED, _SETTLED, _RETURNED),
            )
        case BankWord.NEVER_SEEN | BankWord.UNKNOWN:
            return TransferChange(TransferState.UNKNOWN) if state is TransferState.SENDING else None


# How long until the bank is asked again: soon at first, since most transfers settle at once.
_CHECK_DELAYS_MS = (1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000)


def check_delay_ms(tries: int) -> int:
    return _CHECK_DELAYS_MS[min(tries, len(_CHECK_DELAYS_MS) - 1)]
