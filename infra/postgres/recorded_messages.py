"""Messages that could not be processed, kept with everything needed to look at and replay them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, text

from ledger.ids import new_id
from schemas.envelope import SINGLE_CONTENT_TYPE, Envelope

Kind = Literal["quarantine", "dead_letter", "orphan"]


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """One message as it came. Headers hold JSON values only; bytes are shown as text."""

    kind: Kind
    queue: str
    exchange: str
    routing_key: str
    body: bytes
    reason: str
    detail: str
    content_type: str | None = None
    message_type: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    # Whom it claims to come from, as `shops/acme`; empty where nothing was claimed.
    sender: str = ""

    @property
    def size(self) -> int:
        """About what it takes to keep it, in bytes."""
        return len(self.body) + len(json.dumps(self.headers))

    @property
    def fingerprint(self) -> bytes:
        """Tell the same message, failing for the same reason, from another one."""
        digest = hashlib.sha256()
        signature = str(self.headers.get("webhook-signature", ""))
        for part in (self.kind, self.queue, self.reason, self.routing_key, signature):
            digest.update(part.encode() + b"\x1f")
        digest.update(self.body)
        return digest.digest()


def record_messages(connection: Connection, messages: Sequence[RecordedMessage], *, now: datetime) -> None:
    """Keep messages in the caller's transaction; one that is known is counted, and opened again."""
    unique = {message.fingerprint: message for message in messages}
    times = {
        fingerprint: sum(message.fingerprint == fingerprint for message in messages) for fingerprint in unique
    }
    for fingerprint, message in sorted(unique.items()):
        # One by one: these are rare and may be a megabyte each.
        connection.execute(
            text("""
                INSERT INTO recorded_messages AS old
                    (record_id, kind, queue, exchange, routing_key, content_type, message_type, headers,
                     body, fingerprint, reason, detail, sender, times_seen, first_seen_at,
                     last_seen_at)
                VALUES (:record_id, :kind, :queue, :exchange, :routing_key, :content_type, :message_type,
                        CAST(:headers AS jsonb), :body, :fingerprint, :reason, :detail, :sender, :times,
                        :now, :now)
                ON CONFLICT (fingerprint) DO UPDATE
                SET times_seen = old.times_seen + excluded.times_seen,
                    last_seen_at = excluded.last_seen_at,
                    state = CASE old.state WHEN 'discarded' THEN 'discarded' ELSE 'open' END,
                    closed_at = CASE old.state WHEN 'discarded' THEN old.closed_at END
            """),
            {
                "record_id": new_id(),
                "kind": message.kind,
                "queue": message.queue,
                "exchange": message.exchange,
                "routing_key": message.routing_key,
                "content_type": message.content_type,
                "message_type": message.message_type,
                # PostgreSQL's JSON knows no NUL.
                "headers": json.dumps(message.headers).replace("\\u0000", "\\ufffd"),
                "body": message.body,
                "fingerprint": fingerprint,
                "reason": message.reason,
                "detail": message.detail.replace("\x00", "\ufffd"),
                "sender": message.sender,
                "times": times[fingerprint],
                "now": now,
            },
        )


def record_refused_event(
    connection: Connection, envelope: Envelope, *, reason: str, detail: str, now: datetime
) -> None:
    """Keep an authentic event that was refused and has nobody to tell (a bank's)."""
    body = json.dumps(
        {
            "specversion": "1.0",
            "id": envelope.id,
            "source": envelope.source,
            "type": envelope.type,
            "data": envelope.data,
        }
    ).encode()
    message = RecordedMessage(
        kind="quarantine",
        queue="",
        exchange="holdfast.inbound",
        routing_key=envelope.type,
        body=body,
        reason=reason,
        detail=detail,
        content_type=SINGLE_CONTENT_TYPE,
    )
    record_messages(connection, [message], now=now)
