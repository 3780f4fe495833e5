"""SQL about a database that was restored: what it knows, and to which server its ledger belongs."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from infra.postgres.chain import is_progress_foreign, look_by_id_next
from infra.postgres.ledger_store import seal_postings
from ledger.ids import refund_attempt_id
from ops.recovery import GIVEN_UP, SETTLED_BY_HAND, KnownTransfer, OpenCredit


def belongs_to_another_server(connection: Connection) -> bool:
    """Whether the ledger names transaction ids that this server has not given out yet."""
    return bool(
        connection.execute(
            text("""
                SELECT horizon > pg_snapshot_xmax(pg_current_snapshot()) OR EXISTS (
                    SELECT FROM postings WHERE xact >= pg_snapshot_xmax(pg_current_snapshot()))
                FROM seal
            """)
        ).scalar_one()
    ) or is_progress_foreign(connection)


def reseal(connection: Connection) -> tuple[int, int]:
    """
    Make the ledger this server's own, in the caller's transaction: nobody else may be connected.

    What was posted stays as it is, to the last column that anybody reads; only the transaction id, which says
    when a server may count on a posting, becomes this transaction's. Then all subtotals are summed anew, and
    the relay's next round looks by id for what the hash chain lacks.

    Returns: how many postings named transactions of another server, and how many are sealed now.
    """
    # Not even the owner may lock or change postings, unless he lets himself: see infra/postgres/roles.py.
    connection.execute(text("GRANT UPDATE ON postings TO CURRENT_USER"))
    connection.execute(text("LOCK TABLE postings, subtotals, seal, chain_progress IN ACCESS EXCLUSIVE MODE"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("ALTER TABLE postings DISABLE TRIGGER USER"))
    changed = connection.execute(
        text("UPDATE postings SET xact = pg_current_xact_id() WHERE xact >= pg_current_xact_id()")
    ).rowcount
    connection.execute(text("REVOKE UPDATE ON postings FROM CURRENT_USER"))
    connection.execute(text("ALTER TABLE postings ENABLE TRIGGER USER"))
    connection.execute(text("DELETE FROM subtotals"))
    connection.execute(text("UPDATE seal SET horizon = '0'"))
    look_by_id_next(connection)
    # This transaction's own rows stay in the tail; the relay's next seal folds them in.
    return changed, seal_postings(connection)


def find_known_transfers(connection: Connection) -> list[KnownTransfer]:
    return [
        KnownTransfer(row.end_to_end_id, row.state, row.amount_minor, row.currency)
        for row in connection.execute(
            text("""
                SELECT replace(p.payout_id::text, '-', '') AS end_to_end_id,
                       coalesce(t.state, p.state) AS state, p.amount_minor, p.currency
                FROM (
                    SELECT payout_id, state, amount_minor, currency FROM withdrawals
                    UNION ALL
                    SELECT payout_id, state, amount_minor, currency FROM shop_payouts
                ) AS p LEFT JOIN transfers AS t ON t.payout_id = p.payout_id
            """)
        )
    ] + [known for row in connection.execute(text(_REFUNDS)) for known in _attempts(row)]


_REFUNDS = f"""
    SELECT r.refund_key, r.end_to_end_id, r.amount_minor, r.attempt,
           CASE WHEN r.state = 'failed' THEN '{GIVEN_UP}'
                WHEN r.state = 'settled' AND EXISTS (
                    SELECT FROM operator_actions AS o
                    WHERE o.action = 'refund_settled_by_hand'
                      AND o.details ->> 'end_to_end_id' = r.end_to_end_id) THEN '{SETTLED_BY_HAND}'
                ELSE r.state END AS state,
           coalesce(r.currency, '') AS currency
    FROM refunds AS r
"""


def _attempts(row: Row[Any]) -> Iterator[KnownTransfer]:
    """Each attempt has an id of its own at the bank, and those before the last were given up."""
    last = row.end_to_end_id or refund_attempt_id(row.refund_key, row.attempt)
    yield KnownTransfer(last, row.state, row.amount_minor, row.currency)
    for attempt in range(row.attempt):
        id_ = refund_attempt_id(row.refund_key, attempt)
        yield KnownTransfer(id_, GIVEN_UP, row.amount_minor, row.currency)


def find_open_credits(connection: Connection) -> list[OpenCredit]:
    return [
        OpenCredit(row.bank_reference, row.amount_minor, row.currency)
        for row in connection.execute(
            text("""
                SELECT bank_reference, amount_minor, currency FROM bank_credits
                WHERE payment_id IS NULL AND taken_back_at IS NULL ORDER BY received_at, credit_id
            """)
        )
    ]


def find_last_heard(connection: Connection) -> dict[str, datetime]:
    """Return when each shop and bank was heard last: what it said later is forgotten."""
    return {
        row.source: row.last_heard
        for row in connection.execute(
            text("SELECT source, max(received_at) AS last_heard FROM inbox GROUP BY source ORDER BY source")
        )
    }
