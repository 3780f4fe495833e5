"""Many rows in one statement: columns travel as arrays, so a batch costs one round trip, not one a row."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple
from sqlalchemy import Connection, Table, TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSON

from infra.postgres.arrays import array_of, json_array

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy ships it untyped


def insert_rows(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    skip_existing: bool = False,
    returning: Sequence[str] = (),
) -> list[Any]:
    """
    Insert rows that all have the same columns.

    Rows are written in the order given: sort them by key, so that two transactions which insert the
    same keys wait for each other instead of deadlocking. With `skip_existing`, rows that meet a unique
    key are left out; whoever asks for that must compare the existing content, since the statement hides it.

    Returns:
        The `returning` columns of the rows that were written.
    """
    if not rows:
        return []
    columns = {name: _packed(table, name, [row[name] for row in rows]) for name in rows[0]}
    statement = _insert(table, tuple(columns), returning=tuple(returning), skip_existing=skip_existing)
    result = connection.execute(statement, columns)
    return list(result) if returning else []


def insert_unless_known(
    connection: Connection,
    table: Table,
    columns: Mapping[str, Sequence[Any]],
    *,
    key: Sequence[str],
    all_new: bool = False,
    often_equal: Sequence[str] = (),
) -> list[Any]:
    """
    Insert rows, given column by column, that meet no unique key; return the `key` of those left out.

    The hot path's way: where everything is new, the usual case, no row comes back. Rows are written in the
    order given, `key` must tell them apart, and whoever is told of rows left out must compare the existing
    content.

    With `all_new` nothing is asked, which costs PostgreSQL a good part less, and a row that meets a key
    fails the transaction. Columns that are `often_equal` then travel as one value where all their values
    are the same; each of them may double the number of statements to prepare, so name only those.

    Raises:
        sqlalchemy.exc.IntegrityError: with `all_new`, a key is known.
    """
    if not next(iter(columns.values())):
        return []
    if not all_new:
        statement = _insert_and_tell(table, tuple(columns), tuple(key))
        return list(
            connection.execute(statement, {name: _packed(table, name, columns[name]) for name in columns})
        )
    single = tuple(name for name in often_equal if _all_equal(columns[name]))
    connection.execute(
        _insert_new(table, tuple(columns), single),
        {
            name: values[0] if name in single else _packed(table, name, values)
            for name, values in columns.items()
        },
    )
    return []


def columns_of(kind: type[Struct], rows: Sequence[Struct]) -> dict[str, Sequence[Any]]:
    """Turn rows of one kind into its columns, one for each field."""
    names = kind.__struct_fields__
    return dict(
        zip(names, zip(*map(astuple, rows), strict=True) if rows else ((),) * len(names), strict=True)
    )


def _packed(table: Table, name: str, values: Sequence[Any]) -> object:
    return json_array(values) if type(table.c[name].type) is JSON else array_of(values)


def _all_equal(values: Sequence[Any]) -> bool:
    return values.count(values[0]) == len(values)


@lru_cache(maxsize=256)
def _insert(
    table: Table, names: tuple[str, ...], *, returning: tuple[str, ...] = (), skip_existing: bool = False
) -> TextClause:
    statement = _insert_from(table, names, _given(table, names))
    if skip_existing:
        statement += " ON CONFLICT DO NOTHING"
    if returning:
        statement += f" RETURNING {', '.join(returning)}"
    return text(statement)


@lru_cache(maxsize=256)
def _insert_new(table: Table, names: tuple[str, ...], single: tuple[str, ...]) -> TextClause:
    """
    Insert rows of which nothing is asked.

    Each array is unnested as a value of its own: one row at a time goes straight into the table, where a
    table of arrays would be written down, sorted and read again. PostgreSQL keeps the order.
    """
    values = ", ".join(
        f"CAST(:{name} AS {_type(table, name)})" if name in single else _unnested(table, name)
        for name in names
    )
    return text(f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values}")


@lru_cache(maxsize=256)
def _insert_and_tell(table: Table, names: tuple[str, ...], key: tuple[str, ...]) -> TextClause:
    keys = ", ".join(key)
    # EXCEPT hashes both sides. A join is planned for a handful of rows, whatever the arrays hold.
    return text(
        f"WITH given AS MATERIALIZED (SELECT * FROM {_given(table, names)}),"
        f" written AS ({_insert_from(table, names, 'given')} ON CONFLICT DO NOTHING RETURNING {keys})"
        f" SELECT {keys} FROM given EXCEPT SELECT {keys} FROM written"
    )


def _given(table: Table, names: tuple[str, ...]) -> str:
    arrays = ", ".join(f"CAST(:{name} AS {_array_type(table, name)}[])" for name in names)
    return f"unnest({arrays}) WITH ORDINALITY AS given({', '.join(names)}, position)"


def _insert_from(table: Table, names: tuple[str, ...], source: str) -> str:
    values = ", ".join(_of_its_type(table, name, name) for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} FROM {source} ORDER BY position"


def _unnested(table: Table, name: str) -> str:
    return _of_its_type(table, name, f"unnest(CAST(:{name} AS {_array_type(table, name)}[]))")


def _of_its_type(table: Table, name: str, value: str) -> str:
    is_array = isinstance(table.c[name].type, ARRAY)
    return f"CAST({value} AS {_type(table, name)})" if is_array else value


def _array_type(table: Table, name: str) -> str:
    # An array of arrays would have to be rectangular, so array columns travel as text, one literal a row.
    return "text" if isinstance(table.c[name].type, ARRAY) else _type(table, name)


def _type(table: Table, name: str) -> str:
    return table.c[name].type.compile(_DIALECT)
