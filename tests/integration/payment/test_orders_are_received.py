"""`order.paid`: booked once, answered always."""

import json

import pytest
from workflow_support.books import balance
from workflow_support.desk import Desk, Told
from workflow_support.events import fresh, order_data, order_paid
from workflow_support.races import side_by_side


def refusal(told: Told) -> tuple[str, str]:
    assert told.type == "order.rejected"
    return told.data["reason"], told.data["event_id"]


def payments_of(desk: Desk, shop: str) -> int:
    return desk.value("SELECT count(*) FROM payments WHERE shop_id = :shop", shop=shop)


def test_an_order_is_held_for_each_of_its_sellers(desk: Desk) -> None:
    shop = desk.a_shop(protection_days=5)
    order = order_data(splits={"s-1": 7_000, "s-2": 3_000})
    event = order_paid(shop, order)
    [held] = desk.shop_says(event)
    assert held.type == "order.held"
    assert held.data["order_id"] == order["order_id"]
    assert held.data["event_id"] == event.envelope.id
    assert held.data["protection_days"] == 5
    assert held.data["funded"] is False
    assert {part["seller_id"]: part["amount"] for part in held.data["holds"]} == {"s-1": 7_000, "s-2": 3_000}
    assert balance(desk.engine, shop, "s-1") == {"held": 7_000, "received": -7_000}
    assert balance(desk.engine, shop) == {"incoming": -10_000, "received": 10_000}


def test_the_orders_own_period_wins_over_the_shops(desk: Desk) -> None:
    shop = desk.a_shop(protection_days=3)
    [held] = desk.shop_says(order_paid(shop, order_data(protection_days=7)))
    assert held.data["protection_days"] == 7


def test_the_same_message_again_gets_the_first_answer_under_its_first_id(desk: Desk) -> None:
    shop = desk.a_shop()
    event = order_paid(shop)
    first = desk.shop_says(event)
    assert desk.shop_says(event) == first
    assert payments_of(desk, shop) == 1


