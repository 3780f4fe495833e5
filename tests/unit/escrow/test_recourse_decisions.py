"""What disputes and refunds may do to a hold: tables of every state, without a database."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reasons import Reason
from workers.escrow.decisions import HoldState
from workers.escrow.recourse_decisions import (
    Freeze,
    GiveBack,
    ProtectedHold,
    RefundOf,
    Refused,
    decide_dispute,
    decide_refund,
    freeze,
    give_back,
    unfreeze,
)

OPEN = {HoldState.HELD, HoldState.FROZEN}


def a_hold(
    state: HoldState = HoldState.HELD,
    *,
    seller: str = "s-1",
    amount: int = 100,
    refunded: int = 0,
    disputes: frozenset[UUID] = frozenset(),
) -> ProtectedHold:
    return ProtectedHold(uuid4(), seller, "CNY", state, amount, refunded, disputes)


@pytest.mark.parametrize("state", HoldState)
def test_a_dispute_freezes_open_holds_only(state: HoldState) -> None:
    hold = a_hold(state, refunded=100 if state is HoldState.REFUNDED else 0)
    decision = decide_dispute([hold], None)
    if state in OPEN:
        assert decision == Freeze((hold,))
    else:
        assert isinstance(decision, Refused)
        assert decision.reason is Reason.NOT_REFUNDABLE


def test_a_dispute_of_some_sellers_leaves_the_others_alone() -> None:
    first, second = a_hold(seller="a"), a_hold(seller="b")
    assert decide_dispute([first, second], ["b"]) == Freeze((second,))


def test_a_dispute_takes_the_open_holds_among_closed_ones() -> None:
    closed, open_ = a_hold(HoldState.RELEASED, seller="a"), a_hold(seller="b")
    assert decide_dispute([closed, open_], None) == Freeze((open_,))
    assert decide_dispute([closed, open_], ["a", "b"]) == Freeze((open_,))
    assert isinstance(decide_dispute([closed, open_], ["a"]), Refused)


def test_an_unknown_seller_spoils_the_whole_dispute() -> None:
    decision = decide_dispute([a_hold(HoldState.RELEASED)], ["s-1", "stranger"])
    assert isinstance(decision, Refused)
    assert decision.reason is Reason.UNKNOWN_SELLER


@pytest.mark.parametrize(
    ("state", "refunded", "asked", "fits"),
    [
        (HoldState.HELD, 0, 1, True),
        (HoldState.HELD, 0, 100, True),
        (HoldState.HELD, 0, 101, False),
        (HoldState.HELD, 40, 60, True),
        (HoldState.HELD, 40, 61, False),
        (HoldState.FROZEN, 0, 100, True),
        (HoldState.FROZEN, 99, 2, False),
        (HoldState.RELEASED, 0, 1, False),
        (HoldState.RELEASED, 40, 1, False),
        (HoldState.REFUNDED, 100, 1, False),
    ],
)
def test_a_refund_takes_up_to_what_is_still_held(
    state: HoldState, refunded: int, asked: int, *, fits: bool
) -> None:
    hold = a_hold(state, refunded=refunded)
    decision = decide_refund([hold], {"s-1": asked})
    if fits:
        assert decision == GiveBack((RefundOf(hold, asked),))
    else:
        assert isinstance(decision, Refused)
        assert decision.reason is Reason.NOT_REFUNDABLE


def test_a_refund_is_all_or_nothing() -> None:
    holds = [a_hold(seller="a"), a_hold(seller="b")]
    assert isinstance(decide_refund(holds, {"a": 100, "b": 101}), Refused)
    fits = decide_refund(holds, {"a": 100, "b": 1})
    assert isinstance(fits, GiveBack)
    assert fits.total_minor == 101


def test_an_unknown_seller_comes_before_what_is_not_refundable() -> None:
    decision = decide_refund([a_hold(HoldState.RELEASED)], {"s-1": 1, "stranger": 1})
    assert isinstance(decision, Refused)
    assert decision.reason is Reason.UNKNOWN_SELLER


def test_giving_nothing_back_is_no_refusal() -> None:
    assert decide_refund([a_hold(HoldState.REFUNDED, refunded=100)], {}) == GiveBack(())


@pytest.mark.parametrize("state", sorted(OPEN))
def test_a_hold_that_a_refund_empties_is_refunded(state: HoldState) -> None:
    hold = a_hold(state, refunded=40)
    assert give_back(RefundOf(hold, 60)).state is HoldState.REFUNDED
    rest = give_back(RefundOf(hold, 59))
    assert (rest.state, rest.remaining_minor) == (state, 1)


def test_a_hold_thaws_with_its_last_dispute() -> None:
    first, second = uuid4(), uuid4()
    hold = freeze(freeze(a_hold(), first), second)
    assert (hold.state, hold.disputes) == (HoldState.FROZEN, {first, second})
    hold = unfreeze(hold, first)
    assert hold.state is HoldState.FROZEN
    assert unfreeze(hold, second).state is HoldState.HELD


def test_a_refunded_hold_never_thaws() -> None:
    dispute = uuid4()
    emptied = give_back(RefundOf(freeze(a_hold(), dispute), 100))
    assert unfreeze(emptied, dispute).state is HoldState.REFUNDED


@given(st.lists(st.integers(1, 60), max_size=12))
def test_whatever_is_asked_no_cent_goes_back_twice(asked: list[int]) -> None:
    hold = a_hold()
    given_back = 0
    for amount in asked:
        decision = decide_refund([hold], {"s-1": amount})
        if isinstance(decision, GiveBack):
            [part] = decision.parts
            hold = give_back(part)
            given_back += amount
        assert hold.refunded_minor == given_back <= hold.amount_minor
        assert (hold.state is HoldState.REFUNDED) == (given_back == hold.amount_minor)
