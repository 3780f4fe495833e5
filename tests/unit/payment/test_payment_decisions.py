"""What becomes of a payment and of a bank's credit, as rules."""

import itertools
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reasons import Reason
from workers.payment.decisions import (
    Accepted,
    OpenCredit,
    Refused,
    UnfundedPayment,
    decide_matches,
    decide_payment,
)


@pytest.mark.parametrize("asked", [None, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("agreed", [3, 7])
def test_the_orders_own_period_wins_over_the_shops(agreed: int, asked: int | None) -> None:
    decision = decide_payment(shop_active=True, shop_protection_days=agreed, asked_protection_days=asked)
    assert decision == Accepted(agreed if asked is None else asked)


def test_a_suspended_shop_is_refused_whatever_it_asks() -> None:
    decision = decide_payment(shop_active=False, shop_protection_days=3, asked_protection_days=5)
    assert isinstance(decision, Refused)
    assert decision.reason is Reason.SHOP_SUSPENDED


def a_credit(number: int, reference: str = "R", amount: int = 100, currency: str = "CNY") -> OpenCredit:
    return OpenCredit(UUID(int=number), reference, amount, currency)


def a_payment(
    number: int, reference: str = "R", amount: int = 100, currency: str = "CNY", shop: str = "acme"
) -> UnfundedPayment:
    return UnfundedPayment(UUID(int=number), shop, f"o-{number}", reference, amount, currency)


def pairs(credits_: list[OpenCredit], payments: list[UnfundedPayment]) -> list[tuple[int, int]]:
    return [
        (match.credit.credit_id.int, match.payment.payment_id.int)
        for match in decide_matches(credits_, payments)
    ]


def test_a_credit_confirms_the_payment_of_its_reference_amount_and_currency() -> None:
    assert pairs([a_credit(1)], [a_payment(9)]) == [(1, 9)]


@pytest.mark.parametrize(
    "credit",
    [
        a_credit(1, reference="r"),
        a_credit(1, amount=99),
        a_credit(1, amount=101),
        a_credit(1, currency="EUR"),
    ],
)
def test_a_credit_that_differs_in_anything_confirms_nothing(credit: OpenCredit) -> None:
    assert pairs([credit], [a_payment(9)]) == []


def test_of_two_credits_for_one_payment_the_first_confirms_it() -> None:
    assert pairs([a_credit(2), a_credit(1)], [a_payment(9)]) == [(1, 9)]


def test_a_credit_for_which_two_shops_wait_is_nobodys() -> None:
    assert pairs([a_credit(1)], [a_payment(8, shop="acme"), a_payment(9, shop="other")]) == []


def test_with_credits_for_all_who_wait_each_gets_one() -> None:
    payments = [a_payment(9, shop="other"), a_payment(8, shop="acme")]
    assert pairs([a_credit(2), a_credit(1)], payments) == [(1, 8), (2, 9)]


_few = st.integers(0, 2)


@given(st.lists(st.tuples(_few, _few), max_size=8), st.lists(st.tuples(_few, _few), max_size=8))
def test_whatever_comes_no_credit_and_no_payment_is_used_twice_and_the_order_does_not_matter(
    arrived: list[tuple[int, int]], waiting: list[tuple[int, int]]
) -> None:
    credits_ = [a_credit(n, f"R{ref}", 100 + amount) for n, (ref, amount) in enumerate(arrived)]
    payments = [
        a_payment(n, f"R{ref}", 100 + amount, shop=f"shop-{n}") for n, (ref, amount) in enumerate(waiting)
    ]
    found = pairs(credits_, payments)
    assert len({credit for credit, _ in found}) == len({payment for _, payment in found}) == len(found)
    for credit, payment in found:
        assert arrived[credit] == waiting[payment]
    assert sorted(pairs(credits_[::-1], payments[::-1])) == sorted(found)
    # Nobody is confirmed by half: of those who wait for the same, all are or none.
    confirmed = {payment for _, payment in found}
    in_groups = sorted(range(len(waiting)), key=waiting.__getitem__)
    for _, group in itertools.groupby(in_groups, waiting.__getitem__):
        assert len({payment in confirmed for payment in group}) == 1
