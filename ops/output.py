"""What commands print: JSON for programs, tables for people; no stranger's text can forge a line."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledger.money import format_minor
from schemas.currencies import CURRENCY_DIGITS
from schemas.fields import format_rfc3339

# Redirected output has no width; nothing in it should be cut.
_REDIRECTED_WIDTH = 400
_MAX_CELL = 300


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write one JSON document; times as RFC 3339 in UTC, ids as text."""
    json.dump(value, sys.stdout, indent=2, default=_encode)
    sys.stdout.write("\n")


def say(sentence: str) -> None:
    """Write one line for people."""
    sys.stdout.write(printable(sentence) + "\n")


def complain(sentence: str) -> None:
    """Write one line about what went wrong, to standard error."""
    sys.stderr.write(f"holdfast: {printable(sentence)}\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """Write a table; columns whose name ends in `#` are numbers and lean right."""
    table = Table(box=SIMPLE, title=title, title_justify="left", pad_edge=False, title_style="bold")
    for column in columns:
        table.add_column(
            column.removesuffix("#"),
            justify="right" if column.endswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=_REDIRECTED_WIDTH)
    with console.capture() as captured:
        console.print(table)
    # Rich pads every line to the table's width; in a file or a pipe that is noise.
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def money(amount_minor: int, currency: str) -> str:
    """Show an amount as people write it in that currency."""
    return f"{format_minor(amount_minor, CURRENCY_DIGITS.get(currency, 0))} {currency}"


def moment(instant: datetime | None) -> str:
    """Show a time in UTC, as precise as it is known: order matters more than looks."""
    return (
        "" if instant is None else format_rfc3339(instant.astimezone(UTC)).replace("T", " ").replace("Z", "")
    )


def printable(text: str) -> str:
    """Escape whatever moves a cursor, breaks a line or colours a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _cell(value: object) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, datetime):
        return Text(moment(value))
    text = printable(str(value))
    return Text(text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…")


def _encode(value: object) -> object:
    if isinstance(value, datetime):
        return format_rfc3339(value)
    return str(value)
