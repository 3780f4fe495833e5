"""
From outbox rows to confirmed messages.

Used right after a commit by the process that committed, and by the relay for what was left over.
Events are signed here, at the moment of publishing, so that a row that waited still has a fresh
timestamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import structlog
from msgspec import UNSET, Raw
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from infra.crash_points import reach
from infra.postgres.outbox import CommandRow, EventsRow, OutboxRow, mark_published, postpone
from infra.rabbitmq.messages import Outgoing, PublishOutcome, command_message
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.topology import EVENTS_EXCHANGE
from infra.security.signatures import Signer
from schemas.envelope import BATCH_CONTENT_TYPE, SINGLE_CONTENT_TYPE, OwnEvent, encode_batch, encode_event

if TYPE_CHECKING:
    # OpenTelemetry is imported only where tracing is on.
    from infra.observability.tracing import Tracing

log = structlog.get_logger(__name__)

_POSTPONE_BASE_SECONDS = 0.5


class OutboxPublisher:
    """`signer` is asked at each use, so that a rotated key takes effect without a restart."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        signer: Callable[[], Signer],
        *,
        timeout_seconds: float,
        day_seconds: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._engine = engine
        self._publisher = publisher
        self._signer = signer
        self._timeout_seconds = timeout_seconds
        self._day_seconds = day_seconds
        self._clock = clock

    def publish_committed(self, rows: Sequence[OutboxRow]) -> None:
        """
        Publish what this process has just committed.

        Never raises: the rows are committed, and what does not get through here the relay publishes.
        """
        try:
            self.publish(rows)
        except Exception as error:  # noqa: BLE001 - see the docstring
            log.warning("outbox_left_to_relay", rows=len(rows), error=type(error).__name__)

    def publish(self, rows: Sequence[OutboxRow]) -> int:
        """
        Publish rows, wait for the broker's confirms and note them; return how many were confirmed.

        Rows that were refused (a shop's full queue, say), or of which no message can be made, wait a little
        longer each time and hold up no other.
        """
        if not rows:
            return 0
        now = self._clock()
        publishing = self._tracing.publishing(rows) if self._tracing is not None else None
        headers = publishing.headers if publishing is not None else {}
        traceparents = publishing.traceparents if publishing is not None else {}
        reach("outbox: before publish")
        messages = [
            self._compose(row, now, headers.get(position), traceparents) for position, row in enumerate(rows)
        ]
        answers = iter(
            self._publisher.publish(
                [message for message in messages if message is not None], timeout_s=self._timeout_seconds
            )
        )
        outcomes = [PublishOutcome.UNSAYABLE if message is None else next(answers) for message in messages]
        reach("outbox: confirmed")
        if publishing is not None:
            publishing.done(outcomes)
        confirmed = [
            row.outbox_id
            for row, outcome in zip(rows, outcomes, strict=True)
            if outcome is PublishOutcome.CONFIRMED
        ]
        refused = [
            (row, outcome)
            for row, outcome in zip(rows, outcomes, strict=True)
            if outcome is not PublishOutcome.CONFIRMED
        ]
        for row, outcome in refused:
            log.warning("outbox_row_not_published", outbox_id=row.outbox_id, outcome=outcome.value)
        try:
            with self._engine.begin() as connection:
                mark_published(connection, confirmed)
                if refused:
                    postpone(
                        connection,
                        [row.outbox_id for row, _ in refused],
                        base_seconds=_POSTPONE_BASE_SECONDS,
                    )
        except SQLAlchemyError as error:
            # They are published; without the note they are published once more, which changes nothing.
            log.warning("outbox_note_lost", rows=len(confirmed), error=type(error).__name__)
        return len(confirmed)

    def _compose(
        self, row: OutboxRow, now: datetime, header: str | None, traceparents: Mapping[UUID, str]
    ) -> Outgoing | None:
        """Make a row's message; None, with a line in the log, where there is none to be made."""
        try:
            return self._compose_or_fail(row, now, header, traceparents)
        except Exception:
            # Whatever it is, a relay that stumbles over one row for ever would publish nobody's.
            log.exception("outbox_row_unsayable", outbox_id=row.outbox_id)
            return None

    def _compose_or_fail(
        self, row: OutboxRow, now: datetime, header: str | None, traceparents: Mapping[UUID, str]
    ) -> Outgoing:
        if isinstance(row, CommandRow):
            return command_message(
                row.queue,
                row.command,
                row.arguments.encode(),
                delay_ms=row.delay_ms,
                day_seconds=self._day_seconds,
                traceparent=header,
            )
        return compose_events(row, self._signer(), now, traceparents)


def compose_events(
    row: EventsRow, signer: Signer, now: datetime, traceparents: Mapping[UUID, str] | None = None
) -> Outgoing:
    """
    Build the signed message of one shop's events: one in structured form, several as a batch.

    `traceparents` are those of the events that are traced, by event id.
    """
    traces = traceparents or {}
    events = [
        OwnEvent(
            id=event.event_id,
            type=event.type,
            time=event.occurred_at,
            # An id's hash is a call in Python, and tracing is seldom on.
            traceparent=traces.get(event.event_id, UNSET) if traces else UNSET,
            data=Raw(event.data.encode()),
        )
        for event in row.events
    ]
    if len(events) == 1:
        message_id, content_type = str(events[0].id), SINGLE_CONTENT_TYPE
        body = encode_event(events[0])
    else:
        message_id, content_type = str(uuid4()), BATCH_CONTENT_TYPE
        body = encode_batch(events)
    return Outgoing(
        exchange=EVENTS_EXCHANGE,
        routing_key=f"{row.shop_id}.{row.type}",
        body=body,
        content_type=content_type,
        headers=signer.headers(message_id, body, now),
        message_id=message_id,
    )
