"""Passwords, withdrawals and the bank's word, as full tables."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from ledger.postings import ACCOUNTS_OF, PostingKind
from schemas.reasons import Reason
from workers.payout.decisions import (
    OPEN_STATES,
    Count,
    Limit,
    Limits,
    OwnMoney,
    Pend,
    Proceed,
    Proposal,
    Refused,
    Reserve,
    ReviewStep,
    Source,
    TransferState,
    Usage,
    Verdict,
    WaitForPeople,
    WaitUntil,
    check_delay_ms,
    contradicts,
    cooling_off_until,
    decide_count,
    decide_request,
    decide_resumption,
    decide_review,
    decide_transfer,
    decide_withdrawal,
    find_exceeded,
)
from workers.payout.transfers import BankWord, TransferAnswer

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def reason_of(decision: object) -> Reason | None:
    return decision.reason if isinstance(decision, Refused) else None


# The order of refusals in the contract: shop_suspended, unknown_…, locked, and then all others.
_REFUSALS = (
    Reason.SHOP_SUSPENDED,
    Reason.UNKNOWN_SELLER,
    Reason.UNKNOWN_DESTINATION,
    Reason.LOCKED,
    Reason.INVALID_DATA,
)


@pytest.mark.parametrize("wrong", list(itertools.product([False, True], repeat=5)))
def test_of_several_refusals_the_first_in_the_contracts_order_is_told(wrong: tuple[bool, ...]) -> None:
    suspended, no_seller, no_destination, locked, bad_seal = wrong
    decision = decide_request(
        shop_active=not suspended,
        seller_known=not no_seller,
        destination_known=not no_destination,
        locked=locked,
        sealed_problem="sealed.amount: differs" if bad_seal else None,
    )
    expected = next((reason for reason, is_wrong in zip(_REFUSALS, wrong, strict=True) if is_wrong), None)
    if expected is Reason.UNKNOWN_SELLER and not bad_seal:
        expected = None  # told after the same work as a wrong password
    assert reason_of(decision) is expected
    assert isinstance(decision, Proceed) == (expected is None)


def count(failures: int, *, until: datetime | None = None, for_good: bool = False) -> Count | Refused:
    return decide_count(failed_attempts=failures, locked_until=until, locked_by_failures=for_good, now=NOON)


_LOCK_AT = {5: NOON + timedelta(minutes=15), 10: NOON + timedelta(hours=24)}


@pytest.mark.parametrize("failures", range(20))
def test_each_attempt_counts_and_the_fifth_tenth_and_fifteenth_lock(failures: int) -> None:
    made = failures + 1
    assert count(failures) == Count(made, _LOCK_AT.get(made), locked_for_good=made >= 15)


def test_no_guess_is_taken_while_locked_to_the_last_microsecond() -> None:
    assert reason_of(count(5, until=NOON + MICROSECOND)) is Reason.LOCKED
    assert isinstance(count(5, until=NOON), Count)
    assert reason_of(count(15, until=NOON, for_good=True)) is Reason.LOCKED


def test_a_lock_that_is_over_is_not_renewed_by_the_next_attempt() -> None:
    over = NOON - timedelta(hours=1)
    assert count(5, until=over) == Count(6, over, locked_for_good=False)


@pytest.mark.parametrize(
    ("password_ok", "amount", "available", "reason"),
    [
        (True, 1, 1, None),
        (True, 1, 2, None),
        (True, 2, 1, Reason.INSUFFICIENT_FUNDS),
        (True, 1, 0, Reason.INSUFFICIENT_FUNDS),
        (True, 10**15, 10**30, None),
        (False, 1, 1, Reason.WRONG_PASSWORD),
        # Whoever guesses learns nothing about the balance.
        (False, 2, 1, Reason.WRONG_PASSWORD),
    ],
)
def test_who_may_withdraw(*, password_ok: bool, amount: int, available: int, reason: Reason | None) -> None:
    decision = decide_withdrawal(
        password_ok=password_ok,
        amount_minor=amount,
        available_minor=available,
        over_limit=None,
        cooling_until=None,
        now=NOON,
    )
    assert reason_of(decision) is reason
    assert isinstance(decision, Reserve) == (reason is None)
    # What would have to wait is told the same refusal.
    waiting = decide_withdrawal(
        password_ok=password_ok,
        amount_minor=amount,
        available_minor=available,
        over_limit=Limit.PER_DAY,
        cooling_until=NOON + MICROSECOND,
        now=NOON,
    )
    assert reason_of(waiting) is reason
    assert isinstance(waiting, Pend) == (reason is None)


def test_a_withdrawal_waits_until_the_last_microsecond_of_its_cooling_off() -> None:
    def at(now: datetime) -> object:
        return decide_withdrawal(
            password_ok=True,
            amount_minor=1,
            available_minor=1,
            over_limit=None,
            cooling_until=NOON,
            now=now,
        )

    assert at(NOON - MICROSECOND) == Pend(None, NOON)
    assert at(NOON) == Reserve()
    resumed = decide_resumption(
        reason=Reason.COOLING_OFF, until=NOON, in_review=False, now=NOON - MICROSECOND
    )
    assert resumed == WaitUntil(NOON)
    assert decide_resumption(reason=Reason.COOLING_OFF, until=NOON, in_review=False, now=NOON) == Reserve()


def test_what_people_have_to_decide_never_goes_on_by_itself() -> None:
    for reason, until, in_review in (
        (Reason.OVER_LIMIT, None, False),
        (Reason.OVER_LIMIT, NOON, False),
        (Reason.COOLING_OFF, NOON, True),
    ):
        decision = decide_resumption(
            reason=reason, until=until, in_review=in_review, now=NOON + timedelta(days=9)
        )
        assert decision == WaitForPeople()


def test_only_a_change_after_the_first_enrolment_cools_off_and_the_last_one_counts() -> None:
    day, hour = timedelta(days=1), timedelta(hours=1)

    def until(password: timedelta, destination: timedelta) -> datetime | None:
        return cooling_off_until(
            enrolled_at=NOON,
            password_changed_at=NOON + password,
            destination_added_at=NOON + destination,
            cooling_off=day,
        )

    none = timedelta(0)
    assert until(none, none) is None
    assert until(hour, none) == until(none, hour) == NOON + hour + day
    assert until(hour, 2 * hour) == until(2 * hour, hour) == NOON + 2 * hour + day


@pytest.mark.parametrize(
    ("limits", "usage", "amount", "over"),
    [
        (Limits(), Usage(10**30, 10**6), 10**15, None),
        (Limits(per_withdrawal_minor=100), Usage(), 100, None),
        (Limits(per_withdrawal_minor=100), Usage(), 101, Limit.PER_WITHDRAWAL),
        (Limits(per_day_minor=100), Usage(day_minor=60), 40, None),
        (Limits(per_day_minor=100), Usage(day_minor=60), 41, Limit.PER_DAY),
        (Limits(per_hour_count=2), Usage(hour_count=1), 1, None),
        (Limits(per_hour_count=2), Usage(hour_count=2), 1, Limit.PER_HOUR),
        (Limits(0, 0, 0), Usage(), 1, Limit.PER_WITHDRAWAL),
    ],
)
def test_a_limit_is_what_may_go_and_not_one_unit_more(
    limits: Limits, usage: Usage, amount: int, over: Limit | None
) -> None:
    assert find_exceeded(limits, usage, amount) is over


@pytest.mark.parametrize(
    ("before", "verdict", "by", "step"),
    [
        (None, Verdict.APPROVE, "ada", ReviewStep.PROPOSED),
        (Proposal(Verdict.APPROVE, "ada"), Verdict.APPROVE, "bob", ReviewStep.DECIDED),
        (Proposal(Verdict.REJECT, "ada"), Verdict.REJECT, "bob", ReviewStep.DECIDED),
        (Proposal(Verdict.APPROVE, "ada"), Verdict.APPROVE, " ADA ", ReviewStep.SAID_ALREADY),
        # Whoever disagrees starts anew: no verdict is ever reached on one name's word.
        (Proposal(Verdict.APPROVE, "ada"), Verdict.REJECT, "bob", ReviewStep.PROPOSED),
        (Proposal(Verdict.REJECT, "ada"), Verdict.APPROVE, "ada", ReviewStep.PROPOSED),
    ],
)
def test_two_different_names_decide(
    before: Proposal | None, verdict: Verdict, by: str, step: ReviewStep
) -> None:
    assert decide_review(before, verdict=verdict, by=by) is step


_S, _W, _P = TransferState, BankWord, PostingKind
_SUBMITTED, _SETTLED = "payout.submitted", "payout.settled"
_FAILED, _RETURNED = "payout.failed", "payout.returned"
# What the bank's word makes of a transfer; what is not here changes nothing.
_CHANGES = {
    **{
        (state, word): change
        for state in (_S.READY, _S.SENDING, _S.UNKNOWN)
        for word, change in {
            _W.PENDING: (_S.SUBMITTED, (), (_SUBMITTED,)),
            _W.SETTLED: (_S.SETTLED, (_P.PAYOUT_SETTLED,), (_SUBMITTED, _SETTLED)),
        }.items()
    },
    (_S.SUBMITTED, _W.SETTLED): (_S.SETTLED, (_P.PAYOUT_SETTLED,), (_SETTLED,)),
    **{(state, _W.REJECTED): (_S.FAILED, (_P.PAYOUT_FAILED,), (_FAILED,)) for state in OPEN_STATES},
    **{
        (state, _W.RETURNED): (
            _S.RETURNED,
            (_P.PAYOUT_SETTLED, _P.PAYOUT_RETURNED),
            (_SUBMITTED, _SETTLED, _RETURNED),
        )
        for state in OPEN_STATES
    },
    (_S.SENDING, _W.UNKNOWN): (_S.UNKNOWN, (), ()),
    (_S.SENDING, _W.NEVER_SEEN): (_S.UNKNOWN, (), ()),
    (_S.SETTLED, _W.RETURNED): (_S.RETURNED, (_P.PAYOUT_RETURNED,), (_RETURNED,)),
}


@pytest.mark.parametrize("word", BankWord)
@pytest.mark.parametrize("state", TransferState)
def test_every_word_of_the_bank_in_every_state(state: TransferState, word: BankWord) -> None:
    change = decide_transfer(state, TransferAnswer(word))
    expected = _CHANGES.get((state, word))
    assert (change and (change.state, change.postings, change.events)) == expected


@pytest.mark.parametrize("word", BankWord)
@pytest.mark.parametrize("state", TransferState)
def test_only_another_last_word_contradicts_the_first(state: TransferState, word: BankWord) -> None:
    """Words that come late do not: asked before, and answered when it had gone on."""
    assert contradicts(state, TransferAnswer(word)) == (
        (state, word)
        in {
            (_S.FAILED, _W.SETTLED),
            (_S.FAILED, _W.RETURNED),
            (_S.SETTLED, _W.REJECTED),
            (_S.RETURNED, _W.REJECTED),
        }
    )


@pytest.mark.parametrize("word", [BankWord.UNKNOWN, BankWord.NEVER_SEEN, BankWord.PENDING])
@pytest.mark.parametrize("state", TransferState)
def test_silence_moves_no_money(state: TransferState, word: BankWord) -> None:
    change = decide_transfer(state, TransferAnswer(word))
    assert change is None or change.postings == ()


@pytest.mark.parametrize("words", list(itertools.product(BankWord, repeat=3)))
def test_whatever_the_bank_says_in_a_row_the_money_ends_in_one_place(words: tuple[BankWord, ...]) -> None:
    state, accounts = TransferState.SENDING, {"in_payout": 1, "available": 0, "bank_cash": 0}
    for word in words:
        change = decide_transfer(state, TransferAnswer(word))
        if change is None:
            continue
        state = change.state
        for kind in change.postings:
            debit, credit = ACCOUNTS_OF[kind]
            accounts[debit] -= 1
            accounts[credit] += 1
    where = {
        TransferState.SETTLED: "bank_cash",
        TransferState.FAILED: "available",
        TransferState.RETURNED: "available",
    }.get(state, "in_payout")
    assert accounts == {"in_payout": 0, "available": 0, "bank_cash": 0} | {where: 1}


def test_the_bank_is_asked_soon_at_first_and_never_less_than_hourly() -> None:
    delays = [check_delay_ms(tries) for tries in range(1_000)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (1_000, 3_600_000)


@pytest.mark.parametrize(
    ("own", "fees", "recovered"),
    [
        (OwnMoney(100, 50, 0, 0, 0), 100, 50),
        (OwnMoney(100, 50, 50, 0, 50), 100, 0),  # the bank has taken back what was recovered
        (OwnMoney(100, 50, 0, 30, 0), 100, 50),  # 120 are there; which of both is the shop's choice
        (OwnMoney(100, 50, 0, 70, 0), 80, 50),
        (OwnMoney(-10, 50, 0, 0, 0), 0, 40),  # a fee that was paid out had to be given back
        (OwnMoney(100, 0, 0, 0, 130), 0, 0),  # released without a credit: others' money stands in for it
    ],
)
def test_a_shop_gets_no_more_than_leaves_everybody_else_covered(
    own: OwnMoney, fees: int, recovered: int
) -> None:
    assert (own.payable_minor(Source.FEES), own.payable_minor(Source.RECOVERED)) == (fees, recovered)
