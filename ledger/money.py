"""Arithmetic on minor units. Whole numbers in, whole numbers out; nothing is ever lost to rounding."""

from collections.abc import Sequence

BASIS_POINTS = 10_000


def fee_minor(amount_minor: int, fee_bps: int) -> int:
    """Return the fee on an amount, `fee_bps` hundredths of a percent, rounded half to even."""
    whole, rest = divmod(amount_minor * fee_bps, BASIS_POINTS)
    twice = 2 * rest
    return whole + (twice > BASIS_POINTS or (twice == BASIS_POINTS and whole % 2 == 1))


def apportion(total_minor: int, weights: Sequence[int]) -> list[int]:
    """
    Split a total in proportion to weights by the largest remainder, so that the parts add up to it.

    Of equal remainders the earlier one wins, so the same input always gives the same parts.

    Raises:
        ValueError: a weight is negative, or all are zero while there is something to split.
    """
    if any(weight < 0 for weight in weights):
        raise ValueError("weights must not be negative")
    whole = sum(weights)
    if whole == 0:
        if total_minor:
            raise ValueError("nothing to split by: all weights are zero")
        return [0] * len(weights)
    quotients = [divmod(total_minor * weight, whole) for weight in weights]
    parts = [quotient for quotient, _ in quotients]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-quotients[index][1], index))
    for index in by_remainder[: total_minor - sum(parts)]:
        parts[index] += 1
    return parts


def format_minor(amount_minor: int, digits: int) -> str:
    """Show an amount with its currency's number of decimals; for people only, never parsed back."""
    sign = "-" if amount_minor < 0 else ""
    text = str(abs(amount_minor)).rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else f"{sign}{text}"
