"""What the demonstration expects must itself be right, or its 'ok' means nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ledger.accounts import AccountKind
from ops.demo.checks import check_holds, check_releases, check_repeats, outcomes_of
from ops.demo.clients import Event, Inbox, order_paid
from ops.demo.scenario import (
    ORDERS_PER_SHOP,
    Balance,
    Funding,
    Order,
    Outcome,
    Seller,
    Shop,
    Signing,
    Split,
    Withdrawal,
    build_scenario,
    expected_accounts,
    expected_balances,
)
from schemas.inbound import InvalidData, validate_data

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ADA = Seller("acme", "s-1", "EUR", "d-1", (("type", "iban"),), "a pass phrase")


def an_order(order_id: str, *splits: tuple[str, int], credited: bool = True) -> Order:
    parts = tuple(Split(seller_id, amount) for seller_id, amount in splits)
    return Order("acme", order_id, "b-1", "EUR", parts, f"acme/{order_id}", None, credited)


def a_shop(
    *orders: Order, funding: Funding = Funding.CONFIRMED, withdrawals: tuple[Withdrawal, ...] = ()
) -> Shop:
    return Shop("acme", "EUR", Signing.HMAC, funding, 3, orders, (ADA,), withdrawals)


def a_withdrawal(amount: int, outcome: Outcome) -> Withdrawal:
    return Withdrawal(ADA, "w-1", amount, "EUR", "a pass phrase", outcome, "")


def test_each_split_belongs_to_its_seller_and_an_uncredited_order_stays_protected() -> None:
    shop = a_shop(an_order("o-1", ("s-1", 700), ("s-2", 300)), an_order("o-2", ("s-1", 50), credited=False))
    assert expected_balances(shop) == {"s-1": Balance(held=50, available=700), "s-2": Balance(available=300)}


def test_under_the_announced_policy_an_uncredited_order_is_released() -> None:
    shop = a_shop(an_order("o-1", ("s-1", 50), credited=False), funding=Funding.ANNOUNCED)
    assert expected_balances(shop) == {"s-1": Balance(available=50)}
    assert expected_accounts(shop)[AccountKind.INCOMING] == 50


@pytest.mark.parametrize(
    ("outcome", "balance"),
    [
        (Outcome.SETTLED, Balance(available=60, paid_out=40)),
        (Outcome.WRONG_PASSWORD, Balance(available=100)),
        (Outcome.INSUFFICIENT_FUNDS, Balance(available=100)),
        (Outcome.REJECTED_BY_BANK, Balance(available=100)),
    ],
)
def test_only_a_settled_withdrawal_takes_money_away(outcome: Outcome, balance: Balance) -> None:
    shop = a_shop(an_order("o-1", ("s-1", 100)), withdrawals=(a_withdrawal(40, outcome),))
    assert expected_balances(shop) == {"s-1": balance}


def test_cash_is_what_was_credited_less_what_was_paid_out() -> None:
    shop = a_shop(
        an_order("o-1", ("s-1", 100)),
        an_order("o-2", ("s-1", 7), credited=False),
        withdrawals=(a_withdrawal(40, Outcome.SETTLED),),
    )
    assert expected_accounts(shop) == {
        AccountKind.INCOMING: 7,
        AccountKind.BANK_CASH: 60,
        AccountKind.RECEIVED: 0,
        AccountKind.HELD: 7,
        AccountKind.AVAILABLE: 60,
        AccountKind.IN_PAYOUT: 0,
    }


@pytest.mark.parametrize("shop", build_scenario(), ids=lambda shop: shop.shop_id)
class TestScenario:
    def test_its_assets_equal_what_it_owes(self, shop: Shop) -> None:
        accounts = expected_accounts(shop)
        assets = accounts[AccountKind.INCOMING] + accounts[AccountKind.BANK_CASH]
        assert assets == sum(accounts.values()) - assets

    def test_its_orders_are_a_thousand_different_ones_and_valid(self, shop: Shop) -> None:
        assert len({order.order_id for order in shop.orders}) == ORDERS_PER_SHOP
        assert len({order.bank_reference for order in shop.orders}) == ORDERS_PER_SHOP
        invalid = [
            data
            for order in shop.orders
            if isinstance(data := validate_data("order.paid", order_paid(order)["data"]), InvalidData)
        ]
        assert invalid == []

    def test_every_order_is_sent_once_singly_or_in_a_batch(self, shop: Shop) -> None:
        assert [*shop.single_orders, *(order for orders in shop.batches for order in orders)] == list(
            shop.orders
        )

    def test_no_withdrawal_that_must_be_paid_asks_for_more_than_there_is(self, shop: Shop) -> None:
        assert all(balance.available >= 0 for balance in expected_balances(shop).values())
        assert all(withdrawal.amount > 0 for withdrawal in shop.withdrawals)


def test_runs_on_one_database_share_no_shop_and_no_bank_reference() -> None:
    first, second = build_scenario("-a")[0], build_scenario("-b")[0]
    assert first.shop_id != second.shop_id
    assert {o.bank_reference for o in first.orders}.isdisjoint(o.bank_reference for o in second.orders)


def held(order: Order, *, event_id: str = "e-1", release_at: datetime = NOON) -> Event:
    holds = [
        {
            "hold_id": f"{order.order_id}-{split.seller_id}",
            "seller_id": split.seller_id,
            "amount": split.amount,
        }
        for split in order.splits
    ]
    data = {"order_id": order.order_id, "release_at": release_at.isoformat(), "holds": holds}
    return Event(event_id, "order.held", data)


def released(hold_id: str, *, at: datetime = NOON, event_id: str = "e-2") -> Event:
    return Event(event_id, "hold.released", {"hold_id": hold_id, "released_at": at.isoformat()})


def an_inbox(*events: Event) -> Inbox:
    inbox = Inbox()
    inbox.note(events)
    return inbox


def test_an_order_held_twice_with_another_amount_or_not_at_all_is_found() -> None:
    order = an_order("o-1", ("s-1", 100))
    shop = a_shop(order)
    assert check_holds(shop, an_inbox(held(order))).ok
    # Delivered twice under one id is the contract; answered under two ids is two holds.
    assert check_holds(shop, an_inbox(held(order), held(order))).ok
    assert not check_holds(shop, an_inbox(held(order), held(order, event_id="e-9"))).ok
    assert not check_holds(shop, an_inbox(held(replace(order, splits=(Split("s-1", 99),))))).ok
    assert not check_holds(shop, an_inbox()).ok


def test_a_release_that_is_early_missing_doubled_or_not_covered_by_the_bank_is_found() -> None:
    order = an_order("o-1", ("s-1", 100))
    shop = a_shop(order)
    early = NOON - timedelta(microseconds=1)
    assert check_releases(shop, an_inbox(held(order), released("o-1-s-1"))).ok
    assert not check_releases(shop, an_inbox(held(order), released("o-1-s-1", at=early))).ok
    assert not check_releases(shop, an_inbox(held(order))).ok
    twice = released("o-1-s-1"), released("o-1-s-1", event_id="e-3")
    assert not check_releases(shop, an_inbox(held(order), *twice)).ok
    uncovered = a_shop(replace(order, credited=False))
    assert check_releases(uncovered, an_inbox(held(order))).ok
    assert not check_releases(uncovered, an_inbox(held(order), released("o-1-s-1"))).ok


def test_a_duplicate_without_a_second_delivery_of_its_answer_is_found() -> None:
    orders = [an_order(f"o-{number}", ("s-1", 1)) for number in range(20)]
    shop = a_shop(*orders)
    answers = [held(order, event_id=f"answer-{order.order_id}") for order in shop.repeated_orders]
    assert not check_repeats(shop, an_inbox(*answers)).ok
    assert check_repeats(shop, an_inbox(*answers, *answers)).ok


def test_a_withdrawal_that_ends_twice_shows_both_ends() -> None:
    data = {"withdrawal_id": "w-1", "reason": "wrong_password"}
    inbox = an_inbox(Event("e-1", "withdrawal.rejected", data), Event("e-2", "payout.settled", data))
    assert outcomes_of(a_withdrawal(1, Outcome.SETTLED), inbox) == ["wrong_password", "settled"]
