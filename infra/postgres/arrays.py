"""
Columns as PostgreSQL array literals.

A batch travels as one text a column. The driver would dump a list value by value in Python, which costs
more than everything else that is done for a row; joined here, it is one pass in C.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

# Stands between values while they are escaped all at once. Where a value holds it, each is escaped alone.
_SEPARATOR = "\x1f"


def uuid_array(values: Iterable[UUID | None]) -> str:
    """Write ids for `CAST(:ids AS uuid[])`."""
    return "{" + ",".join(["NULL" if value is None else f"{value.int:032x}" for value in values]) + "}"


def text_array(values: Sequence[str | None]) -> str:
    """Write text, JSON text or literals of any type for a cast to an array of it; None is NULL."""
    if not values:
        return "{}"
    try:
        joined = _SEPARATOR.join(values)  # type: ignore[arg-type]  # a None among them raises TypeError
    except TypeError:
        return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"
    if joined.count(_SEPARATOR) != len(values) - 1:
        return "{" + ",".join([_quoted(value) for value in values if value is not None]) + "}"
    return '{"' + _escaped(joined).replace(_SEPARATOR, '","') + '"}'


def array_of(values: Sequence[object]) -> str:
    """
    Write values of any one type that the tables know, NULL among them.

    Raises:
        TypeError: a type that has no literal here.
    """
    kinds = set(map(type, values))
    nullable = type(None) in kinds
    kinds.discard(type(None))
    if not kinds:
        return "{" + ",".join(["NULL"] * len(values)) + "}"
    if all(issubclass(kind, str) for kind in kinds):
        return text_array(values)  # type: ignore[arg-type]  # they are all str or None
    if len(kinds) > 1:
        raise TypeError(f"one column has values of {sorted(kind.__name__ for kind in kinds)}")
    (kind,) = kinds
    if kind is UUID:
        return uuid_array(values)  # type: ignore[arg-type]  # they are all UUID or None
    write = _LITERALS.get(kind)
    if write is None:
        raise TypeError(f"no array literal for {kind.__name__}")
    if nullable:
        return "{" + ",".join(["NULL" if value is None else write(value) for value in values]) + "}"
    return "{" + ",".join(map(write, values)) + "}"


def _quoted(value: str) -> str:
    return f'"{_escaped(value)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _bytes(value: bytes) -> str:
    return f'"\\\\x{value.hex()}"'


_LITERALS: dict[type, Callable[[Any], str]] = {
    int: str,
    float: repr,
    bool: lambda value: "t" if value else "f",
    datetime: datetime.isoformat,
    bytes: _bytes,
}
