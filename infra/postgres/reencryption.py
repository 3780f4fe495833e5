"""Move everything that is encrypted at rest to the current key, a few rows a transaction."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from infra.postgres.key_store import own_context, secret_context
from infra.security.destinations import destination_context
from infra.security.encryption import DecryptionFailed, Vault

_ROWS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """Where ciphertexts rest; `context` makes of a row's key what they are bound to."""

    what: str
    table: str
    column: str
    key: tuple[tuple[str, str], ...]  # name and type
    context: Callable[..., str]

    @property
    def key_names(self) -> str:
        return ", ".join(name for name, _ in self.key)


ENCRYPTED: Final = (
    EncryptedColumn("destinations", "destinations", "details_encrypted",
                    (("shop_id", "text"), ("seller_id", "text"), ("destination_id", "text")),
                    destination_context),
    EncryptedColumn("HMAC secrets", "sender_keys", "secret_encrypted", (("key_id", "uuid"),), secret_context),
    EncryptedColumn("Holdfast's private keys", "holdfast_keys", "private_encrypted", (("kid", "text"),),
                    own_context),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows of a column were moved to the current key, and which ones no key of ours opens."""

    what: str
    count: int
    unreadable: tuple[str, ...]


def reencrypt(engine: Engine, vault: Vault) -> Iterator[Moved]:
    """
    Re-encrypt what an old key has encrypted; each few rows are a transaction of their own.

    It can run beside the workers, be stopped at any time and run again. A row that does not open stays.
    """
    for column in ENCRYPTED:
        count = 0
        unreadable: list[str] = []
        last: Sequence[Any] | None = None
        while True:
            with engine.begin() as connection:
                rows = _lock_rows(connection, column, vault, after=last)
                moved = []
                for row in rows:
                    context = column.context(*row[:-1])
                    try:
                        moved.append((*row[:-1], vault.encrypt(vault.decrypt(row[-1], context), context)))
                    except DecryptionFailed:
                        unreadable.append("/".join(map(str, row[:-1])))
                _write_rows(connection, column, moved)
            count += len(moved)
            if len(rows) < _ROWS_AT_ONCE:
                break
            last = rows[-1][:-1]
        yield Moved(column.what, count, tuple(unreadable))


def count_under_other_keys(connection: Connection, vault: Vault) -> dict[str, int]:
    """Return how many rows of each kind are not encrypted under the current key; none is left out if 0."""
    counted = {
        column.what: int(
            connection.execute(
                text(f"SELECT count(*) FROM {column.table} WHERE {_is_under_another_key(column, vault)}"),
                {"prefix": vault.current_prefix},
            ).scalar_one()
        )
        for column in ENCRYPTED
    }
    return {what: count for what, count in counted.items() if count}


def _is_under_another_key(column: EncryptedColumn, vault: Vault) -> str:
    return f"substring({column.column} FOR {len(vault.current_prefix)}) <> :prefix"


def _lock_rows(
    connection: Connection, column: EncryptedColumn, vault: Vault, *, after: Sequence[Any] | None
) -> list[Sequence[Any]]:
    values: dict[str, object] = {"prefix": vault.current_prefix, "limit": _ROWS_AT_ONCE}
    beyond = ""
    if after is not None:
        values |= {f"after_{name}": value for (name, _), value in zip(column.key, after, strict=True)}
        beyond = f"AND ({column.key_names}) > ({', '.join(f':after_{name}' for name, _ in column.key)})"
    return [
        tuple(row)
        for row in connection.execute(
            text(f"""
                SELECT {column.key_names}, {column.column} FROM {column.table}
                WHERE {_is_under_another_key(column, vault)} {beyond}
                ORDER BY {column.key_names} LIMIT :limit FOR UPDATE
            """),
            values,
        )
    ]


def _write_rows(connection: Connection, column: EncryptedColumn, rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        return
    arrays = [*(f"CAST(:{name} AS {type_}[])" for name, type_ in column.key), "CAST(:moved AS bytea[])"]
    names = [name for name, _ in column.key]
    connection.execute(
        text(f"""
            UPDATE {column.table} SET {column.column} = given.moved
            FROM unnest({", ".join(arrays)}) AS given({column.key_names}, moved)
            WHERE ({", ".join(f"{column.table}.{name}" for name in names)})
                = ({", ".join(f"given.{name}" for name in names)})
        """),
        {name: [row[position] for row in rows] for position, name in enumerate([*names, "moved"])},
    )
