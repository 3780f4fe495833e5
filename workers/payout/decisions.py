"""Passwords, withdrawals and the bank's word: pure rules."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ledger.names import is_same_person
from ledger.postings import PostingKind
from schemas.reasons import Reason
from workers.payout.transfers import BankWord, TransferAnswer

# Failures in a row, and for how long no further guess is taken.
_LOCKS = {5: timedelta(minutes=15), 10: timedelta(hours=24)}
LOCKED_FOR_GOOD_AT = 15
_LOCK_NAMES = {5: "15_minutes", 10: "24_hours"}
_LOCK_FOR_GOOD = "operator"
LOCK_NAMES = (*_LOCK_NAMES.values(), _LOCK_FOR_GOOD)


class Purpose(StrEnum):
    ENROLMENT = "enrolment"
    PASSWORD_CHANGE = "password_change"  # noqa: S105 - a purpose, not a secret
    WITHDRAWAL = "withdrawal"


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason
    detail: str


UNKNOWN_SELLER = Refused(Reason.UNKNOWN_SELLER, "no such seller has enrolled")
UNKNOWN_DESTINATION = Refused(Reason.UNKNOWN_DESTINATION, "the seller has no such destination")


@dataclass(frozen=True, slots=True)
class Proceed:
    """Nothing speaks against it so far; the password decides."""


def name_lock(failed_attempts: int) -> str | None:
    """Return what a failure that has just been confirmed has locked the seller for, in one word."""
    if failed_attempts >= LOCKED_FOR_GOOD_AT:
        return _LOCK_FOR_GOOD
    return _LOCK_NAMES.get(failed_attempts)


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
    """
    Judge a request before its password, in the order of refusals that the contract gives.

    A seller who is not known goes on to the password like any other, and is refused after the same
    work: how long an answer takes tells nobody who has enrolled.
    """
    if not shop_active:
        return Refused(Reason.SHOP_SUSPENDED, "the shop is suspended")
    if not seller_known:
        return Proceed() if sealed_problem is None else UNKNOWN_SELLER
    if not destination_known:
        return UNKNOWN_DESTINATION
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


def may_enrol_anew(*, password_reset_until: datetime | None, now: datetime) -> bool:
    """
    Return whether operators let this seller enrol anew, for a password that was forgotten.

    As long as they do, the old password is good for nothing; afterwards it is as before.
    """
    return password_reset_until is not None and now < password_reset_until


class Limit(StrEnum):
    """Which limit a withdrawal is over; the value is what operators read."""

    PER_WITHDRAWAL = "per_withdrawal"
    PER_DAY = "per_day"
    PER_HOUR = "per_hour"


@dataclass(frozen=True, slots=True)
class Limits:
    """What may go without review, in one currency; None is no limit."""

    per_withdrawal_minor: int | None = None
    per_day_minor: int | None = None
    per_hour_count: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What has gone already: minor units of this day (UTC), and how many withdrawals in the last hour."""

    day_minor: int = 0
    hour_count: int = 0

    def with_one_more(self, amount_minor: int) -> "Usage":
        return Usage(self.day_minor + amount_minor, self.hour_count + 1)


def find_exceeded(limits: Limits, usage: Usage, amount_minor: int) -> Limit | None:
    """Return the limit that one more withdrawal of this amount would be over, if any."""
    if limits.per_withdrawal_minor is not None and amount_minor > limits.per_withdrawal_minor:
        return Limit.PER_WITHDRAWAL
    if limits.per_day_minor is not None and usage.day_minor + amount_minor > limits.per_day_minor:
        return Limit.PER_DAY
    if limits.per_hour_count is not None and usage.hour_count + 1 > limits.per_hour_count:
        return Limit.PER_HOUR
    return None


def cooling_off_until(
    *,
    enrolled_at: datetime,
    password_changed_at: datetime,
    destination_added_at: datetime,
    cooling_off: timedelta,
) -> datetime | None:
    """Return when the last change has cooled off; None where nothing changed since the first enrolment."""
    last = max(password_changed_at, destination_added_at)
    return last + cooling_off if last > enrolled_at else None


@dataclass(frozen=True, slots=True)
class Reserve:
    """The money leaves the withdrawable balance and goes on its way."""


@dataclass(frozen=True, slots=True)
class Pend:
    """
    The money is set aside and waits: for people where it is over a limit, else for a time.

    Where it is both, people decide first; `until` is then kept for what is left of the time.
    """

    over_limit: Limit | None
    until: datetime | None

    @property
    def reason(self) -> Reason:
        return Reason.COOLING_OFF if self.over_limit is None else Reason.OVER_LIMIT


