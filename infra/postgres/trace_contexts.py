"""
Under which trace each event came in, so that what follows, in other processes and days later, joins it.

The event that began something is named by its rows (`shop_id`, `event_id`); so a command that says nothing
but ids, a lost one that the sweep sends again, and an outbox row that the relay takes over all find the
trace. Written and read only where tracing is on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.tables import trace_contexts

# What a field of a command names: its row, the event that began it, and the id under which a shop knows it.
_ROWS = {
    "payment_ids": """
        SELECT payment_id AS row_id, shop_id, event_id, order_id AS known_as FROM payments
        WHERE payment_id = ANY(CAST(:ids AS uuid[]))
    """,
    "hold_ids": """
        SELECT h.hold_id AS row_id, p.shop_id, p.event_id, p.order_id AS known_as
        FROM holds AS h JOIN payments AS p ON p.payment_id = h.payment_id
        WHERE h.hold_id = ANY(CAST(:ids AS uuid[]))
    """,
    "payout_ids": """
        SELECT payout_id AS row_id, shop_id, event_id, withdrawal_id AS known_as FROM withdrawals
        WHERE payout_id = ANY(CAST(:ids AS uuid[]))
    """,
    "attempt_ids": """
        SELECT attempt_id AS row_id, shop_id, event_id, event_id AS known_as FROM password_attempts
        WHERE attempt_id = ANY(CAST(:ids AS uuid[]))
    """,
    "refund_keys": """
        SELECT refund_key AS row_id, shop_id, event_id, refund_id AS known_as FROM refunds
        WHERE refund_key = ANY(CAST(:ids AS uuid[]))
    """,
}


@dataclass(frozen=True, slots=True)
class TracedRow:
    """A row whose beginning was traced."""

    shop_id: str
    known_as: str
    traceparent: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event of ours is about: the first of these that is given names it."""

    shop_id: str
    withdrawal_id: str | None = None
    order_id: str | None = None
    event_id: str | None = None


def keep_traces(connection: Connection, traces: Iterable[tuple[str, str, str]], *, now: datetime) -> None:
    """Keep (source, event id, traceparent); an event that comes again keeps its first trace."""
    # Losing one in a crash costs a gap in a trace, so nobody waits for the disk.
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    insert_rows(
        connection,
        trace_contexts,
        [
            {"source": source, "event_id": event_id, "traceparent": traceparent, "recorded_at": now}
            for source, event_id, traceparent in sorted(set(traces))
        ],
        skip_existing=True,
    )


def find_traces_of_rows(connection: Connection, named_by: str, ids: Sequence[UUID]) -> dict[UUID, TracedRow]:
    """Find under which trace rows began; `named_by` is the field of the command that names them."""
    rows = _ROWS.get(named_by)
    if rows is None or not ids:
        return {}
    return {
        row.row_id: TracedRow(row.shop_id, row.known_as, row.traceparent)
        for row in connection.execute(
            text(f"""
                SELECT row_id, shop_id, known_as, traceparent FROM ({rows}) AS named
                JOIN trace_contexts AS t
                  ON (t.source, t.event_id) = ('/shops/' || named.shop_id, named.event_id)
            """),
            {"ids": list(ids)},
        )
    }


def find_traces_of_subjects(connection: Connection, subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Find under which trace that began what events of ours are about."""
    asked = list(set(subjects))
    if not asked:
        return {}
    rows = connection.execute(
        text("""
            SELECT position, traceparent
            FROM unnest(CAST(:shops AS text[]), CAST(:withdrawals AS text[]), CAST(:orders AS text[]),
                        CAST(:events AS text[])) WITH ORDINALITY
                AS given(shop_id, withdrawal_id, order_id, given_event_id, position)
            LEFT JOIN withdrawals AS w USING (shop_id, withdrawal_id)
            LEFT JOIN payments AS p USING (shop_id, order_id)
            JOIN trace_contexts AS t ON t.source = '/shops/' || shop_id
              AND t.event_id = coalesce(w.event_id, p.event_id, given_event_id)
        """),
        {
            "shops": [subject.shop_id for subject in asked],
            "withdrawals": [subject.withdrawal_id for subject in asked],
            "orders": [subject.order_id for subject in asked],
            "events": [subject.event_id for subject in asked],
        },
    )
    return {asked[row.position - 1]: row.traceparent for row in rows}


def forget_traces(connection: Connection, *, older_than_days: int, limit: int) -> int:
    """Delete what no step will ask for any more; return how many."""
    return connection.execute(
        text("""
            DELETE FROM trace_contexts WHERE ctid IN (
                SELECT ctid FROM trace_contexts
                WHERE recorded_at < clock_timestamp() - make_interval(days => :days) LIMIT :limit
            )
        """),
        {"days": older_than_days, "limit": limit},
    ).rowcount
