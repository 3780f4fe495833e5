"""
Columns as PostgreSQL arrays.

A batch travels as one value a column. The driver would dump a list value by value in Python, which costs
more than everything else that is done for a row; joined here, it is one pass in C. Ids, hashes and JSON go
as PostgreSQL receives them (see `array_recv` in its arrayfuncs.c for the form), which spares both sides the
digits and the escaped quotes; everything else goes as text.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from operator import attrgetter
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from msgspec.json import Encoder
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

# Stands between values while they are escaped all at once. Where a value holds it, each is escaped alone.
_SEPARATOR = "\x1f"


class UuidArray(bytes):
    """A `uuid[]` as PostgreSQL receives it."""


class ByteaArray(bytes):
    """A `bytea[]` as PostgreSQL receives it."""


class JsonArray(bytes):
    """A `json[]` as PostgreSQL receives it."""


def _info(name: str) -> TypeInfo:
    info = psycopg.adapters.types.get(name)
    if info is None:
        raise LookupError(f"psycopg does not know the type {name}")
    return info


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> Buffer:
        return obj


class _UuidArrayDumper(_AsItIs):
    oid = _info("uuid").array_oid


class _ByteaArrayDumper(_AsItIs):
    oid = _info("bytea").array_oid


class _JsonArrayDumper(_AsItIs):
    oid = _info("json").array_oid


psycopg.adapters.register_dumper(UuidArray, _UuidArrayDumper)
psycopg.adapters.register_dumper(ByteaArray, _ByteaArrayDumper)
psycopg.adapters.register_dumper(JsonArray, _JsonArrayDumper)

# Number of dimensions, whether there are NULLs, the elements' type; then the one dimension's size and first
# index.
_ARRAY_HEADER = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)
_UUID_BYTES = 16


def uuid_array(ids: Iterable[UUID | None]) -> UuidArray:
    """Pack ids for `CAST(:ids AS uuid[])`."""
    values = list(ids)
    try:
        packed = _packed_ids(values)  # type: ignore[arg-type]  # a None among them raises AttributeError
    except AttributeError:
        return UuidArray(_array(_UUID_OID, [None if value is None else value.bytes for value in values]))
    return UuidArray(_array_of_one_length(_UUID_OID, _UUID_BYTES, packed))


def uuid_array_literal(values: Iterable[UUID]) -> str:
    """Write ids as text, for a column of arrays."""
    return "{" + b"".join(_packed_ids(values)).hex(",", _UUID_BYTES) + "}"


def _packed_ids(ids: Iterable[UUID]) -> list[bytes]:
    # What UUID's `bytes` does, without the call.
    return [id_.int.to_bytes(_UUID_BYTES, "big") for id_ in ids]


def _bytea_array(values: Sequence[bytes]) -> ByteaArray:
    length = len(values[0])
    if all(len(value) == length for value in values):
        return ByteaArray(_array_of_one_length(_BYTEA_OID, length, values))
    return ByteaArray(_array(_BYTEA_OID, values))


def json_array(texts: Sequence[str | None]) -> JsonArray:
    """Pack JSON texts, which as text would have every quote escaped."""
    return JsonArray(_array(_JSON_OID, [None if text is None else text.encode() for text in texts]))


def _array_of_one_length(oid: int, length: int, values: Sequence[bytes]) -> bytes:
    # The length before each is what joins them.
    return _LENGTH.pack(length).join([_header(oid, len(values), nulls=False), *values])


def _array(oid: int, values: Sequence[bytes | None]) -> bytes:
    elements = [_NULL if value is None else _LENGTH.pack(len(value)) + value for value in values]
    return b"".join([_header(oid, len(values), nulls=None in values), *elements])


def _header(oid: int, size: int, *, nulls: bool) -> bytes:
    return _ARRAY_HEADER.pack(1, nulls, oid, size, 1) if size else struct.pack(">iiI", 0, 0, oid)


_UUID_OID, _BYTEA_OID, _JSON_OID = _info("uuid").oid, _info("bytea").oid, _info("json").oid


def text_array(values: Sequence[str | None]) -> str:
    """Write text, JSON text or literals of any type for a cast to an array of it; None is NULL."""
    if not values:
        return "{}"
    try:
        joined = _SEPARATOR.join(values)  # type: ignore[arg-type]  # a None among them raises TypeError
    except TypeError:
        return _array_literal(values, _quoted)
    if joined.count(_SEPARATOR) != len(values) - 1:
        return "{" + ",".join([_quoted(value) for value in values if value is not None]) + "}"
    return '{"' + _escaped(joined).replace(_SEPARATOR, '","') + '"}'


def array_of(values: Sequence[object]) -> str | UuidArray | ByteaArray:
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
    pack = _PACKERS.get(kind)
    if pack is not None:
        return pack(values)
    if kind is bytes and not nullable:
        return _bytea_array(values)  # type: ignore[arg-type]  # they are all bytes
    write = _LITERALS.get(kind)
    if write is None:
        raise TypeError(f"no array literal for {kind.__name__}")
    return _array_literal(values, write)


def _time_array(values: Sequence[datetime | None]) -> str:
    try:
        in_utc = _UTC_ZONES.issuperset(map(_ZONE_OF, values))
    except (AttributeError, TypeError):  # a None among them, or a zone that can't be looked up
        in_utc = False
    if in_utc:
        # A JSON array of texts in double quotes is an array literal but for its brackets, and is written in a
        # tenth of what `isoformat` takes. Another zone's offset would lose its seconds in it.
        return "{" + _TIMES.encode(values).decode()[1:-1] + "}"
    return _array_literal(values, datetime.isoformat)


def _array_literal(values: Sequence[Any], write: Callable[[Any], str]) -> str:
    return "{" + ",".join(["NULL" if value is None else write(value) for value in values]) + "}"


def _utc_zones() -> frozenset[tzinfo]:
    """UTC as Python calls it, and as psycopg does where there is a zone database."""
    try:
        return frozenset({UTC, ZoneInfo("UTC")})
    except ZoneInfoNotFoundError:
        return frozenset({UTC})


def _quoted(value: str) -> str:
    return f'"{_escaped(value)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _bytes(value: bytes) -> str:
    return f'"\\\\x{value.hex()}"'


_TIMES = Encoder()
_ZONE_OF = attrgetter("tzinfo")
_UTC_ZONES = _utc_zones()
# Written all at once; every other kind value by value.
_PACKERS: dict[type, Callable[[Any], str | UuidArray]] = {UUID: uuid_array, datetime: _time_array}
_LITERALS: dict[type, Callable[[Any], str]] = {
    int: str,
    float: repr,
    bool: lambda value: "t" if value else "f",
    bytes: _bytes,
}
