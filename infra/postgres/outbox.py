"""
What must be published, written in the transaction that makes it true.

A row is either a command for one of our queues or a set of events of one shop and type. The process
that committed it publishes it at once; the relay takes what is left over. Published rows stay for a
while as a record and are then deleted; events stay.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Connection, text

from infra.postgres.arrays import uuid_array, uuid_array_literal
from infra.postgres.bulk import columns_of, insert_rows, insert_unless_known
from infra.postgres.tables import events as events_table
from infra.postgres.tables import outbox as outbox_table

# One message to a shop: the contract's bound on events, and its 1 MiB with room for the envelopes.
MAX_EVENTS_PER_MESSAGE = 256
MAX_DATA_BYTES_PER_MESSAGE = 512 * 1024
_ENVELOPE_BYTES = 300


class StoredEvent(Struct, frozen=True, gc=False):
    """An event to a shop as it is kept; `data` is JSON text and never changes."""

    event_id: UUID
    shop_id: str
    type: str
    occurred_at: datetime
    data: str


@dataclass(frozen=True, slots=True)
class CommandRow:
    """`delay_ms` counts from the moment at which the row was handed out: written, or leased by the relay."""

    queue: str
    command: str
    arguments: str
    delay_ms: int = 0
    outbox_id: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class EventsRow:
    shop_id: str
    type: str
    events: tuple[StoredEvent, ...]
    outbox_id: int = 0
    attempts: int = 0


OutboxRow = CommandRow | EventsRow


def write_events(
    connection: Connection, events: Sequence[StoredEvent], *, all_new: bool = False
) -> set[UUID]:
    """
    Keep events, no id of which stands here twice; return the ids that are known and stay as they are.

    With `all_new` a known id fails the transaction, see `Steps.carry_out`.
    """
    ordered = sorted(events, key=lambda event: event.event_id.int)
    left_out = insert_unless_known(
        connection,
        events_table,
        columns_of(StoredEvent, ordered),
        key=("event_id",),
        all_new=all_new,
        often_equal=("shop_id", "type", "occurred_at"),
    )
    return {row.event_id for row in left_out}


def find_events(connection: Connection, event_ids: Iterable[UUID]) -> list[StoredEvent]:
    """Read events by id; one that does not exist (yet) is left out."""
    ids = list(event_ids)
    if not ids:
        return []
    return [
        StoredEvent(row.event_id, row.shop_id, row.type, row.occurred_at, row.data)
        for row in connection.execute(
            text("""
                SELECT event_id, shop_id, type, occurred_at, CAST(data AS text) AS data FROM events
                WHERE event_id = ANY(CAST(:ids AS uuid[])) ORDER BY occurred_at, event_id
            """),
            {"ids": uuid_array(ids)},
        )
    ]


def group_events(events: Iterable[StoredEvent]) -> Iterator[EventsRow]:
    """Cut events into messages: one shop, one type, bounded in number and size."""
    by_kind: dict[tuple[str, str], list[StoredEvent]] = defaultdict(list)
    for event in events:
        by_kind[event.shop_id, event.type].append(event)
    for (shop_id, type_), same_kind in by_kind.items():
        chunk: list[StoredEvent] = []
        size = 0
        for event in same_kind:
            event_size = len(event.data) + _ENVELOPE_BYTES
            if chunk and (
                len(chunk) == MAX_EVENTS_PER_MESSAGE or size + event_size > MAX_DATA_BYTES_PER_MESSAGE
            ):
                yield EventsRow(shop_id, type_, tuple(chunk))
                chunk, size = [], 0
            chunk.append(event)
            size += event_size
        yield EventsRow(shop_id, type_, tuple(chunk))


def write_outbox(
    connection: Connection, rows: Sequence[OutboxRow], *, now: datetime, grace_seconds: float
) -> list[OutboxRow]:
    """
    Write rows in the caller's transaction and return them with their ids.

    The relay leaves them alone for `grace_seconds`, in which the caller publishes them itself.
    """
    written = insert_rows(
        connection,
        outbox_table,
        [_row(row, now, now + timedelta(seconds=grace_seconds)) for row in rows],
        returning=("outbox_id",),
    )
    return [_with_id(row, found.outbox_id) for row, found in zip(rows, written, strict=True)]


def mark_published(connection: Connection, outbox_ids: Sequence[int]) -> None:
    """
    Note that the broker confirmed these rows.

    Losing the note only publishes them again, so it does not wait for the disk.
    """
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    connection.execute(
        text("""
            UPDATE outbox SET published_at = clock_timestamp()
            WHERE outbox_id = ANY(CAST(:ids AS bigint[])) AND published_at IS NULL
        """),
        {"ids": list(outbox_ids)},
    )


def lease_unpublished(
    connection: Connection, *, limit: int, lease_seconds: float, max_bytes: int
) -> list[OutboxRow]:
    """
    Take the oldest rows that nobody has published, for `lease_seconds`; commit, then publish them.

    A delay is what is left of it: a row that waited here for hours still arrives when it was meant to.
    A relay that dies with a lease loses nothing: the rows come up again when it runs out.
    """
    leased = connection.execute(
        text("""
            WITH oldest AS (
                SELECT outbox_id, next_attempt_at,
                       coalesce(length(CAST(arguments AS text)), 600 * cardinality(event_ids)) AS bytes
                FROM outbox
                WHERE published_at IS NULL AND next_attempt_at <= clock_timestamp()
                ORDER BY next_attempt_at, outbox_id
                LIMIT :limit
                FOR UPDATE SKIP LOCKED
            ),
            bounded AS (
                SELECT outbox_id, sum(bytes) OVER (ORDER BY next_attempt_at, outbox_id) - bytes AS before
                FROM oldest
            )
            UPDATE outbox SET next_attempt_at = clock_timestamp() + make_interval(secs => :lease),
                              attempts = attempts + 1
            FROM bounded
            WHERE outbox.outbox_id = bounded.outbox_id AND bounded.before < :max_bytes
            RETURNING outbox.outbox_id, queue, command, CAST(arguments AS text) AS arguments,
                      -- Rounded up, so never early; never more than meant, should the clock be set back.
                      least(delay_ms, greatest(0, delay_ms - CAST(floor(
                          extract(epoch FROM clock_timestamp() - created_at) * 1000) AS bigint))) AS delay_ms,
                      shop_id, type, event_ids, attempts
        """),
        {"limit": limit, "lease": lease_seconds, "max_bytes": max_bytes},
    ).all()
    events = {
        event.event_id: event
        for event in find_events(connection, [id_ for row in leased for id_ in row.event_ids or ()])
    }
    return [_from_row(row, events) for row in sorted(leased, key=lambda row: row.outbox_id)]


def postpone(connection: Connection, outbox_ids: Sequence[int], *, base_seconds: float) -> None:
    """Let rows that the broker refused wait: twice as long each time, at most a minute."""
    connection.execute(
        text("""
            UPDATE outbox
            SET next_attempt_at = clock_timestamp()
                + make_interval(secs => least(60, :base * power(2, least(attempts, 10))))
            WHERE outbox_id = ANY(CAST(:ids AS bigint[])) AND published_at IS NULL
        """),
        {"ids": list(outbox_ids), "base": base_seconds},
    )


def delete_published(connection: Connection, *, retention_seconds: int, limit: int) -> int:
    """Delete rows that were published longer ago than the retention; returns how many."""
    return connection.execute(
        text("""
            DELETE FROM outbox WHERE outbox_id IN (
                SELECT outbox_id FROM outbox
                WHERE published_at < clock_timestamp() - make_interval(secs => :retention) LIMIT :limit
            )
        """),
        {"retention": retention_seconds, "limit": limit},
    ).rowcount


def _row(row: OutboxRow, now: datetime, next_attempt_at: datetime) -> dict[str, Any]:
    command = row if isinstance(row, CommandRow) else None
    events = row if isinstance(row, EventsRow) else None
    return {
        "queue": command and command.queue,
        "command": command and command.command,
        "arguments": command and command.arguments,
        "delay_ms": command.delay_ms if command else 0,
        "shop_id": events and events.shop_id,
        "type": events and events.type,
        "event_ids": events and uuid_array_literal(event.event_id for event in events.events),
        # The moment from which the delay was counted.
        "created_at": now,
        "next_attempt_at": next_attempt_at,
    }


def _with_id(row: OutboxRow, outbox_id: int) -> OutboxRow:
    if isinstance(row, CommandRow):
        return CommandRow(row.queue, row.command, row.arguments, row.delay_ms, outbox_id)
    return EventsRow(row.shop_id, row.type, row.events, outbox_id)


def _from_row(row: Any, events: dict[UUID, StoredEvent]) -> OutboxRow:  # noqa: ANN401 - a result row
    if row.queue is not None:
        return CommandRow(row.queue, row.command, row.arguments, row.delay_ms, row.outbox_id, row.attempts)
    return EventsRow(
        row.shop_id, row.type, tuple(events[id_] for id_ in row.event_ids), row.outbox_id, row.attempts
    )
