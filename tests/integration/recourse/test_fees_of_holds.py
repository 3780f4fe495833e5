"""The shop's fee: taken at the release, of what is released, on the terms of the moment of the hold."""

import pytest
from recourse_support import SELLER, held_order, released_now, state_of, the
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import refund_requested


@pytest.mark.parametrize(
    ("amount", "fee_bps", "fee"),
    [
        (10_000, 0, 0),
        (10_000, 250, 250),
        (10_000, 10_000, 10_000),
        # Half to even: 0.5 → 0, 1.5 → 2, 2.5 → 2, 3.5 → 4.
        (50, 100, 0),
        (150, 100, 2),
        (250, 100, 2),
        (350, 100, 4),
        # Just beside the half.
        (249, 100, 2),
        (251, 100, 3),
        (1, 5_000, 0),
        (1, 5_001, 1),
        (3, 5_000, 2),
        (10**15, 333, 33_300_000_000_000),
    ],
)
def test_a_fee_is_rounded_half_to_even(desk: Desk, amount: int, fee_bps: int, fee: int) -> None:
    shop = desk.a_shop(fee_bps=fee_bps)
    order = held_order(desk, shop, splits={SELLER: amount})
    told = the(released_now(desk, shop, order), "hold.released")
    assert (told.data["amount"], told.data["fee"]) == (amount - fee, fee)
    assert balance(desk.engine, shop, SELLER).get("fees", 0) == fee
    assert balance(desk.engine, shop, SELLER).get("available", 0) == amount - fee


def test_a_fee_is_taken_of_what_remains_after_refunds(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=250)
    order = held_order(desk, shop)
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 4_000}))
    told = the(released_now(desk, shop, order), "hold.released")
    assert (told.data["amount"], told.data["fee"]) == (5_850, 150)


def test_a_refunded_order_costs_no_fee(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=250)
    order = held_order(desk, shop)
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 10_000}))
    released_now(desk, shop, order)
    assert state_of(desk, order) == "refunded"
    assert "fees" not in balance(desk.engine, shop, SELLER)


def test_each_seller_of_an_order_pays_the_fee_of_its_own_part(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=100)
    order = held_order(desk, shop, splits={"a": 150, "b": 250})
    fees = {told.data["seller_id"]: told.data["fee"] for told in released_now(desk, shop, order)}
    assert fees == {"a": 2, "b": 2}


def test_an_order_keeps_the_terms_of_the_moment_when_it_was_held(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=250)
    before = held_order(desk, shop)
    desk.execute("UPDATE shops SET fee_bps = 1000 WHERE shop_id = :shop", shop=shop)
    after = held_order(desk, shop)
    assert the(released_now(desk, shop, before), "hold.released").data["fee"] == 250
    assert the(released_now(desk, shop, after), "hold.released").data["fee"] == 1_000
