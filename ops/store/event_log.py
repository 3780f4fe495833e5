"""SQL for `holdfast events replay`: a shop's events in order, a page at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from infra.postgres.outbox import StoredEvent

_FIRST_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Span:
    """Events of one shop from `since` to before `until`."""

    shop_id: str
    since: datetime
    until: datetime


def begin_span(connection: Connection, shop_id: str, since: datetime) -> Span:
    """Close the span now, by the database's clock: what happens from here on is published anyway."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return Span(shop_id, since, now)


def count_events(connection: Connection, span: Span) -> int:
    """Return how many events the span holds."""
    return int(
        connection.execute(
            text("""
                SELECT count(*) FROM events
                WHERE shop_id = :shop AND occurred_at >= :since AND occurred_at < :until
            """),
            {"shop": span.shop_id, "since": span.since, "until": span.until},
        ).scalar_one()
    )


def read_pages(engine: Engine, span: Span, *, size: int) -> Iterator[list[StoredEvent]]:
    """Read the span's events, oldest first, in short transactions of their own."""
    at, after = span.since, _FIRST_ID
    while True:
        with engine.connect() as connection:
            page = [
                StoredEvent(row.event_id, row.shop_id, row.type, row.occurred_at, row.data)
                for row in connection.execute(
                    text("""
                        SELECT event_id, shop_id, type, occurred_at, CAST(data AS text) AS data FROM events
                        WHERE shop_id = :shop AND (occurred_at, event_id) > (:at, CAST(:after AS uuid))
                          AND occurred_at < :until
                        ORDER BY occurred_at, event_id LIMIT :size
                    """),
                    {"shop": span.shop_id, "at": at, "after": after, "until": span.until, "size": size},
                )
            ]
        if not page:
            return
        yield page
        at, after = page[-1].occurred_at, page[-1].event_id
