"""Currencies, times and passwords: what every model is made of."""

import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from schemas.currencies import CURRENCY_DIGITS
from schemas.fields import (
    AmountMinor,
    ExternalId,
    Moment,
    Password,
    ProtectionDays,
    format_rfc3339,
    parse_rfc3339,
)

PASSWORD: TypeAdapter[SecretStr] = TypeAdapter(Password)

# ISO 4217, list one: all currencies whose minor unit is not a hundredth.
ZERO_DIGITS = [
    "BIF",
    "CLP",
    "DJF",
    "GNF",
    "ISK",
    "JPY",
    "KMF",
    "KRW",
    "PYG",
    "RWF",
    "UGX",
    "UYI",
    "VND",
    "VUV",
    "XAF",
    "XOF",
    "XPF",
]
THREE_DIGITS = ["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"]
FOUR_DIGITS = ["CLF", "UYW"]
NO_MINOR_UNIT = ["XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XDR", "XPD", "XPT", "XSU", "XTS", "XUA", "XXX"]


def test_currencies_have_the_digits_that_iso_4217_gives_them() -> None:
    assert sorted(code for code, digits in CURRENCY_DIGITS.items() if digits == 0) == ZERO_DIGITS
    assert sorted(code for code, digits in CURRENCY_DIGITS.items() if digits == 3) == THREE_DIGITS
    assert sorted(code for code, digits in CURRENCY_DIGITS.items() if digits == 4) == FOUR_DIGITS
    assert set(CURRENCY_DIGITS.values()) == {0, 2, 3, 4}
    assert all(CURRENCY_DIGITS[code] == 2 for code in ("EUR", "USD", "CNY", "GBP", "CHF", "INR", "BRL"))


def test_what_has_no_minor_unit_is_no_money() -> None:
    assert not set(NO_MINOR_UNIT) & set(CURRENCY_DIGITS)


def test_every_code_is_three_capital_letters() -> None:
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in CURRENCY_DIGITS)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_that_we_write_is_read_back_as_the_same_instant(instant: datetime) -> None:
    assert parse_rfc3339(format_rfc3339(instant)) == instant


@pytest.mark.parametrize("kind", [AmountMinor, ProtectionDays])
@pytest.mark.parametrize("value", ["5", 5.0, True, b"5", None], ids=repr)
def test_a_whole_number_is_strict_whatever_model_it_stands_in(kind: object, value: object) -> None:
    assert TypeAdapter(kind).validate_python(5) == 5
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize("value", [5, b"x", None, True], ids=repr)
def test_an_id_is_strict_whatever_model_it_stands_in(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ExternalId).validate_python(value)


def test_a_time_is_written_in_utc_with_a_z() -> None:
    cet = timezone(timedelta(hours=1))
    assert format_rfc3339(datetime(2026, 11, 23, 9, tzinfo=cet)) == "2026-11-23T08:00:00Z"
    assert format_rfc3339(datetime(2026, 11, 23, 8, 0, 0, 5, tzinfo=UTC)) == "2026-11-23T08:00:00.000005Z"


def test_digits_below_the_microsecond_are_cut_off_never_rounded_up() -> None:
    assert parse_rfc3339("2026-11-23T08:00:00.999999999Z").microsecond == 999_999


def test_a_naive_time_of_our_own_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="offset"):
        TypeAdapter(Moment).validate_python(datetime(2026, 11, 23, 8))  # noqa: DTZ001 - that is the mistake


@pytest.mark.parametrize(
    "password", ["x" * 8, "x" * 128, "pass wörd", "\U0001f511" * 8, "e\u0301" * 128, "\x00" * 8]
)
def test_a_password_of_8_to_128_code_points_after_nfc_is_taken(password: str) -> None:
    assert PASSWORD.validate_python(password).get_secret_value() == unicodedata.normalize("NFC", password)


@pytest.mark.parametrize(
    "password",
    [
        None,
        12_345_678,
        True,
        b"x" * 8,
        ["x"] * 8,
        "",
        "x" * 7,
        "x" * 129,
        "e\u0301" * 7,
        "x" * 100_000,
        "x" * 8 + "\ud800",
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_other_password_is_refused_without_being_shown(password: object) -> None:
    with pytest.raises(ValidationError) as caught:
        PASSWORD.validate_python(password)
    (error,) = caught.value.errors(include_input=False)
    assert error["msg"].startswith("Input should ")
    assert "xxxxxxx" not in error["msg"]
    assert caught.value.__cause__ is None


def test_one_password_has_one_spelling() -> None:
    composed, decomposed = "caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301"
    assert PASSWORD.validate_python(composed) == PASSWORD.validate_python(decomposed)


def test_a_password_is_not_in_its_repr() -> None:
    assert "correct horse" not in repr(PASSWORD.validate_python("correct horse"))
