"""What the product is for: a signed order becomes held money, is released in time, and is paid out."""

from datetime import datetime

import pytest
from workflow_support.outsider import BATCH, SINGLE, Message, Received, Shop, order_data, signed
from workflow_support.system import System


def held_and_released(shop: Shop, order: dict[str, object]) -> tuple[Received, Received]:
    held = shop.hears("order.held", order_id=order["order_id"])
    released = shop.hears("hold.released", order_id=order["order_id"])
    return held, released


@pytest.mark.parametrize("scheme", ["v1a", "v1"])
def test_an_order_is_held_released_in_time_and_paid_out(system: System, scheme: str) -> None:
    shop = system.a_shop("--fee-bps", "250", scheme=scheme)
    order = order_data(splits={"s-1": 10_000})
    event_id = shop.says("order.paid", order)
    held = shop.hears("order.held", order_id=order["order_id"])
    assert held.data["event_id"] == event_id
    assert held.data["protection_days"] == 3
    [part] = held.data["holds"]
    assert (part["seller_id"], part["amount"], part["currency"]) == ("s-1", 10_000, "CNY")
    system.buyers_pay(order)
    shop.hears("order.funded", order_id=order["order_id"], amount=10_000, currency="CNY")
    shop.enrols("s-1")
    shop.hears("seller.accepted", seller_id="s-1")

    too_early = shop.withdraws("s-1", 9_750)
    shop.hears("withdrawal.rejected", withdrawal_id=too_early, reason="insufficient_funds")
    released = shop.hears("hold.released", hold_id=part["hold_id"])
    assert (released.data["amount"], released.data["fee"]) == (9_750, 250)
    release_at = datetime.fromisoformat(held.data["release_at"])
    assert datetime.fromisoformat(released.data["released_at"]) >= release_at

    wrong = shop.withdraws("s-1", 9_750, password="incorrect horse")
    shop.hears("withdrawal.rejected", withdrawal_id=wrong, reason="wrong_password")
    assert system.balances(shop, "s-1") == {"held": 0, "available": 9_750, "in_payout": 0, "paid_out": 0}
    right = shop.withdraws("s-1", 9_750)
    shop.hears("withdrawal.accepted", withdrawal_id=right, amount=9_750)
    settled = shop.hears("payout.settled", withdrawal_id=right, amount=9_750)
    assert system.balances(shop, "s-1") == {"held": 0, "available": 0, "in_payout": 0, "paid_out": 9_750}
    assert system.accepted_by_bank(settled.data["end_to_end_id"]) == 1


def test_a_batch_of_orders_under_one_signature_is_held_and_released(system: System) -> None:
    shop = system.a_shop("--funding", "announced")
    orders = [order_data(splits={"s-1": 700, "s-2": 300}) for _ in range(256)]
    shop.publish(shop.message(*[shop.event("order.paid", order) for order in orders], batch=True))
    held = shop.hears_all(lambda event: event.type == "order.held", 256)
    assert {event.data["order_id"] for event in held} == {order["order_id"] for order in orders}
    released = shop.hears_all(lambda event: event.type == "hold.released", 512)
    times = {event.data["order_id"]: datetime.fromisoformat(event.data["release_at"]) for event in held}
    assert all(
        datetime.fromisoformat(event.data["released_at"]) >= times[event.data["order_id"]]
        for event in released
    )
    assert system.balances(shop, "s-1")["available"] == 256 * 700
    assert system.balances(shop, "s-2")["available"] == 256 * 300


def test_a_bad_event_in_a_batch_harms_no_other(system: System) -> None:
    shop = system.a_shop()
    good = [order_data() for _ in range(3)]
    bad = order_data() | {"amount": 1}
    events = [shop.event("order.paid", order) for order in [good[0], bad, *good[1:]]]
    shop.publish(shop.message(*events, batch=True))
    for order in good:
        shop.hears("order.held", order_id=order["order_id"])
    shop.hears("order.rejected", order_id=bad["order_id"], reason="invalid_data", event_id=events[1]["id"])


def test_each_order_keeps_its_own_protection_period(system: System) -> None:
    shop = system.a_shop("--funding", "announced", days=3)
    longer, shorter = order_data(protection_days=5), order_data()
    shop.says("order.paid", longer)
    shop.says("order.paid", shorter)
    held_longer, released_longer = held_and_released(shop, longer)
    held_shorter, released_shorter = held_and_released(shop, shorter)
    assert (held_longer.data["protection_days"], held_shorter.data["protection_days"]) == (5, 3)
    assert released_shorter.data["released_at"] < released_longer.data["released_at"]


def test_what_the_bank_never_confirmed_is_not_released_until_it_does(system: System) -> None:
    shop = system.a_shop()
    unpaid, paid = order_data(), order_data()
    shop.says("order.paid", unpaid)
    shop.hears("order.held", order_id=unpaid["order_id"])
    shop.says("order.paid", paid)
    system.buyers_pay(paid)
    shop.hears("hold.released", order_id=paid["order_id"])
    # The other one was held before, so its time is over too.
    assert shop.has_heard("hold.released", order_id=unpaid["order_id"]) == 0
    system.buyers_pay(unpaid)
    shop.hears("hold.released", order_id=unpaid["order_id"])


