"""Many rows in one statement: columns travel as arrays, so a batch costs one round trip, not one a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY

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
    names = list(rows[0])
    # An array of arrays would have to be rectangular, so array columns travel as text, one literal a row.
    types = {name: table.c[name].type for name in names}
    arrays = ", ".join(
        f"CAST(:{name} AS {'text' if isinstance(type_, ARRAY) else type_.compile(_DIALECT)}[])"
        for name, type_ in types.items()
    )
    values = ", ".join(
        f"CAST({name} AS {type_.compile(_DIALECT)})" if isinstance(type_, ARRAY) else name
        for name, type_ in types.items()
    )
    columns = ", ".join(names)
    statement = (
        f"INSERT INTO {table.name} ({columns}) SELECT {values}"
        f" FROM unnest({arrays}) WITH ORDINALITY AS given({columns}, position) ORDER BY position"
    )
    if skip_existing:
        statement += " ON CONFLICT DO NOTHING"
    if returning:
        statement += f" RETURNING {', '.join(returning)}"
    result = connection.execute(text(statement), {name: [row[name] for row in rows] for name in names})
    return list(result) if returning else []
