"""Arithmetic on minor units. Whole numbers in, whole numbers out."""

BASIS_POINTS = 10_000


def fee_minor(amount_minor: int, fee_bps: int) -> int:
    """Return the fee on an amount, `fee_bps` hundredths of a percent, rounded half to even."""
    whole, rest = divmod(amount_minor * fee_bps, BASIS_POINTS)
    twice = 2 * rest
    return whole + (twice > BASIS_POINTS or (twice == BASIS_POINTS and whole % 2 == 1))


def format_minor(amount_minor: int, digits: int) -> str:
    """Show an amount with its currency's number of decimals; for people only, never parsed back."""
    sign = "-" if amount_minor < 0 else ""
    text = str(abs(amount_minor)).rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else f"{sign}{text}"