def test_a_message_sent_again_gets_the_first_answer_under_its_first_id(system: System) -> None:
    shop = system.a_shop("--funding", "announced")
    order = order_data()
    message = shop.message(shop.event("order.paid", order))
    shop.publish(message)
    first = shop.hears("order.held", order_id=order["order_id"])
    for copies in (2, 3):
        # One at a time: repeats that are handled in one batch get one answer.
        shop.publish(message)
        shop.hears_copies(copies, "order.held", order_id=order["order_id"])
    assert {event.id for event in shop.received if event.type == "order.held"} == {first.id}
    shop.hears("hold.released", order_id=order["order_id"])
    assert system.balances(shop, "s-1")["available"] == 10_000


def test_one_order_said_in_two_ways_is_refused_the_second_time(system: System) -> None:
    shop = system.a_shop()
    order = order_data()
    shop.says("order.paid", order)
    shop.hears("order.held", order_id=order["order_id"])
    event_id = shop.says("order.paid", order | {"buyer_id": "b-2"})
    shop.hears(
        "order.rejected", order_id=order["order_id"], reason="conflicting_duplicate", event_id=event_id
    )


def test_one_shops_key_speaks_for_no_other_shop(system: System) -> None:
    shop, other = system.a_shop(), system.a_shop()
    order = order_data()
    event = other.event("order.paid", order, source=f"/shops/{shop.id}")
    other.publish(other.message(event))
    known = order_data()
    shop.says("order.paid", known)
    shop.hears("order.held", order_id=known["order_id"])
    assert shop.has_heard("order.held", order_id=order["order_id"]) == 0
    assert other.has_heard("order.held") == 0


def test_several_signatures_side_by_side_need_one_that_is_valid(system: System) -> None:
    """So that a key can be changed without a gap."""
    shop, stranger = system.a_shop(), system.a_shop()
    order = order_data()
    message = shop.message(shop.event("order.paid", order))
    foreign = signed(stranger.key, message.headers["webhook-id"], message.body)["webhook-signature"]
    message.headers["webhook-signature"] = f"{foreign} {message.headers['webhook-signature']}"
    shop.publish(message)
    shop.hears("order.held", order_id=order["order_id"])


def test_unknown_attributes_and_white_space_do_not_matter(system: System) -> None:
    shop = system.a_shop()
    order = order_data()
    event = shop.event("order.paid", order, myextension="x")
    message = shop.message(event)
    body = b"\n " + message.body.replace(b'", "', b'" ,\t"') + b"\n"
    spaced = Message(body, "order.paid", signed(shop.key, event["id"], body), SINGLE + "; charset=utf-8")
    shop.publish(spaced)
    first = shop.hears("order.held", order_id=order["order_id"])
    again = dict(reversed(list(event.items()))) | {"data": dict(reversed(list(order.items())))}
    shop.publish(shop.message(again))
    shop.hears_copies(2, "order.held", order_id=order["order_id"])
    assert {e.id for e in shop.received if e.type == "order.held"} == {first.id}


def test_whatever_the_bank_does_the_money_is_in_one_place(system: System) -> None:
    outcomes = {
        "settle": ("payout.settled", {"available": 6_000, "paid_out": 4_000}),
        "reject": ("payout.failed", {"available": 10_000, "paid_out": 0}),
        "late": ("payout.settled", {"available": 6_000, "paid_out": 4_000}),
        "time_out_after_accepting": ("payout.settled", {"available": 6_000, "paid_out": 4_000}),
        "return_after_settling": ("payout.returned", {"available": 10_000, "paid_out": 0}),
    }
    shop = system.a_shop("--funding", "announced")
    order = order_data(splits=dict.fromkeys(outcomes, 10_000))
    shop.says("order.paid", order)
    for behaviour in outcomes:
        system.bank_behaves(behaviour, destination=f"d-{behaviour}", delay_seconds=0.5)
        shop.enrols(behaviour, destination_id=f"d-{behaviour}")
    shop.hears_all(lambda event: event.type == "seller.accepted", len(outcomes))
    shop.hears_all(lambda event: event.type == "hold.released", len(outcomes))
    asked = {
        behaviour: shop.withdraws(behaviour, 4_000, destination_id=f"d-{behaviour}") for behaviour in outcomes
    }
    for behaviour, (last_word, money) in outcomes.items():
        last = shop.hears(last_word, withdrawal_id=asked[behaviour])
        assert system.balances(shop, behaviour) == {"held": 0, "in_payout": 0, **money}
        made = 0 if behaviour == "reject" else 1
        assert system.accepted_by_bank(last.data["end_to_end_id"]) == made


def test_a_batch_of_two_types_or_sources_is_no_batch(system: System) -> None:
    """Its neighbours in the queue are not harmed."""
    shop = system.a_shop()
    order = order_data()
    mixed = shop.message(
        shop.event("order.paid", order_data()), shop.event("seller.enrolled", {}), batch=True
    )
    assert mixed.content_type == BATCH
    shop.publish(mixed, shop.message(shop.event("order.paid", order)))
    shop.hears("order.held", order_id=order["order_id"])
