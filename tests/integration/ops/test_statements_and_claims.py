"""Statements that always add up, and claims that need a reason and sometimes a second name."""

import csv
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import pairwise
from typing import Any

from command_runs import Holdfast
from workflow_support.desk import Desk
from workflow_support.events import (
    bank_credited,
    credit_data,
    order_data,
    order_paid,
    refund_requested,
)

START, END = "2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z"


def _some_history(desk: Desk) -> tuple[str, str]:
    """Orders in four currencies, a partial refund that the bank sent back, a release and a payout."""
    shop = desk.a_shop(fee_bps=100)
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    for currency in ("JPY", "KWD", "CLF"):
        desk.shop_says(order_paid(shop, order_data(splits={seller: 12_345}, currency=currency)))
    order = order_data(splits={seller: 5_000}, currency="CNY")
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    desk.buyers_ask(refund_requested(shop, order, {seller: 1_500}))
    desk.run()
    desk.seller_withdraws(platform.withdraws(seller, 4_000))
    return shop, seller


def _statement(holdfast: Holdfast, shop: str, start: str, end: str, *more: str) -> list[dict[str, Any]]:
    ran = holdfast("statement", "--shop", shop, "--from", start, "--to", end, "--json", *more)
    assert ran.exit_code == 0, ran.err
    accounts: list[dict[str, Any]] = ran.json["accounts"]
    return accounts


def _key(account: dict[str, Any]) -> tuple[str, str, str]:
    return (account["seller"] or "", account["account"], account["currency"])


def test_opening_plus_movements_is_the_closing_of_every_account(set_up: Holdfast, desk: Desk) -> None:
    shop, seller = _some_history(desk)
    for accounts in (
        _statement(set_up, shop, START, END),
        _statement(set_up, shop, START, END, "--seller", seller),
    ):
        assert accounts
        for account in accounts:
            moved = sum(movement["amount"] for movement in account["movements"])
            assert account["opening"] + moved == account["closing"]


def test_the_closing_of_one_period_is_the_opening_of_the_next(set_up: Holdfast, desk: Desk) -> None:
    shop, _ = _some_history(desk)
    whole = {_key(account): account for account in _statement(set_up, shop, START, END)}
    times = sorted({m["booked_at"] for account in whole.values() for m in account["movements"]})
    cuts = [START, *times, END]
    closing: dict[tuple[str, str, str], int] = {}
    for start, end in pairwise(cuts):
        for account in _statement(set_up, shop, start, end):
            assert account["opening"] == closing.get(_key(account), 0)
            closing[_key(account)] = account["closing"]
    assert closing == {key: account["closing"] for key, account in whole.items()}


def test_movements_name_their_order_or_withdrawal_as_table_and_csv(set_up: Holdfast, desk: Desk) -> None:
    shop, seller = _some_history(desk)
    accounts = _statement(set_up, shop, START, END, "--seller", seller)
    assert all(m["order_id"] or m["withdrawal_id"] for account in accounts for m in account["movements"])
    arguments = ("statement", "--shop", shop, "--seller", seller, "--from", START, "--to", END)
    rows = list(csv.DictReader(StringIO(set_up(*arguments, "--format", "csv").out)))
    assert len(rows) == sum(len(account["movements"]) + 2 for account in accounts)
    table = set_up(*arguments).out
    for shown in ("12345 JPY", "12.345 KWD", "1.2345 CLF", "opening", "closing"):
        assert shown in table


def test_what_buyers_got_back_is_no_payout(set_up: Holdfast, desk: Desk) -> None:
    shop, seller = _some_history(desk)
    balances = set_up("balances", "--shop", shop, "--seller", seller, "--json").json["balances"]
    assert balances["CNY"]["paid_out"] == 4_000
    assert balances["CNY"]["held"] == 3_500


def test_balances_as_of_a_time_are_those_of_then(set_up: Holdfast, desk: Desk) -> None:
    shop, seller = _some_history(desk)
    one = ("balances", "--shop", shop, "--seller", seller, "--json")
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert set_up(*one, "--as-of", later).json == set_up(*one).json
    assert set_up(*one, "--as-of", START).json["balances"] == {}


def _claim(holdfast: Holdfast, shop: str, seller: str, amount: int, *more: str) -> Any:
    named = ("--shop", shop, "--seller", seller, "--amount", str(amount), "--currency", "CNY")
    return holdfast("claim", "add", *named, "--why", "the buyer proved fraud", *more)


def test_a_claim_takes_what_is_withdrawable_and_the_rest_is_owed(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    seller = desk.a_seller(desk.platform(shop), available=10_000)
    assert _claim(set_up, shop, seller, 12_000).exit_code == 0
    held = set_up("balances", "--shop", shop, "--seller", seller, "--json").json["balances"]["CNY"]
    assert held["available"] == 0
    assert desk.value("SELECT owed_minor FROM receivables WHERE shop_id = :shop", shop=shop) == 2_000
    assert desk.value(
        "SELECT reason FROM operator_actions WHERE action = 'claim_added' AND subject = :subject",
        subject=f"{shop}/{seller}",
    )


def test_a_large_claim_needs_two_different_names(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    seller = desk.a_seller(desk.platform(shop), available=500_000)
    alone = _claim(set_up, shop, seller, 200_000)
    assert (alone.exit_code, alone.err.count("\n")) == (2, 1)
    assert _claim(set_up, shop, seller, 200_000, "--second-operator", "ada").exit_code == 2
    assert _claim(set_up, shop, seller, 200_000, "--second-operator", "ADA ").exit_code == 2
    assert _claim(set_up, shop, seller, 200_000, "--second-operator", "grace").exit_code == 0


def test_a_claim_against_nobody_is_a_no(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    assert _claim(set_up, shop, "nobody", 1).exit_code == 1
    assert _claim(set_up, "no-such-shop", "nobody", 1).exit_code == 1
