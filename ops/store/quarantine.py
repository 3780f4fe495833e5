"""SQL for `holdfast quarantine`: messages that could not be processed, and what operators do with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records: these ids, or all of a reason (and kind) that are open."""

    record_ids: tuple[UUID, ...] = ()
    reason: str | None = None
    kind: str | None = None

    def values(self) -> dict[str, object]:
        return {
            "ids": list(self.record_ids) if self.record_ids else None,
            "reason": self.reason,
            "kind": self.kind,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it came; headers are JSON, with bytes as {"base64": ...}."""

    record_id: UUID
    kind: str
    queue: str
    exchange: str
    routing_key: str
    content_type: str | None
    message_type: str | None
    headers: Mapping[str, Any]
    body: bytes
    reason: str
    state: str

    @property
    def details(self) -> dict[str, object]:
        """What a record of an action says of it."""
        return {"kind": self.kind, "queue": self.queue, "reason": self.reason, "bytes": len(self.body)}


_SELECTED = """
    (CAST(:ids AS uuid[]) IS NULL OR record_id = ANY(CAST(:ids AS uuid[])))
    AND (CAST(:reason AS text) IS NULL OR reason = :reason)
    AND (CAST(:kind AS text) IS NULL OR kind = :kind)
"""


def find_overflow(connection: Connection) -> list[dict[str, Any]]:
    """Return what was counted and not kept, the latest first."""
    return [
        dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
        for row in connection.execute(
            text("""
                SELECT sender, reason, messages, bytes, first_seen_at, last_seen_at
                FROM quarantine_overflow ORDER BY last_seen_at DESC, sender, reason
            """)
        )
    ]


def find_records(
    connection: Connection, selection: Selection, *, state: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return what a list shows of records, the latest first."""
    return [
        dict(row)
        for row in connection.execute(
            text(f"""
                SELECT record_id AS id, kind, queue, routing_key, reason, detail, state, times_seen,
                       first_seen_at, last_seen_at, octet_length(body) AS bytes
                FROM recorded_messages
                WHERE {_SELECTED} AND (CAST(:state AS text) IS NULL OR state = :state)
                ORDER BY last_seen_at DESC, record_id DESC LIMIT :limit
            """),
            {**selection.values(), "state": state, "limit": limit},
        ).mappings()
    ]


def find_record(connection: Connection, record_id: UUID) -> dict[str, Any] | None:
    """Return one record with everything that is kept of it."""
    row = (
        connection.execute(
            text("""
                SELECT record_id AS id, kind, state, reason, detail, queue, exchange, routing_key,
                       content_type, message_type, times_seen, first_seen_at, last_seen_at, closed_at,
                       headers, body
                FROM recorded_messages WHERE record_id = :id
            """),
            {"id": record_id},
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else dict(row)


def count_open(connection: Connection) -> dict[str, int]:
    """Return how many records of each kind wait for an operator."""
    return {
        row.kind: row.records
        for row in connection.execute(
            text("""
                SELECT kind, count(*) AS records FROM recorded_messages
                WHERE state = 'open' GROUP BY kind ORDER BY kind
            """)
        )
    }


def lock_open(
    connection: Connection, selection: Selection, *, after: UUID | None, limit: int
) -> list[Record]:
    """
    Lock open records in id order until the transaction ends.

    The recorder, which would count the same message once more, waits for that, and then opens the
    record again: what comes back after a replay is never hidden by the replay.
    """
    return [
        Record(
            row.record_id,
            row.kind,
            row.queue,
            row.exchange,
            row.routing_key,
            row.content_type,
            row.message_type,
            row.headers,
            bytes(row.body),
            row.reason,
            row.state,
        )
        for row in connection.execute(
            text(f"""
                SELECT record_id, kind, queue, exchange, routing_key, content_type, message_type, headers,
                       body, reason, state
                FROM recorded_messages
                WHERE {_SELECTED} AND state = 'open'
                  AND (CAST(:after AS uuid) IS NULL OR record_id > :after)
                ORDER BY record_id LIMIT :limit FOR UPDATE
            """),
            {**selection.values(), "after": after, "limit": limit},
        )
    ]


def close_records(connection: Connection, record_ids: Sequence[UUID], *, state: str) -> None:
    """Close locked records: replayed or discarded."""
    connection.execute(
        text("""
            UPDATE recorded_messages SET state = :state, closed_at = clock_timestamp()
            WHERE record_id = ANY(CAST(:ids AS uuid[]))
        """),
        {"ids": list(record_ids), "state": state},
    )
