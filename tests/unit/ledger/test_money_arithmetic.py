"""Whole numbers in, whole numbers out."""

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.money import fee_minor, format_minor

amounts = st.integers(1, 10**15)
rates = st.integers(0, 10_000)


@given(amounts, rates)
def test_a_fee_is_rounded_half_to_even(amount: int, bps: int) -> None:
    exact = Decimal(amount) * bps / 10_000
    assert fee_minor(amount, bps) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


@given(amounts, rates)
def test_a_fee_is_never_more_than_the_amount(amount: int, bps: int) -> None:
    assert 0 <= fee_minor(amount, bps) <= amount


@pytest.mark.parametrize(
    ("amount", "bps", "fee"),
    [
        (1, 4_999, 0),
        (1, 5_000, 0),
        (1, 5_001, 1),
        (3, 5_000, 2),
        (100, 250, 2),
        (300, 250, 8),
        (10**15, 1, 10**11),
    ],
)
def test_fees_at_the_edges_of_rounding(amount: int, bps: int, fee: int) -> None:
    assert fee_minor(amount, bps) == fee


@pytest.mark.parametrize(
    ("minor", "digits", "shown"),
    [
        (0, 2, "0.00"),
        (5, 2, "0.05"),
        (-5, 2, "-0.05"),
        (123_456, 2, "1234.56"),
        (123, 0, "123"),
        (1, 3, "0.001"),
    ],
)
def test_amounts_are_shown_with_their_currencys_digits(minor: int, digits: int, shown: str) -> None:
    assert format_minor(minor, digits) == shown
