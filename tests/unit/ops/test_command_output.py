"""What people and programs read."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from ops.output import money, print_json, print_table, printable


@pytest.mark.parametrize(
    ("amount_minor", "currency", "shown"),
    [
        (123456, "CNY", "1234.56 CNY"),
        (5, "EUR", "0.05 EUR"),
        (1234, "JPY", "1234 JPY"),
        (1234, "BHD", "1.234 BHD"),
        (-5, "EUR", "-0.05 EUR"),
        (0, "CNY", "0.00 CNY"),
    ],
)
def test_money_has_its_currencys_digits(amount_minor: int, currency: str, shown: str) -> None:
    assert money(amount_minor, currency) == shown


def test_json_keeps_integers_beyond_53_bits_and_writes_times_in_utc(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json(
        {"amount": 10**20, "at": datetime(2026, 11, 23, 8, tzinfo=UTC), "id": UUID(int=1)},
    )
    assert json.loads(capsys.readouterr().out) == {
        "amount": 10**20,
        "at": "2026-11-23T08:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
    }


def test_a_strangers_text_cannot_move_the_cursor_or_forge_a_line() -> None:
    assert printable("a\x1b[2J\r\nb\u2028c\u202e") == r"a\x1b[2J\r\nb\u2028c\u202e"


def test_a_table_shows_markup_as_it_is_and_cuts_no_id(capsys: pytest.CaptureFixture[str]) -> None:
    id_ = "x" * 64
    print_table(("id", "amount#"), [(f"[red]{id_}", 1), (None, True)])
    out = capsys.readouterr().out
    assert f"[red]{id_}" in out
    assert "yes" in out
