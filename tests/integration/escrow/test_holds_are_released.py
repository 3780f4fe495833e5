"""The protection period: nobody gets the money before its end; after it, by itself, and once."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from workflow_support.books import balance
from workflow_support.desk import DAY_SECONDS, Desk
from workflow_support.events import bank_credited, credit_data, order_data, order_paid
from workflow_support.races import met_at_a_lock, side_by_side

from schemas.commands import HoldFunds


def a_held_order(desk: Desk, shop: str, *, funded: bool = True, **order: Any) -> dict[str, Any]:
    data = order_data(**order)
    desk.shop_says(order_paid(shop, data))
    if funded:
        desk.bank_says(bank_credited(credit_data(data)))
    desk.told.clear()
    return data


def state_of(desk: Desk, shop: str, order: dict[str, Any]) -> str:
    return desk.value(
        "SELECT state FROM holds WHERE (shop_id, order_id) = (:shop, :order)",
        shop=shop,
        order=order["order_id"],
    )


@pytest.mark.parametrize("days", [3, 7])
def test_the_alarm_is_set_for_the_end_of_the_period(desk: Desk, days: int) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop, protection_days=days)
    [alarm] = [row for row in desk.delayed if row.command == "release_hold"]
    assert (alarm.queue, alarm.delay_ms) == ("escrow.release", days * DAY_SECONDS * 1000)
    [hold] = desk.execute(
        "SELECT held_at, release_at FROM holds WHERE order_id = :order", order=order["order_id"]
    )
    assert hold.release_at - hold.held_at == timedelta(days=days)


def test_a_due_hold_becomes_withdrawable(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"])
    [told] = desk.ring_alarms("release_hold")
    assert told.type == "hold.released"
    assert (told.data["seller_id"], told.data["amount"], told.data["fee"]) == ("s-1", 10_000, 0)
    assert balance(desk.engine, shop, "s-1") == {"available": 10_000, "received": -10_000}


def test_an_early_alarm_moves_nothing_and_sleeps_on_for_the_remainder(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"], but_for="1 hour")
    assert desk.ring_alarms("release_hold") == []
    assert state_of(desk, shop, order) == "held"
    [again] = [row for row in desk.delayed if row.command == "release_hold"]
    assert 3_590_000 < again.delay_ms <= 3_600_000


def test_a_second_alarm_changes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"])
    alarms = [row for row in desk.delayed if row.command == "release_hold"]
    desk.ring_alarms("release_hold")
    told = len(desk.told)
    desk.handle(*alarms, *alarms)
    assert len(desk.told) == told
    assert balance(desk.engine, shop, "s-1")["available"] == 10_000


def test_a_late_alarm_still_releases(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"], but_for="-30 days")
    assert [told.type for told in desk.ring_alarms("release_hold")] == ["hold.released"]


def test_the_database_itself_refuses_a_release_one_microsecond_early(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    with pytest.raises(IntegrityError, match="holds_never_early_check"):
        desk.execute(
            "UPDATE holds SET state = 'released', released_at = release_at - interval '1 microsecond'"
            " WHERE order_id = :order",
            order=order["order_id"],
        )


@pytest.mark.parametrize(
    "change",
    [
        "release_at = release_at - interval '1 second'",
        "protection_days = 2",
        "protection_days = 8",
        "day_seconds = 1",
        "state = 'released'",
    ],
)
def test_the_database_itself_refuses_to_shorten_a_period(desk: Desk, change: str) -> None:
    order = a_held_order(desk, desk.a_shop())
    with pytest.raises(IntegrityError, match="holds_"):
        desk.execute(f"UPDATE holds SET {change} WHERE order_id = :order", order=order["order_id"])


def test_an_unconfirmed_hold_waits_past_its_time_and_goes_with_the_credit(desk: Desk) -> None:
    shop = desk.a_shop(funding="confirmed")
    order = a_held_order(desk, shop, funded=False)
    desk.pass_protection(shop, order["order_id"])
    assert desk.ring_alarms("release_hold") == []
    assert state_of(desk, shop, order) == "held"
    told = desk.bank_says(bank_credited(credit_data(order)))
    assert [event.type for event in told] == ["order.funded", "hold.released"]
    assert balance(desk.engine, shop, "s-1") == {"available": 10_000, "received": -10_000}


def test_a_shop_whose_word_is_enough_needs_no_credit(desk: Desk) -> None:
    shop = desk.a_shop(funding="announced")
    order = a_held_order(desk, shop, funded=False)
    desk.pass_protection(shop, order["order_id"])
    assert [told.type for told in desk.ring_alarms("release_hold")] == ["hold.released"]


def test_a_credit_just_before_the_end_calls_the_hold_a_second_time(desk: Desk) -> None:
    """The alarm that rings while the credit commits may not see it yet."""
    shop = desk.a_shop()
    order = a_held_order(desk, shop, funded=False)
    desk.pass_protection(shop, order["order_id"], but_for="30 seconds")
    desk.delayed.clear()
    desk.bank_says(bank_credited(credit_data(order)))
    [second] = [row for row in desk.delayed if row.command == "release_hold"]
    assert 29_000 < second.delay_ms <= 30_000


def test_the_fee_is_kept_and_rounded_half_to_even(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=250)
    # 2.5 % of 100 and of 300 is 2.5 and 7.5: to the even neighbour, 2 and 8.
    order = a_held_order(desk, shop, splits={"s-1": 100, "s-2": 300})
    desk.pass_protection(shop, order["order_id"])
    told = {event.data["seller_id"]: event.data for event in desk.ring_alarms("release_hold")}
    assert (told["s-1"]["amount"], told["s-1"]["fee"]) == (98, 2)
    assert (told["s-2"]["amount"], told["s-2"]["fee"]) == (292, 8)
    assert balance(desk.engine, shop, "s-2") == {"available": 292, "fees": 8, "received": -300}


def test_a_fee_of_everything_leaves_the_seller_nothing(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=10_000)
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"])
    [told] = desk.ring_alarms("release_hold")
    assert (told.data["amount"], told.data["fee"]) == (0, 10_000)
    assert balance(desk.engine, shop, "s-1") == {"fees": 10_000, "received": -10_000}


def test_a_hold_keeps_the_terms_of_its_moment(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=100, protection_days=3)
    order = a_held_order(desk, shop)
    [before] = desk.execute("SELECT release_at FROM holds WHERE order_id = :order", order=order["order_id"])
    desk.execute("UPDATE shops SET fee_bps = 5000, protection_days = 7 WHERE shop_id = :shop", shop=shop)
    [after] = desk.execute("SELECT release_at FROM holds WHERE order_id = :order", order=order["order_id"])
    assert after == before
    desk.pass_protection(shop, order["order_id"])
    [told] = desk.ring_alarms("release_hold")
    assert told.data["fee"] == 100


def test_holding_the_same_payment_twice_is_one_hold(desk: Desk) -> None:
    shop = desk.a_shop()
    a_held_order(desk, shop)
    [row] = desk.execute("SELECT payment_id FROM payments WHERE shop_id = :shop", shop=shop)
    alarms = len(desk.delayed)
    with desk.steps.begin() as step:
        step.command("escrow.hold", HoldFunds(payment_ids=(row.payment_id,)))
    desk.run()
    assert len(desk.delayed) == alarms
    assert balance(desk.engine, shop, "s-1") == {"held": 10_000, "received": -10_000}


def test_one_alarm_message_carries_all_holds_of_a_batch_with_one_period(desk: Desk) -> None:
    shop = desk.a_shop()
    desk.shop_says(*[order_paid(shop, order_data(protection_days=days)) for days in [3, 5, 3, 5, 3]])
    alarms = [row for row in desk.delayed if row.command == "release_hold"]
    assert sorted(row.delay_ms // (DAY_SECONDS * 1000) for row in alarms) == [3, 5]


def test_release_beside_release_releases_once(desk: Desk) -> None:
    shop = desk.a_shop()
    orders = [a_held_order(desk, shop) for _ in range(5)]
    for order in orders:
        desk.pass_protection(shop, order["order_id"])
    alarms = [row for row in desk.delayed if row.command == "release_hold"]
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM holds WHERE shop_id = :shop FOR UPDATE",
        *[lambda: desk.handle(*alarms) for _ in range(4)],
        shop=shop,
    )
    released = [told for told in desk.told if told.type == "hold.released"]
    assert len(released) == 5
    assert balance(desk.engine, shop, "s-1") == {"available": 50_000, "received": -50_000}


def test_releases_of_the_same_sellers_in_other_orders_do_not_deadlock(desk: Desk) -> None:
    shop = desk.a_shop()
    sellers = [f"s-{n}" for n in range(6)]
    orders = [
        a_held_order(desk, shop, splits=dict.fromkeys(sellers if n % 2 else sellers[::-1], 100))
        for n in range(8)
    ]
    for order in orders:
        desk.pass_protection(shop, order["order_id"])
    alarms = [row for row in desk.delayed if row.command == "release_hold"]
    side_by_side(*[lambda row=row: desk.handle(row) for row in alarms])
    assert balance(desk.engine, shop, "s-0")["available"] == 800


def test_the_banks_credit_beside_the_alarm_releases_exactly_once(desk: Desk) -> None:
    """Whichever is first: the alarm sees the credit, or the credit calls again."""
    for _ in range(5):
        shop = desk.a_shop()
        order = a_held_order(desk, shop, funded=False)
        desk.pass_protection(shop, order["order_id"])
        alarms = [row for row in desk.delayed if row.command == "release_hold"]
        desk.delayed.clear()
        side_by_side(
            lambda alarms=alarms: desk.handle(*alarms),
            lambda order=order: desk.bank_says(bank_credited(credit_data(order))),
        )
        desk.run()
        assert balance(desk.engine, shop, "s-1") == {"available": 10_000, "received": -10_000}


def test_an_alarm_that_rings_while_the_credit_commits_is_made_good_by_the_credit(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop, funded=False)
    desk.pass_protection(shop, order["order_id"])
    alarms = [row for row in desk.delayed if row.command == "release_hold"]
    [told] = met_at_a_lock(
        desk.engine,
        # The credit has done all but to write what follows and commit.
        "LOCK TABLE outbox IN SHARE MODE",
        lambda: desk.bank_says(bank_credited(credit_data(order))),
        meanwhile=lambda: desk.handle(*alarms),
    )
    assert [event.type for event in told] == ["order.funded", "hold.released"]
    assert balance(desk.engine, shop, "s-1") == {"available": 10_000, "received": -10_000}


def test_release_times_come_from_the_database(desk: Desk) -> None:
    shop = desk.a_shop()
    order = a_held_order(desk, shop)
    desk.pass_protection(shop, order["order_id"])
    before = desk.value("SELECT clock_timestamp()")
    [told] = desk.ring_alarms("release_hold")
    assert (
        before <= datetime.fromisoformat(told.data["released_at"]) <= desk.value("SELECT clock_timestamp()")
    )
