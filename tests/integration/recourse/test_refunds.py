"""Refunds: what is still held can go back to the buyer, in parts, and never twice."""

import pytest
from recourse_support import (
    SELLER,
    disputed,
    due,
    held_order,
    hold_that_is,
    refund_state,
    refunded_of,
    released_now,
    state_of,
    the,
    types,
)
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import (
    bank_credited,
    credit_data,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from workers.escrow.recourse_handlers import NotHeldYet
from workers.payment import handlers as payment

TWO_SELLERS = {"a": 6_000, "b": 4_000}


@pytest.mark.parametrize("state", ["held", "frozen"])
def test_a_full_refund_empties_the_hold(desk: Desk, state: str) -> None:
    shop = desk.a_shop(fee_bps=500)
    order, _ = hold_that_is(desk, shop, state)
    refund_id = fresh("r")
    told = desk.buyers_ask(refund_requested(shop, order, {SELLER: 10_000}, refund_id=refund_id))
    assert types(told) == ["hold.refunded", "refund.accepted", "refund.settled"]
    assert (the(told, "hold.refunded").data["amount"], the(told, "hold.refunded").data["refund_id"]) == (
        10_000,
        refund_id,
    )
    assert state_of(desk, order) == "refunded"
    assert balance(desk.engine, shop, SELLER) == {"received": -10_000, "bank_cash": 10_000}


@pytest.mark.parametrize("state", ["held", "frozen"])
def test_a_partial_refund_leaves_the_hold_as_it_is_with_the_rest(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 3_000}))
    assert (state_of(desk, order), refunded_of(desk, order)) == (state, 3_000)
    assert balance(desk.engine, shop, SELLER)["held"] == 7_000


def test_what_was_not_refunded_is_released_at_its_time(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 3_000}))
    assert the(released_now(desk, shop, order), "hold.released").data["amount"] == 7_000


def test_several_refunds_add_up_to_the_whole_and_no_further(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    for amount in (3_333, 3_333):
        desk.buyers_ask(refund_requested(shop, order, {SELLER: amount}))
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: 3_335}))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "not_refundable")
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 3_334}))
    assert state_of(desk, order) == "refunded"


@pytest.mark.parametrize("state", ["held", "frozen"])
def test_a_refund_of_more_than_is_held_is_refused(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: 10_001}))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "not_refundable")
    assert (state_of(desk, order), refunded_of(desk, order)) == (state, 0)


@pytest.mark.parametrize("amount", [1, 10_000, 10_001])
@pytest.mark.parametrize("state", ["released", "refunded"])
def test_a_refund_of_money_that_is_no_longer_held_is_not_refundable(
    desk: Desk, state: str, amount: int
) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    before = balance(desk.engine, shop, SELLER)
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: amount}))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "not_refundable")
    assert balance(desk.engine, shop, SELLER) == before


def test_a_refund_of_several_sellers_is_all_or_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    [told] = desk.buyers_ask(refund_requested(shop, order, {"a": 6_000, "b": 4_001}))
    assert told.data["reason"] == "not_refundable"
    assert refunded_of(desk, order, "a") == 0
    told_ = desk.buyers_ask(refund_requested(shop, order, {"a": 6_000, "b": 1_000}))
    assert types(told_) == ["hold.refunded", "hold.refunded", "refund.accepted", "refund.settled"]
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["refunded", "held"]


def test_a_refund_that_names_an_unknown_seller_takes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: 1, "stranger": 1}))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "unknown_seller")
    assert refunded_of(desk, order) == 0


def test_a_refund_of_an_unknown_order_is_refused(desk: Desk) -> None:
    [told] = desk.buyers_ask(refund_requested(desk.a_shop(), {"order_id": "nobody's"}, {SELLER: 1}))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "unknown_order")


def test_a_suspended_shop_refunds_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: 1}, active=False))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "shop_suspended")
    assert refunded_of(desk, order) == 0


