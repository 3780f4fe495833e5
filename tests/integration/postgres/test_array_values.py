"""Whatever a column holds comes back from PostgreSQL as it went in."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from infra.postgres.arrays import array_of, text_array, uuid_array

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_TRICKY = st.sampled_from(["", "NULL", '"', "\\", '\\"', "{}", ",", " ", "\x1f", "a\x1fb", "\n", "ä€𝄞"])


@pytest.fixture(scope="module")
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def back(connection: Connection, type_: str, given: object) -> list[object]:
    return list(connection.execute(text(f"SELECT CAST(:given AS {type_}[])"), {"given": given}).scalar_one())


_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@_SETTINGS
@given(values=st.lists(st.one_of(_TEXT, _TRICKY, st.none())))
def test_text_comes_back(connection: Connection, values: Sequence[str | None]) -> None:
    assert back(connection, "text", text_array(values)) == values
    assert back(connection, "text", array_of(values)) == values


@_SETTINGS
@given(values=st.lists(st.one_of(st.uuids(), st.none())))
def test_ids_come_back(connection: Connection, values: Sequence[UUID | None]) -> None:
    assert back(connection, "uuid", uuid_array(values)) == values
    assert back(connection, "uuid", array_of(values)) == values
    assert back(connection, "uuid", uuid_array(value for value in values)) == values


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("bigint", [0, -1, 10**15, None]),
        ("numeric", [2**70, 1]),
        ("boolean", [True, False, None]),
        ("bytea", [b"", b'\0\xff\\"', None]),
        ("bytea", [b"", b"\0", b"ab"]),
        ("bytea", [b"\0" * 32, b"\xff" * 32]),
        ("timestamptz", [datetime(2026, 11, 23, 8, 0, 0, 1, UTC), None]),
        ("timestamptz", [None, datetime(2026, 11, 23, 8, tzinfo=ZoneInfo("UTC"))]),
        ("text", [None, None]),
        ("text", []),
    ],
)
def test_every_kind_comes_back(connection: Connection, type_: str, values: list[object]) -> None:
    assert back(connection, type_, array_of(values)) == values


_OFFSETS = st.timedeltas(min_value=timedelta(hours=-15), max_value=timedelta(hours=15)).map(
    lambda offset: timezone(timedelta(seconds=int(offset.total_seconds())))
)
_ZONES = st.one_of(st.sampled_from([UTC, ZoneInfo("UTC")]), _OFFSETS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.lists(st.datetimes(timezones=zones).filter(lambda at: 1 < at.year < 9999))
        for zones in (st.just(UTC), _ZONES)
    )
)
def test_times_keep_their_instant(connection: Connection, times: list[datetime]) -> None:
    """Also in a zone that is not whole minutes from UTC, as all were once."""
    assert back(connection, "timestamptz", array_of(times)) == times


@pytest.mark.parametrize("values", [[1, True], [1, "1"], [object()], [1.5, 1]])
def test_mixed_or_unknown_kinds_are_refused(values: list[object]) -> None:
    """`True` is an `int`; a flag must never become an amount."""
    with pytest.raises(TypeError):
        array_of(values)
