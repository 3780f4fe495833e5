"""Disputes: a complaint freezes what is still held, and its resolution decides whose it is."""

import pytest
from recourse_support import (
    SELLER,
    dispute_state,
    disputed,
    due,
    held_order,
    hold_that_is,
    refund_state,
    refunded_of,
    released_now,
    resolved,
    state_of,
    the,
    types,
)
from workflow_support.books import balance
from workflow_support.desk import DAY_SECONDS, Desk
from workflow_support.events import (
    bank_credited,
    credit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from workers.escrow.recourse_handlers import NotHeldYet
from workers.payment import handlers as payment
from workers.relay.sweep import report_what_waits_for_people

TWO_SELLERS = {"a": 6_000, "b": 4_000}


def test_a_dispute_freezes_every_open_hold_of_its_order(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    told = desk.buyers_ask(dispute_opened(shop, order, dispute_id=fresh("d")))
    assert types(told) == ["dispute.accepted", "hold.frozen", "hold.frozen"]
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["frozen", "frozen"]
    assert {event.data["amount"] for event in told if event.type == "hold.frozen"} == {6_000, 4_000}


def test_a_dispute_freezes_only_the_sellers_that_it_names(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    disputed(desk, shop, order, seller_ids=["b"])
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["held", "frozen"]
    released_now(desk, shop, order)
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["released", "frozen"]


def test_a_dispute_freezes_what_is_left_when_another_seller_was_released(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    disputed(desk, shop, order, seller_ids=["b"])
    released_now(desk, shop, order)
    told = desk.buyers_ask(dispute_opened(shop, order, dispute_id=fresh("d")))
    assert the(told, "hold.frozen").data["seller_id"] == "b"
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["released", "frozen"]


def test_a_dispute_of_an_unconfirmed_order_freezes_it_too(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    disputed(desk, shop, order)
    assert state_of(desk, order) == "frozen"


def test_a_dispute_of_an_unknown_order_is_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    [told] = desk.buyers_ask(dispute_opened(shop, {"order_id": "nobody's"}, dispute_id=fresh("d")))
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "unknown_order")


def test_an_order_of_another_shop_is_unknown(desk: Desk) -> None:
    order = held_order(desk, desk.a_shop())
    [told] = desk.buyers_ask(dispute_opened(desk.a_shop(), order, dispute_id=fresh("d")))
    assert told.data["reason"] == "unknown_order"
    assert state_of(desk, order) == "held"


def test_a_dispute_that_names_an_unknown_seller_freezes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    [told] = desk.buyers_ask(
        dispute_opened(shop, order, dispute_id=fresh("d"), seller_ids=[SELLER, "stranger"])
    )
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "unknown_seller")
    assert state_of(desk, order) == "held"


@pytest.mark.parametrize("state", ["released", "refunded"])
def test_a_dispute_of_money_that_is_no_longer_held_is_not_refundable(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    [told] = desk.buyers_ask(dispute_opened(shop, order, dispute_id=fresh("d")))
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "not_refundable")
    assert state_of(desk, order) == state


def test_a_repeated_dispute_gets_its_first_answer_under_its_first_id(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id, event_id = fresh("d"), fresh("e")
    first = desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id, event_id=event_id))
    same_event = desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id, event_id=event_id))
    same_content = desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id))
    assert same_event == same_content == [the(first, "dispute.accepted")]


def test_a_refused_dispute_stays_refused(desk: Desk) -> None:
    """A refusal on business grounds is final for its key, also when it would succeed by now."""
    shop = desk.a_shop()
    order = order_data()
    dispute_id = fresh("d")
    first = desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id))
    desk.shop_says(order_paid(shop, order))
    assert desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id)) == first
    assert state_of(desk, order) == "held"


def test_a_known_dispute_id_with_other_content_is_a_conflict(desk: Desk) -> None:
    shop = desk.a_shop()
    order, other = held_order(desk, shop), held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    [told] = desk.buyers_ask(dispute_opened(shop, other, dispute_id=dispute_id, event_id="again"))
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "conflicting_duplicate")
    assert told.data["event_id"] == "again"
    assert state_of(desk, other) == "held"


