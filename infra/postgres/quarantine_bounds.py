"""
How much quarantine may hold: a stranger can send what he likes, and must not fill the disk with it.

Up to the bounds a message is kept whole; beyond them it is counted by sender and reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from infra.postgres.recorded_messages import RecordedMessage

# Any number; the same one for every relay, so that two of them at once don't fill the same room.
_ROOM_LOCK = 4_410_937_226

# The bounds by name.
ALL = "all"
SENDER = "sender"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most open records, and most bytes of them, in all and for one claimed sender."""

    records: int
    bytes: int
    records_per_sender: int
    bytes_per_sender: int


@dataclass(slots=True)
class _Used:
    records: int = 0
    bytes: int = 0

    def has_room(self, size: int, records: int, bytes_: int) -> bool:
        return self.records < records and self.bytes + size <= bytes_

    def take(self, size: int) -> None:
        self.records += 1
        self.bytes += size


@dataclass(frozen=True, slots=True)
class Sorted:
    """Which messages are kept whole, and which are only counted, each with the bound that it met."""

    kept: tuple[RecordedMessage, ...]
    counted: tuple[tuple[RecordedMessage, str], ...]


def known_senders(connection: Connection, claimed: Sequence[str]) -> set[str]:
    """Return which of these, as `shops/acme` or `banks/sim`, are registered."""
    found = connection.execute(
        text("""
            SELECT 'shops/' || shop_id AS sender FROM shops WHERE 'shops/' || shop_id = ANY(:claimed)
            UNION ALL
            SELECT 'banks/' || bank_id FROM banks WHERE 'banks/' || bank_id = ANY(:claimed)
        """),
        {"claimed": list(claimed)},
    )
    return {row.sender for row in found}


def sort_by_room(connection: Connection, messages: Sequence[RecordedMessage], bounds: Bounds) -> Sorted:
    """
    Decide in the caller's transaction what of quarantine is kept; other kinds always are.

    A message that is on record already takes no more room. What operators have closed counts no more.
    """
    bounded = [message for message in messages if message.kind == "quarantine"]
    if not bounded:
        return Sorted(tuple(messages), ())
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ROOM_LOCK})
    fingerprints = {
        bytes(row.fingerprint)
        for row in connection.execute(
            text("SELECT fingerprint FROM recorded_messages WHERE fingerprint = ANY(:given)"),
            {"given": [message.fingerprint for message in bounded]},
        )
    }
    used = {
        row.sender: _Used(row.records, int(row.bytes))
        for row in connection.execute(
            text("""
                SELECT sender, count(*) AS records,
                       sum(length(body) + length(CAST(headers AS text))) AS bytes
                FROM recorded_messages WHERE kind = 'quarantine' AND state = 'open' GROUP BY sender
            """)
        )
    }
    in_all = _Used(sum(one.records for one in used.values()), sum(one.bytes for one in used.values()))
    kept: list[RecordedMessage] = []
    counted: list[tuple[RecordedMessage, str]] = []
    for message in messages:
        if message.kind != "quarantine" or message.fingerprint in fingerprints:
            kept.append(message)
            continue
        of_sender = used.setdefault(message.sender, _Used())
        if not in_all.has_room(message.size, bounds.records, bounds.bytes):
            counted.append((message, ALL))
        elif not of_sender.has_room(message.size, bounds.records_per_sender, bounds.bytes_per_sender):
            counted.append((message, SENDER))
        else:
            of_sender.take(message.size)
            in_all.take(message.size)
            fingerprints.add(message.fingerprint)
            kept.append(message)
    return Sorted(tuple(kept), tuple(counted))


def count_overflow(connection: Connection, messages: Sequence[RecordedMessage], *, now: datetime) -> None:
    """Count messages that are not kept; one row for each known sender and reason."""
    by_row: dict[tuple[str, str], list[RecordedMessage]] = {}
    for message in messages:
        by_row.setdefault((message.sender, message.reason), []).append(message)
    for (sender, reason), same in sorted(by_row.items()):
        connection.execute(
            text("""
                INSERT INTO quarantine_overflow AS old
                    (sender, reason, messages, bytes, first_seen_at, last_seen_at, last_fingerprint)
                VALUES (:sender, :reason, :messages, :bytes, :now, :now, :fingerprint)
                ON CONFLICT (sender, reason) DO UPDATE
                SET messages = old.messages + excluded.messages, bytes = old.bytes + excluded.bytes,
                    last_seen_at = excluded.last_seen_at, last_fingerprint = excluded.last_fingerprint
            """),
            {
                "sender": sender,
                "reason": reason,
                "messages": len(same),
                "bytes": sum(message.size for message in same),
                "now": now,
                "fingerprint": same[-1].fingerprint,
            },
        )


def delete_discarded(connection: Connection, *, older_than_days: int, limit: int) -> int:
    """Delete messages of quarantine that operators discarded so long ago; who did it stays on record."""
    return connection.execute(
        text("""
            DELETE FROM recorded_messages WHERE record_id IN (
                SELECT record_id FROM recorded_messages
                WHERE kind = 'quarantine' AND state = 'discarded'
                  AND closed_at < clock_timestamp() - make_interval(days => :days) LIMIT :limit)
        """),
        {"days": older_than_days, "limit": limit},
    ).rowcount