def test_a_refund_of_an_order_that_is_not_held_yet_is_tried_again(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    payment.receive_orders(desk.steps, [order_paid(shop, order)])
    event = refund_requested(shop, order, {SELLER: 10_000})
    with pytest.raises(NotHeldYet):
        desk.buyers_ask(event)
    desk.run()
    assert types(desk.buyers_ask(event)) == ["hold.refunded", "refund.accepted"]


def test_a_repeated_refund_gets_its_first_answer_and_moves_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id, event_id = fresh("r"), fresh("e")
    first = desk.buyers_ask(
        refund_requested(shop, order, {SELLER: 4_000}, refund_id=refund_id, event_id=event_id)
    )
    same_event = desk.buyers_ask(
        refund_requested(shop, order, {SELLER: 4_000}, refund_id=refund_id, event_id=event_id)
    )
    same_content = desk.buyers_ask(refund_requested(shop, order, {SELLER: 4_000}, refund_id=refund_id))
    assert same_event == same_content == [the(first, "refund.accepted")]
    assert refunded_of(desk, order) == 4_000


def test_a_refused_refund_stays_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    refund_id = fresh("r")
    first = desk.buyers_ask(refund_requested(shop, order, {SELLER: 1}, refund_id=refund_id))
    desk.shop_says(order_paid(shop, order))
    assert desk.buyers_ask(refund_requested(shop, order, {SELLER: 1}, refund_id=refund_id)) == first
    assert refunded_of(desk, order) == 0


def test_a_known_refund_id_with_other_content_is_a_conflict(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id = fresh("r")
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 1}, refund_id=refund_id))
    [told] = desk.buyers_ask(refund_requested(shop, order, {SELLER: 2}, refund_id=refund_id))
    assert (told.type, told.data["reason"]) == ("refund.rejected", "conflicting_duplicate")
    assert refunded_of(desk, order) == 1


def test_refunds_of_one_order_in_one_batch_see_each_other(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    told = desk.buyers_ask(
        *[refund_requested(shop, order, {SELLER: 4_000}) for _ in range(3)],
        refund_requested(shop, {"order_id": "nobody's"}, {SELLER: 1}),
    )
    assert types(told).count("refund.accepted") == types(told).count("refund.rejected") == 2
    assert refunded_of(desk, order) == 8_000


def test_a_refund_and_a_dispute_of_one_id_are_two_things(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    told = desk.buyers_ask(refund_requested(shop, order, {SELLER: 1}, refund_id=dispute_id))
    assert "refund.accepted" in types(told)


@pytest.mark.parametrize("funding", ["confirmed", "announced"])
def test_a_refund_of_an_unconfirmed_order_waits_for_the_credit(desk: Desk, funding: str) -> None:
    """Money that never came can't be sent back, whatever the shop's word is worth for releases."""
    shop = desk.a_shop(funding=funding)
    order = held_order(desk, shop, funded=False)
    refund_id = fresh("r")
    told = desk.buyers_ask(refund_requested(shop, order, {SELLER: 10_000}, refund_id=refund_id))
    assert types(told) == ["hold.refunded", "refund.accepted"]
    assert refund_state(desk, refund_id) == "waiting"
    assert balance(desk.engine, shop, SELLER) == {"received": -10_000, "refundable": 10_000}
    told = desk.bank_says(bank_credited(credit_data(order)))
    assert types(told) == ["order.funded", "refund.settled"]
    assert refund_state(desk, refund_id) == "settled"


@pytest.mark.parametrize("when", ["early", "due", "unfunded"])
@pytest.mark.parametrize("state", ["released", "refunded"])
def test_an_alarm_leaves_a_closed_hold_alone(desk: Desk, state: str, when: str) -> None:
    """A released hold's alarm is late or a second one: it was not released before its time."""
    shop = desk.a_shop(funding="announced")
    order, _ = hold_that_is(desk, shop, state, funded=when != "unfunded")
    if when != "early" and state == "refunded":
        due(desk, shop, order)
    before = balance(desk.engine, shop, SELLER)
    [hold] = desk.execute("SELECT hold_id FROM holds WHERE order_id = :order", order=order["order_id"])
    desk.release(hold.hold_id)
    assert desk.told == []
    assert state_of(desk, order) == state
    assert balance(desk.engine, shop, SELLER) == before


@pytest.mark.parametrize("state", ["held", "frozen", "released", "refunded"])
def test_holding_again_changes_nothing_in_any_state(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    before = balance(desk.engine, shop, SELLER)
    payment_id = desk.value("SELECT payment_id FROM payments WHERE order_id = :o", o=order["order_id"])
    desk.hold(payment_id)
    assert desk.told == []
    assert state_of(desk, order) == state
    assert balance(desk.engine, shop, SELLER) == before


@pytest.mark.parametrize("state", ["held", "frozen", "released", "refunded"])
def test_suspending_the_shop_leaves_what_it_has_asked_for(desk: Desk, state: str) -> None:
    """Its sellers and buyers keep what they were promised: a hold goes on, a decided one stays."""
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    desk.execute("UPDATE shops SET state = 'suspended' WHERE shop_id = :shop", shop=shop)
    assert state_of(desk, order) == state
    if state == "held":
        assert types(released_now(desk, shop, order)) == ["hold.released"]
    else:
        assert released_now(desk, shop, order) == []
        assert state_of(desk, order) == state
