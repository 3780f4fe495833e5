"""When money is held and when it is let go, as rules."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.escrow.decisions import (
    AwaitCredit,
    Funding,
    Hold,
    HoldState,
    LeaveAlone,
    Part,
    Payment,
    Release,
    Wait,
    decide_holds,
    decide_release,
    group_by_period,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOLD_ID = UUID(int=1)


def a_hold(**changes: Any) -> Hold:
    values: dict[str, Any] = {
        "hold_id": HOLD_ID,
        "shop_id": "acme",
        "order_id": "o-1",
        "seller_id": "s-1",
        "currency": "CNY",
        "state": HoldState.HELD,
        "remaining_minor": 10_000,
        "fee_bps": 250,
        "release_at": NOON,
        "funding": Funding.CONFIRMED,
        "funded": True,
    }
    return Hold(**(values | changes))


def a_payment(**changes: Any) -> Payment:
    values: dict[str, Any] = {
        "payment_id": UUID(int=7),
        "shop_id": "acme",
        "order_id": "o-1",
        "event_id": "e-1",
        "currency": "CNY",
        "protection_days": 3,
        "parts": (Part("s-1", 700), Part("s-2", 300)),
        "funded": False,
        "fee_bps": 250,
    }
    return Payment(**(values | changes))


def test_a_hold_stays_held_one_microsecond_before_it_is_due() -> None:
    """The protection period is a promise: early by any amount is early."""
    hold = a_hold(release_at=NOON)
    assert decide_release(hold, now=NOON - timedelta(microseconds=1)) == Wait(HOLD_ID, until=NOON)


@pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1), timedelta(days=400)])
def test_a_hold_is_released_from_its_moment_on(late: timedelta) -> None:
    hold = a_hold()
    assert decide_release(hold, now=NOON + late) == Release(hold, fee_minor=250)


@pytest.mark.parametrize("state", [HoldState.RELEASED, HoldState.FROZEN, HoldState.REFUNDED])
@pytest.mark.parametrize("offset", [timedelta(days=-1), timedelta(0), timedelta(days=1)])
def test_what_is_not_held_is_left_alone_at_any_time(state: HoldState, offset: timedelta) -> None:
    assert decide_release(a_hold(state=state), now=NOON + offset) == LeaveAlone(HOLD_ID)


@pytest.mark.parametrize(
    ("funding", "funded", "charged_back", "goes"),
    [
        (Funding.CONFIRMED, True, False, True),
        (Funding.CONFIRMED, False, False, False),
        (Funding.CONFIRMED, False, True, False),
        (Funding.ANNOUNCED, True, False, True),
        (Funding.ANNOUNCED, False, False, True),
        (Funding.ANNOUNCED, False, True, False),
    ],
)
def test_what_a_release_needs_of_the_bank(
    *, funding: Funding, funded: bool, charged_back: bool, goes: bool
) -> None:
    hold = a_hold(funding=funding, funded=funded, charged_back=charged_back)
    decision = decide_release(hold, now=NOON)
    assert isinstance(decision, Release if goes else AwaitCredit)


@given(st.integers(0, 10**15), st.integers(0, 10_000))
def test_what_the_seller_gets_and_the_fee_make_the_whole(remaining: int, bps: int) -> None:
    decision = decide_release(a_hold(remaining_minor=remaining, fee_bps=bps), now=NOON)
    assert isinstance(decision, Release)
    assert decision.seller_minor + decision.fee_minor == remaining
    assert decision.seller_minor >= 0


@pytest.mark.parametrize("days", [3, 4, 5, 6, 7])
def test_the_period_is_whole_days_of_the_stored_length(days: int) -> None:
    """Also over a change of summer time: 86,400 seconds, whatever a calendar says."""
    before_change = datetime(2026, 10, 24, 12, tzinfo=UTC)
    (holds,) = decide_holds([a_payment(protection_days=days)], now=before_change, day_seconds=86_400)
    assert len(holds) == 2
    for hold in holds:
        assert hold.held_at == before_change
        assert hold.release_at - hold.held_at == timedelta(seconds=days * 86_400)


def test_each_seller_gets_a_hold_and_the_holds_make_the_payment() -> None:
    (holds,) = decide_holds([a_payment()], now=NOON, day_seconds=86_400)
    assert [(hold.seller_id, hold.amount_minor) for hold in holds] == [("s-1", 700), ("s-2", 300)]
    assert len({hold.hold_id for hold in holds}) == 2


def test_deciding_again_later_names_the_same_holds() -> None:
    (first,) = decide_holds([a_payment()], now=NOON, day_seconds=86_400)
    (again,) = decide_holds([a_payment()], now=NOON + timedelta(hours=1), day_seconds=86_400)
    assert [hold.hold_id for hold in first] == [hold.hold_id for hold in again]


def test_payments_that_are_decided_together_get_what_each_would_get_alone() -> None:
    payments = [
        a_payment(protection_days=3),
        a_payment(payment_id=UUID(int=8), protection_days=7, parts=()),
        a_payment(payment_id=UUID(int=9), protection_days=7),
    ]
    together = decide_holds(payments, now=NOON, day_seconds=86_400)
    assert together == [decide_holds([one], now=NOON, day_seconds=86_400)[0] for one in payments]
    assert [len(holds) for holds in together] == [2, 0, 2]


def test_alarms_are_grouped_by_period() -> None:
    (three,) = decide_holds([a_payment(protection_days=3)], now=NOON, day_seconds=1)
    (seven,) = decide_holds([a_payment(payment_id=UUID(int=8), protection_days=7)], now=NOON, day_seconds=1)
    groups = group_by_period([*three, *seven])
    assert groups == {3: [hold.hold_id for hold in three], 7: [hold.hold_id for hold in seven]}