def test_a_suspended_shop_opens_no_dispute(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    [told] = desk.buyers_ask(dispute_opened(shop, order, dispute_id=fresh("d"), active=False))
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "shop_suspended")
    assert state_of(desk, order) == "held"


def test_a_dispute_of_an_order_that_is_not_held_yet_is_tried_again(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    payment.receive_orders(desk.steps, [order_paid(shop, order)])
    event = dispute_opened(shop, order, dispute_id=fresh("d"))
    with pytest.raises(NotHeldYet):
        desk.buyers_ask(event)
    desk.run()
    assert "dispute.accepted" in types(desk.buyers_ask(event))
    assert state_of(desk, order) == "frozen"


@pytest.mark.parametrize("when", ["early", "due", "unfunded", "charged back"])
def test_the_alarm_leaves_a_frozen_hold_alone(desk: Desk, when: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "frozen", funded=when != "unfunded")
    if when == "charged back":
        desk.bank_says(bank_credited(credit_data(order)))
    if when != "early":
        due(desk, shop, order)
    assert desk.ring_alarms("release_hold") == []
    assert state_of(desk, order) == "frozen"
    assert [row for row in desk.delayed if row.command == "release_hold"] == []


def test_a_dispute_won_by_the_seller_before_its_time_releases_at_its_time(desk: Desk) -> None:
    shop = desk.a_shop(protection_days=3)
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    desk.ring_alarms()
    told = resolved(desk, shop, dispute_id)
    assert types(told) == ["dispute.accepted", "hold.unfrozen"]
    assert the(told, "hold.unfrozen").data["amount"] == 10_000
    [alarm] = [row for row in desk.delayed if row.command == "release_hold"]
    assert 3 * DAY_SECONDS * 1000 - 60_000 < alarm.delay_ms <= 3 * DAY_SECONDS * 1000
    assert desk.ring_alarms("release_hold") == []
    assert state_of(desk, order) == "held"
    assert types(released_now(desk, shop, order)) == ["hold.released"]


def test_a_dispute_won_by_the_seller_after_its_time_releases_now(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    released_now(desk, shop, order)
    assert types(resolved(desk, shop, dispute_id)) == ["dispute.accepted", "hold.released", "hold.unfrozen"]
    assert balance(desk.engine, shop, SELLER)["available"] == 10_000


def test_a_freed_hold_still_waits_for_the_credit(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    dispute_id = disputed(desk, shop, order)
    due(desk, shop, order)
    assert types(resolved(desk, shop, dispute_id)) == ["dispute.accepted", "hold.unfrozen"]
    assert state_of(desk, order) == "held"
    assert types(desk.bank_says(bank_credited(credit_data(order)))) == ["hold.released", "order.funded"]


def test_a_credit_leaves_a_frozen_hold_frozen(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    disputed(desk, shop, order)
    due(desk, shop, order)
    assert types(desk.bank_says(bank_credited(credit_data(order)))) == ["order.funded"]
    assert state_of(desk, order) == "frozen"


def test_a_dispute_won_by_the_buyer_gives_all_of_it_back(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=500)
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    told = resolved(desk, shop, dispute_id, {SELLER: 10_000})
    assert types(told) == ["dispute.accepted", "hold.refunded", "refund.settled"]
    assert the(told, "hold.refunded").data["dispute_id"] == dispute_id
    assert state_of(desk, order) == "refunded"
    assert refund_state(desk, dispute_id) == "settled"
    # The buyer got it from where it had come to: no fee, nothing left, and nothing for the seller.
    assert balance(desk.engine, shop, SELLER) == {"received": -10_000, "bank_cash": 10_000}


def test_a_dispute_decided_in_parts_gives_back_a_part_and_releases_the_rest(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    released_now(desk, shop, order)
    told = resolved(desk, shop, dispute_id, {SELLER: 3_000})
    assert types(told) == [
        "dispute.accepted",
        "hold.refunded",
        "hold.released",
        "hold.unfrozen",
        "refund.settled",
    ]
    assert the(told, "hold.refunded").data["amount"] == 3_000
    assert the(told, "hold.released").data["amount"] == the(told, "hold.unfrozen").data["amount"] == 7_000


def test_a_resolution_decides_each_seller_for_itself(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    dispute_id = disputed(desk, shop, order)
    resolved(desk, shop, dispute_id, {"a": 6_000})
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["refunded", "held"]


@pytest.mark.parametrize(
    ("refunds", "reason"),
    [
        ({SELLER: 10_001}, "not_refundable"),
        ({"stranger": 1}, "unknown_seller"),
        ({SELLER: 1, "stranger": 1}, "unknown_seller"),
    ],
)
def test_a_refused_resolution_leaves_its_dispute_open(
    desk: Desk, refunds: dict[str, int], reason: str
) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    event = dispute_resolved(shop, dispute_id, refunds)
    [told] = desk.buyers_ask(event)
    assert (told.type, told.data["reason"]) == ("dispute.rejected", reason)
    assert (dispute_state(desk, dispute_id), state_of(desk, order)) == ("open", "frozen")
    assert refunded_of(desk, order) == 0
    assert desk.buyers_ask(event) == [told]
    assert types(resolved(desk, shop, dispute_id)) == ["dispute.accepted", "hold.unfrozen"]


def test_a_resolution_reaches_only_the_sellers_of_its_dispute(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    dispute_id = disputed(desk, shop, order, seller_ids=["b"])
    [told] = resolved(desk, shop, dispute_id, {"a": 1})
    assert told.data["reason"] == "unknown_seller"
    assert refunded_of(desk, order, "a") == 0


def test_a_resolution_takes_nothing_from_a_released_hold(desk: Desk) -> None:
    """The dispute froze the other seller's part only; what was released stays with its seller."""
    shop = desk.a_shop()
    order = held_order(desk, shop, splits=TWO_SELLERS)
    first = disputed(desk, shop, order, seller_ids=["b"])
    released_now(desk, shop, order)
    second = disputed(desk, shop, order)
    for refunds in ({"a": 1}, {"a": 6_000}):
        [told] = resolved(desk, shop, second, refunds)
        assert told.data["reason"] == "unknown_seller"
    resolved(desk, shop, second)
    assert [state_of(desk, order, seller) for seller in TWO_SELLERS] == ["released", "frozen"]
    resolved(desk, shop, first)
    assert state_of(desk, order, "b") == "released"


def test_a_resolution_of_an_unknown_dispute_is_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    for refunds in ({}, {SELLER: 1}, {SELLER: 10_000}):
        [told] = resolved(desk, shop, fresh("d"), refunds)
        assert (told.type, told.data["reason"]) == ("dispute.rejected", "unknown_order")
    assert (state_of(desk, order), refunded_of(desk, order)) == ("held", 0)


def test_a_resolution_that_came_before_its_dispute_can_be_sent_again(desk: Desk) -> None:
    """No order among messages is promised, so an early resolution must not spoil the dispute's id."""
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = fresh("d")
    resolved(desk, shop, dispute_id)
    desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id))
    assert types(resolved(desk, shop, dispute_id)) == ["dispute.accepted", "hold.unfrozen"]


def test_a_repeated_resolution_gets_its_first_answer_and_moves_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    event = dispute_resolved(shop, dispute_id, {SELLER: 4_000})
    first = the(desk.buyers_ask(event), "dispute.accepted")
    assert desk.buyers_ask(event) == [first]
    assert resolved(desk, shop, dispute_id, {SELLER: 4_000}) == [first]
    assert refunded_of(desk, order) == 4_000


def test_a_second_resolution_with_other_content_is_a_conflict(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    resolved(desk, shop, dispute_id)
    [told] = resolved(desk, shop, dispute_id, {SELLER: 10_000})
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "conflicting_duplicate")
    assert (state_of(desk, order), refunded_of(desk, order)) == ("held", 0)


def test_a_dispute_that_was_refused_cannot_be_resolved(desk: Desk) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "released")
    dispute_id = fresh("d")
    desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id))
    [told] = resolved(desk, shop, dispute_id, {SELLER: 1})
    assert (told.type, told.data["reason"]) == ("dispute.rejected", "already_resolved")


def test_a_suspended_shop_resolves_nothing_until_it_is_active_again(desk: Desk) -> None:
    """Whoever may have its keys must not be able to send money, to the buyer or to the seller."""
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    for refunds in ({}, {SELLER: 10_000}):
        [told] = desk.buyers_ask(dispute_resolved(shop, dispute_id, refunds, active=False))
        assert (told.type, told.data["reason"]) == ("dispute.rejected", "shop_suspended")
    assert (dispute_state(desk, dispute_id), state_of(desk, order)) == ("open", "frozen")
    assert "dispute.accepted" in types(resolved(desk, shop, dispute_id))


def test_a_hold_with_two_disputes_stays_frozen_until_both_have_ended(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    first, second = disputed(desk, shop, order), disputed(desk, shop, order)
    due(desk, shop, order)
    assert types(resolved(desk, shop, first)) == ["dispute.accepted"]
    assert state_of(desk, order) == "frozen"
    assert types(resolved(desk, shop, second)) == ["dispute.accepted", "hold.released", "hold.unfrozen"]


def test_two_disputes_share_what_is_held(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    first, second = disputed(desk, shop, order), disputed(desk, shop, order)
    resolved(desk, shop, first, {SELLER: 7_000})
    [told] = resolved(desk, shop, second, {SELLER: 3_001})
    assert told.data["reason"] == "not_refundable"
    assert dispute_state(desk, second) == "open"
    resolved(desk, shop, second, {SELLER: 3_000})
    assert state_of(desk, order) == "refunded"


@pytest.mark.parametrize(
    ("refunds", "answer"),
    [({}, "dispute.accepted"), ({SELLER: 1}, "dispute.rejected"), ({SELLER: 10_000}, "dispute.rejected")],
)
def test_a_dispute_about_a_hold_that_was_refunded_meanwhile_has_nothing_left_to_give(
    desk: Desk, refunds: dict[str, int], answer: str
) -> None:
    shop = desk.a_shop()
    order, dispute_id = hold_that_is(desk, shop, "refunded")
    assert types(resolved(desk, shop, dispute_id, refunds)) == [answer]
    assert (state_of(desk, order), refunded_of(desk, order)) == ("refunded", 10_000)


def test_a_whole_quarrel_in_one_batch_is_handled_in_its_order(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = fresh("d")
    told = desk.buyers_ask(
        dispute_opened(shop, order, dispute_id=dispute_id),
        refund_requested(shop, order, {SELLER: 1_000}),
        dispute_resolved(shop, dispute_id, {SELLER: 2_000}),
        dispute_resolved(shop, dispute_id, {SELLER: 9_000}),
    )
    assert [event.data["reason"] for event in told if event.type == "dispute.rejected"] == [
        "conflicting_duplicate"
    ]
    assert (state_of(desk, order), refunded_of(desk, order)) == ("held", 3_000)


def test_a_bad_dispute_never_harms_its_neighbours(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    told = desk.buyers_ask(
        dispute_opened(shop, {"order_id": "nobody's"}, dispute_id=fresh("d")),
        dispute_opened(shop, order, dispute_id=fresh("d")),
        dispute_resolved(shop, fresh("d")),
    )
    assert types(told) == ["dispute.accepted", "dispute.rejected", "dispute.rejected", "hold.frozen"]


def test_data_that_breaks_the_schema_is_refused_by_name(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    [told] = desk.buyers_ask(dispute_opened(shop, order, dispute_id="d-odd", reason=""))
    assert (told.type, told.data["reason"], told.data["dispute_id"]) == (
        "dispute.rejected",
        "invalid_data",
        "d-odd",
    )


def test_a_dispute_that_nobody_resolves_raises_the_alarm_and_stays_open(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    before = report_what_waits_for_people(desk.steps, dispute_alarm_seconds=30 * DAY_SECONDS)
    desk.execute(
        "UPDATE disputes SET opened_at = opened_at - interval '31 days' WHERE dispute_id = :id",
        id=dispute_id,
    )
    assert report_what_waits_for_people(desk.steps, dispute_alarm_seconds=30 * DAY_SECONDS) == before + 1
    assert (dispute_state(desk, dispute_id), state_of(desk, order)) == ("open", "frozen")
