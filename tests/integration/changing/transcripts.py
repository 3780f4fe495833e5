"""
A release's statements with their values, written down while it works and carried out again later.

The text of a statement is kept once, its uses refer to it; values that JSON does not know carry their type's
name. Everything that a statement of the workers says about a row comes as a value from the process, so that
carrying it out again makes the same rows on another database.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, event


@dataclass(frozen=True, slots=True)
class Use:
    """A statement as it was carried out: its values, and how many rows it changed or returned."""

    statement: str
    values: dict[str, Any]
    rows: int


@dataclass(slots=True)
class Transcript:
    """Transactions that were committed, in order."""

    transactions: list[list[Use]] = field(default_factory=list)

    @property
    def statements(self) -> set[str]:
        return {use.statement for transaction in self.transactions for use in transaction}


@contextmanager
def written_down(engine: Engine) -> Iterator[Transcript]:
    """Write down what one thread does on this engine; what is rolled back is left out."""
    transcript = Transcript()
    running: list[Use] = []

    def note(_connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        running.append(Use(statement, dict(values), cursor.rowcount))

    def keep(_connection: Any) -> None:
        if running:
            transcript.transactions.append(running.copy())
        running.clear()

    def forget(_connection: Any) -> None:
        running.clear()

    listeners = [("after_cursor_execute", note), ("commit", keep), ("rollback", forget)]
    for name, listener in listeners:
        event.listen(engine, name, listener)
    try:
        yield transcript
    finally:
        for name, listener in listeners:
            event.remove(engine, name, listener)


def save(transcript: Transcript, path: Path) -> None:
    texts = sorted(transcript.statements)
    numbers = {statement: number for number, statement in enumerate(texts)}
    lines = [
        json.dumps([[numbers[use.statement], _plain(use.values)["dict"], use.rows] for use in transaction])
        for transaction in transcript.transactions
    ]
    path.write_text(json.dumps({"statements": texts}, indent=1) + "\n" + "\n".join(lines) + "\n")


def load(path: Path) -> Transcript:
    head, _, rest = path.read_text().partition("\n}\n")
    texts = json.loads(head + "}")["statements"]
    return Transcript([[_use(texts, *written) for written in json.loads(line)] for line in rest.splitlines()])


def _use(texts: list[str], number: int, values: dict[str, Any], rows: int) -> Use:
    return Use(texts[number], {name: _typed(value) for name, value in values.items()}, rows)


_WRITERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    UUID: ("uuid", str),
    datetime: ("time", datetime.isoformat),
    Decimal: ("decimal", str),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    dict: ("dict", lambda value: {name: _plain(inner) for name, inner in value.items()}),
}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    kind, write = next(writer for type_, writer in _WRITERS.items() if isinstance(value, type_))
    return {kind: write(value)}


_TYPES = {
    "uuid": UUID,
    "time": datetime.fromisoformat,
    "decimal": Decimal,
    "bytes": base64.b64decode,
    "dict": lambda inner: {name: _typed(value) for name, value in inner.items()},
}


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if isinstance(value, dict):
        [(kind, inner)] = value.items()
        return _TYPES[kind](inner)  # type: ignore[operator]
    return value