def test_the_same_order_under_another_event_id_gets_the_first_answer(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    first = desk.shop_says(order_paid(shop, order))
    assert desk.shop_says(order_paid(shop, order)) == first
    assert payments_of(desk, shop) == 1


def test_a_repeat_before_the_answer_exists_makes_no_second_one(desk: Desk) -> None:
    """The escrow worker has not held it yet; the one answer comes when it does."""
    shop = desk.a_shop()
    event = order_paid(shop)
    assert len(desk.shop_says(event, event)) == 1
    assert payments_of(desk, shop) == 1


def test_other_content_under_a_known_event_id_is_refused_and_changes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    first = order_data()
    event = order_paid(shop, first)
    desk.shop_says(event)
    before = balance(desk.engine, shop)
    other = order_paid(shop, first | {"buyer_id": "b-2"}, event_id=event.envelope.id)
    [told] = desk.shop_says(other)
    assert refusal(told) == ("conflicting_duplicate", event.envelope.id)
    assert balance(desk.engine, shop) == before


def test_other_content_under_a_known_order_id_is_refused_and_changes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    first = order_data()
    held = desk.shop_says(order_paid(shop, first))
    other = order_paid(shop, first | order_data(splits={"s-1": 99}, order_id=first["order_id"]))
    [told] = desk.shop_says(other)
    assert refusal(told) == ("conflicting_duplicate", other.envelope.id)
    assert desk.shop_says(other) == [told], "the refusal, too, comes again under its first id"
    assert desk.shop_says(order_paid(shop, first)) == held
    assert balance(desk.engine, shop, "s-1") == {"held": 10_000, "received": -10_000}


def test_another_type_under_a_known_event_id_is_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    event_id = fresh("e")
    desk.shop_says(order_paid(shop, event_id=event_id))
    [told] = desk.seller_asks(platform.enrols("s-1", event_id=event_id))
    assert (told.type, told.data["reason"]) == ("seller.rejected", "conflicting_duplicate")
    assert desk.value("SELECT count(*) FROM sellers WHERE shop_id = :shop", shop=shop) == 0


def test_duplicates_and_conflicts_within_one_batch_are_told_apart(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    first = order_paid(shop, order)
    told = desk.shop_says(
        first, first, order_paid(shop, order), order_paid(shop, order | {"buyer_id": "b-2"})
    )
    assert sorted(event.type for event in told) == ["order.held", "order.rejected"]
    assert payments_of(desk, shop) == 1


def test_the_same_order_id_of_two_shops_is_two_orders(desk: Desk) -> None:
    shops = [desk.a_shop(), desk.a_shop()]
    order = order_data()
    told = desk.shop_says(*[order_paid(shop, order) for shop in shops])
    assert [event.type for event in told] == ["order.held"] * 2
    assert len({event.event_id for event in told}) == 2


def test_a_suspended_shop_gets_its_orders_back(desk: Desk) -> None:
    shop = desk.a_shop(state="suspended")
    event = order_paid(shop)
    [told] = desk.shop_says(event)
    assert refusal(told) == ("shop_suspended", event.envelope.id)
    assert balance(desk.engine, shop) == {}


def test_a_refusal_is_final_for_its_order_even_when_it_would_succeed_by_now(desk: Desk) -> None:
    shop = desk.a_shop(state="suspended")
    order = order_data()
    refused = desk.shop_says(order_paid(shop, order))
    desk.execute("UPDATE shops SET state = 'active' WHERE shop_id = :shop", shop=shop)
    assert desk.shop_says(order_paid(shop, order)) == refused
    assert balance(desk.engine, shop) == {}


def test_a_bank_reference_that_another_order_has_is_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    first = order_data()
    desk.shop_says(order_paid(shop, first))
    second = order_data(bank_reference=first["bank_reference"])
    refused = desk.shop_says(order_paid(shop, second))
    assert refusal(refused[0])[0] == "invalid_data"
    assert "bank_reference" in refused[0].data["detail"]
    assert desk.shop_says(order_paid(shop, second)) == refused


def test_two_orders_with_one_bank_reference_in_one_batch_leave_one(desk: Desk) -> None:
    shop = desk.a_shop()
    reference = fresh("REF")
    told = desk.shop_says(*[order_paid(shop, order_data(bank_reference=reference)) for _ in range(2)])
    assert sorted(event.type for event in told) == ["order.held", "order.rejected"]


def test_data_that_breaks_the_schema_is_refused_with_the_field_and_frees_the_order(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    broken = order_paid(shop, order | {"amount": 1.5})
    refused = desk.shop_says(broken)
    assert refusal(refused[0]) == ("invalid_data", broken.envelope.id)
    assert "amount" in refused[0].data["detail"]
    assert refused[0].data["order_id"] == order["order_id"]
    assert desk.shop_says(broken) == refused
    assert [told.type for told in desk.shop_says(order_paid(shop, order))] == ["order.held"]


def test_a_bad_event_in_a_batch_never_harms_the_others(desk: Desk) -> None:
    shop = desk.a_shop()
    told = desk.shop_says(
        order_paid(shop), order_paid(shop, order_data() | {"currency": "XXX"}), order_paid(shop)
    )
    assert sorted(event.type for event in told) == ["order.held", "order.held", "order.rejected"]


@pytest.mark.parametrize("amount", [1, 10**15])
def test_the_smallest_and_the_largest_amount_are_held(desk: Desk, amount: int) -> None:
    shop = desk.a_shop()
    desk.shop_says(order_paid(shop, order_data(splits={"s-1": amount})))
    assert balance(desk.engine, shop, "s-1") == {"held": amount, "received": -amount}


def test_one_order_from_eight_workers_at_once_is_one_order(desk: Desk) -> None:
    shop = desk.a_shop()
    event = order_paid(shop)
    side_by_side(*[lambda: desk.shop_says(event) for _ in range(8)])
    assert payments_of(desk, shop) == 1
    assert {told.event_id for told in desk.told} == {desk.told[0].event_id}
    assert balance(desk.engine, shop, "s-1") == {"held": 10_000, "received": -10_000}


def test_eight_versions_of_one_order_at_once_leave_one_held_and_seven_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    versions = [order_paid(shop, order | {"buyer_id": f"b-{n}"}) for n in range(8)]
    side_by_side(*[lambda event=event: desk.shop_says(event) for event in versions])
    answers = {told.event_id: told.type for told in desk.told}
    assert sorted(answers.values()) == ["order.held"] + ["order.rejected"] * 7
    assert payments_of(desk, shop) == 1


def test_what_follows_is_in_the_outbox_of_the_same_commit(desk: Desk) -> None:
    """A process that dies right after its commit has published nothing; the rows are there for the relay."""
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    [payment_id] = desk.execute("SELECT payment_id FROM payments WHERE shop_id = :shop", shop=shop)[0]
    rows = desk.execute("SELECT command, arguments, type, shop_id FROM outbox")
    commands = [row.arguments for row in rows if row.command == "hold_funds"]
    assert any(str(payment_id) in json.dumps(arguments) for arguments in commands)
    assert any((row.type, row.shop_id) == ("order.held", shop) for row in rows)