def decide_withdrawal(
    *,
    password_ok: bool,
    amount_minor: int,
    available_minor: int,
    over_limit: Limit | None,
    cooling_until: datetime | None,
    now: datetime,
) -> Reserve | Pend | Refused:
    """Judge a withdrawal whose password was checked."""
    if not password_ok:
        return Refused(Reason.WRONG_PASSWORD, "the withdrawal password is wrong")
    if amount_minor > available_minor:
        return Refused(Reason.INSUFFICIENT_FUNDS, "the amount is more than is withdrawable")
    until = cooling_until if cooling_until is not None and now < cooling_until else None
    if over_limit is None and until is None:
        return Reserve()
    return Pend(over_limit, until)


class Verdict(StrEnum):
    """What operators may decide about a withdrawal that waits."""

    APPROVE = "approve"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one operator has said; it takes another one who says the same."""

    verdict: Verdict
    proposed_by: str


class ReviewStep(StrEnum):
    """What an operator's word makes of a review."""

    PROPOSED = "proposed"
    SAID_ALREADY = "said_already"
    DECIDED = "decided"


def decide_review(proposal: Proposal | None, *, verdict: Verdict, by: str) -> ReviewStep:
    """Two different names must say the same; whoever says otherwise starts anew."""
    if proposal is None or proposal.verdict is not verdict:
        return ReviewStep.PROPOSED
    if is_same_person(proposal.proposed_by, by):
        return ReviewStep.SAID_ALREADY
    return ReviewStep.DECIDED


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Not yet."""

    until: datetime


@dataclass(frozen=True, slots=True)
class WaitForPeople:
    """Only operators may move it."""


def decide_resumption(
    *, reason: Reason, until: datetime | None, in_review: bool, now: datetime
) -> Reserve | WaitUntil | WaitForPeople:
    """
    Judge a withdrawal that waits, when its alarm rings.

    One that somebody has proposed to reject stays where it is until two have decided.
    """
    if reason is not Reason.COOLING_OFF or in_review or until is None:
        return WaitForPeople()
    return WaitUntil(until) if now < until else Reserve()


class Source(StrEnum):
    """Whose money a transfer pays out: a seller's, or the shop's own, from fees or recovered by claims."""

    SELLER = "seller"
    FEES = "fees"
    RECOVERED = "recovered"


_OWN_KINDS: dict[Source, dict[PostingKind, PostingKind]] = {
    Source.FEES: {
        PostingKind.PAYOUT_RESERVED: PostingKind.FEES_PAYOUT_RESERVED,
        PostingKind.PAYOUT_SETTLED: PostingKind.SHOP_PAYOUT_SETTLED,
        PostingKind.PAYOUT_FAILED: PostingKind.FEES_PAYOUT_FAILED,
        PostingKind.PAYOUT_RETURNED: PostingKind.FEES_PAYOUT_RETURNED,
    },
    Source.RECOVERED: {
        PostingKind.PAYOUT_RESERVED: PostingKind.RECOVERED_PAYOUT_RESERVED,
        PostingKind.PAYOUT_SETTLED: PostingKind.SHOP_PAYOUT_SETTLED,
        PostingKind.PAYOUT_FAILED: PostingKind.RECOVERED_PAYOUT_FAILED,
        PostingKind.PAYOUT_RETURNED: PostingKind.RECOVERED_PAYOUT_RETURNED,
    },
}


def own_kind(source: Source, kind: PostingKind) -> PostingKind:
    """Return what is posted where a seller's payout would post `kind`."""
    return kind if source is Source.SELLER else _OWN_KINDS[source][kind]


@dataclass(frozen=True, slots=True)
class OwnMoney:
    """
    What the books say that is a shop's own, and what speaks against paying it out; minor units.

    `recovered` counts what sellers still owe, and what was claimed for credits that the bank has taken back:
    that money is not here. `lost` is what left without a credit behind it.
    """

    fees_minor: int
    recovered_minor: int
    charged_back_minor: int
    owed_minor: int
    lost_minor: int

    def payable_minor(self, source: Source) -> int:
        """Return how much of it may leave, so that what is left at the bank covers everybody else in full."""
        own = {
            Source.FEES: self.fees_minor,
            Source.RECOVERED: self.recovered_minor - self.charged_back_minor,
        }
        left = self.fees_minor + self.recovered_minor - self.owed_minor - self.lost_minor
        return max(0, min(own[source], left))


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
# Of these the bank may have heard.
SENT_STATES = OPEN_STATES - {TransferState.READY}


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


def contradicts(state: TransferState, answer: TransferAnswer) -> bool:
    """
    Whether the bank takes back a last word of its own: nothing is booked on that, and people must ask it.

    What merely comes late does not: that it is pending, once it has ended, or settled, once it came back.
    """
    if state is TransferState.FAILED:
        return answer.word in {BankWord.SETTLED, BankWord.RETURNED}
    return state in {TransferState.SETTLED, TransferState.RETURNED} and answer.word is BankWord.REJECTED


# How long until the bank is asked again: soon at first, since most transfers settle at once.
_CHECK_DELAYS_MS = (1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000)


def check_delay_ms(tries: int) -> int:
    return _CHECK_DELAYS_MS[min(tries, len(_CHECK_DELAYS_MS) - 1)]
