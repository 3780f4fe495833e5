"""Books that have a past: postings that were booked before, and holds that wait for their time."""

from datetime import datetime
from itertools import pairwise
from typing import LiteralString
from uuid import UUID

import psycopg
from orders import CURRENCY, SHOP
from sqlalchemy import create_engine

from infra.postgres.chain import chain_postings
from infra.postgres.ledger_store import seal_postings

_SELLERS = 10_000
_CHUNK = 250_000

# Ids in the order of time, as ours are, computed in the database so that ten millions take minutes.
_ID = (
    "CAST(lpad(to_hex({base} + i), 12, '0') || '8' || substr(md5('{kind}' || i), 1, 3)"
    " || '8' || substr(md5('{kind}' || i), 4, 15) AS uuid)"
)
_BASE_MS = 1_750_000_000_000

_POSTINGS = """
    INSERT INTO postings (posting_id, kind, cause_id, shop_id, seller_id, currency, debit, credit,
                          amount_minor, booked_at)
    SELECT {id}, '{kind}', {cause}, %(shop)s, {seller}, %(currency)s, '{debit}', '{credit}', 100, now()
    FROM generate_series(CAST(%(first)s AS int), CAST(%(last)s AS int)) AS i
"""


_MONTHS = 12
# An id begins with 48 bits of milliseconds.
_BITS_BEHIND_TIME = 80
_VIEWS_OF_POSTINGS = """
    SELECT DISTINCT c.relname, pg_get_viewdef(c.oid) FROM pg_depend AS d
    JOIN pg_rewrite AS r ON d.classid = CAST('pg_rewrite' AS regclass) AND r.oid = d.objid
    JOIN pg_class AS c ON c.oid = r.ev_class
    WHERE d.refobjid = CAST('postings' AS regclass)
"""
_TRIGGERS_OF_POSTINGS = """
    SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger
    WHERE tgrelid = CAST('postings' AS regclass) AND NOT tgisinternal
"""


def _id(kind: str) -> str:
    return _ID.format(base=_BASE_MS, kind=kind)


def _postings(kind: str, cause: str, seller: str, debit: str, credit: str) -> str:
    return _POSTINGS.format(
        id=_id(kind), kind=kind, cause=_id(cause), seller=seller, debit=debit, credit=credit
    )


_SELLER = f"'s-' || i %% {_SELLERS}"
_RECEIVED = _postings("payment_received", "payment", "''", "incoming", "received")
_HELD = _postings("held", "hold", _SELLER, "received", "held")
_PAYMENTS = f"""
    INSERT INTO payments (payment_id, shop_id, order_id, event_id, content_hash, state, buyer_id,
                          amount_minor, currency, bank_reference, splits, protection_days, paid_at,
                          received_at)
    SELECT {_id("payment")}, %(shop)s, 'old-' || i, 'old-' || i, sha256(CAST(CAST(i AS text) AS bytea)),
           'received', 'b', 100, %(currency)s, 'OLD' || i,
           json_build_array(json_build_object('seller_id', {_SELLER}, 'amount', 100)), 3, now(), now()
    FROM generate_series(CAST(%(first)s AS int), CAST(%(last)s AS int)) AS i
"""
_HOLDS = f"""
    INSERT INTO holds (hold_id, payment_id, shop_id, order_id, seller_id, amount_minor, fee_bps, currency,
                       protection_days, day_seconds, held_at, release_at)
    SELECT {_id("hold")}, {_id("payment")}, %(shop)s, 'old-' || i, {_SELLER}, 100, 0, %(currency)s, 3,
           CAST(%(day_seconds)s AS int), at - 3 * make_interval(secs => CAST(%(day_seconds)s AS int)), at
    FROM generate_series(CAST(%(first)s AS int), CAST(%(last)s AS int)) AS i,
         LATERAL (
             -- A thousand moments, so that one alarm is for many holds.
             SELECT CAST(%(due)s AS timestamptz)
                    + make_interval(secs => CAST(%(spread)s AS float8) * (i %% 1000) / 1000.0)
         ) AS due(at)
    ORDER BY i
"""


def book_past(database_url: str, postings: int) -> None:
    """Book so many postings, two an order, all sealed and chained."""
    if not postings:
        return
    with psycopg.connect(database_url, autocommit=True) as database:
        for first, last in _chunks(postings // 2):
            values = {"shop": SHOP, "currency": CURRENCY, "first": first, "last": last}
            database.execute(_RECEIVED, values)
            database.execute(_HELD, values)
        database.execute("VACUUM ANALYZE postings")
    _seal(database_url)


def partition_postings(database_url: str, postings: int) -> None:
    """
    Put a table of the same columns, keys and indexes in the place of `postings`, partitioned by time.

    By `posting_id`, which begins with its order's time, and is only unique if it is the partitions' key.
    Twelve partitions for what `book_past` books, as months of a year, and one for what comes now.
    """
    with psycopg.connect(database_url) as database:
        views = _definitions(database, _VIEWS_OF_POSTINGS)
        triggers = _definitions(database, _TRIGGERS_OF_POSTINGS)
        database.execute("ALTER TABLE postings RENAME TO postings_before")
        database.execute(
            "CREATE TABLE postings (LIKE postings_before INCLUDING ALL) PARTITION BY RANGE (posting_id)"
        )
        edges = [_BASE_MS + postings // 2 * month // _MONTHS + 1 for month in range(1, _MONTHS + 1)]
        bounds = ["MINVALUE", *(f"'{UUID(int=edge << _BITS_BEHIND_TIME)}'" for edge in edges), "MAXVALUE"]
        for number, (first, end) in enumerate(pairwise(bounds)):
            database.execute(
                f"CREATE TABLE postings_{number} PARTITION OF postings FOR VALUES FROM ({first}) TO ({end})"
            )
        for name, definition in views:
            database.execute(f"CREATE OR REPLACE VIEW {name} AS {definition}")
        for _, definition in triggers:
            database.execute(definition)
        # Refused if anything still belongs to it.
        database.execute("DROP TABLE postings_before")


def _definitions(database: psycopg.Connection, query: LiteralString) -> list[tuple[str, str]]:
    return [(str(name), str(definition)) for name, definition in database.execute(query)]


def book_holds(
    database_url: str, holds: int, *, due: datetime, spread_seconds: float, day_seconds: int
) -> None:
    """Book orders with one hold each that come due within `spread_seconds` after `due`."""
    with psycopg.connect(database_url, autocommit=True) as database:
        for first, last in _chunks(holds):
            values = {
                "shop": SHOP,
                "currency": CURRENCY,
                "first": first,
                "last": last,
                "due": due,
                "spread": spread_seconds,
                "day_seconds": day_seconds,
            }
            for statement in (_PAYMENTS, _RECEIVED, _HOLDS, _HELD):
                database.execute(statement, values)
        database.execute("VACUUM ANALYZE")
    _seal(database_url)


def _seal(database_url: str) -> None:
    """Fold what was booked into the subtotals, and chain it, as the relay would have done long ago."""
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    try:
        with engine.begin() as connection:
            seal_postings(connection)
        chained = 1
        while chained:
            with engine.begin() as connection:
                chained = chain_postings(connection)
    finally:
        engine.dispose()


def _chunks(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + _CHUNK - 1, count)) for first in range(1, count + 1, _CHUNK)]
