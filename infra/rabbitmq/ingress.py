"""
The verification unit: from a raw delivery to authentic events, or to quarantine.

Nothing here touches the database for a message before its signature is checked, but for the keys of
a sender that it names, which are cached.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import structlog
from msgspec import Struct
from prometheus_client import Histogram

from infra.crash_points import reach
from infra.observability.metrics import INBOUND_WAIT_SECONDS, QUARANTINED, observe_alike
from infra.postgres.key_store import KeyStore, SenderRecord
from infra.rabbitmq.messages import (
    FIRST_ROUTING_KEY_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    Delivery,
    Outgoing,
    PublishOutcome,
    foreign_headers,
)
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.topology import QUARANTINE_QUEUE, UNROUTED_EXCHANGE
from infra.security.signatures import SignatureRefused, verify
from schemas.envelope import Envelope, MalformedMessage, parse_message
from schemas.event_data import EventData
from schemas.inbound import INBOUND, InvalidData, hash_of_raw, validate_data
from schemas.one_pass import UsualOrder, read_orders_paid
from schemas.order_paid import OrderPaid
from schemas.reasons import QuarantineReason

log = structlog.get_logger(__name__)

DETAIL_HEADER = "holdfast-detail"

# What another key of the sender might have made good.
_OF_KEYS = frozenset({QuarantineReason.BAD_SIGNATURE, QuarantineReason.WRONG_SCOPE})


class QuarantineUnavailable(Exception):
    """The broker did not take a message into quarantine, so it stays unacknowledged where it is."""


class InboundEvent(Struct, frozen=True, gc=False):
    """
    One authentic event.

    `sender_id` is the shop or bank that signed it; `content_hash` tells same from other content.
    """

    sender_kind: str
    sender_id: str
    sender_active: bool
    envelope: Envelope
    data: EventData | UsualOrder | InvalidData
    content_hash: bytes

    @property
    def subject_id(self) -> str:
        """The id that a reply names, where `data` itself is not valid."""
        return (self.data.subject_id if isinstance(self.data, InvalidData) else None) or ""

    @property
    def key(self) -> tuple[str, str]:
        return self.envelope.source, self.envelope.id


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: QuarantineReason
    detail: str


class _Read(Struct, frozen=True, gc=False):
    """
    A message of the right form, whoever sent it.

    `orders` are what its envelopes carry where it was read in one pass, else None.
    """

    sender: tuple[str, str]
    scope: str | None
    envelopes: Sequence[Envelope]
    orders: Sequence[UsualOrder] | None


class _Batch(Struct, frozen=True):
    """
    Deliveries that are judged together.

    They came before a moment of the monotonic clock, and `now` is when they are judged. `sent` tells of each
    message that is seen for the first time its queue and the second in which it was signed.
    """

    came_before: float
    now: datetime
    sent: list[tuple[str, int]]


def _read(delivery: Delivery) -> _Read | _Refusal:
    """Read a message as far as that needs no key."""
    if delivery.routing_key == OrderPaid.TYPE:
        quick = read_orders_paid(delivery.body, delivery.content_type)
        if quick is not None:
            return _Read(quick.sender, OrderPaid.SCOPE, quick.envelopes, quick.orders)
    try:
        envelopes = parse_message(delivery.body, delivery.content_type)
    except MalformedMessage as error:
        return _Refusal(error.reason, error.detail)
    first = envelopes[0]
    model = INBOUND.get(first.type)
    if model is None:
        return _Refusal(QuarantineReason.UNKNOWN_TYPE, f"type {first.type} is none that we know")
    if delivery.routing_key != first.type:
        detail = f"routing key is not the type {first.type}"
        return _Refusal(QuarantineReason.ROUTING_KEY_MISMATCH, detail)
    sender = first.sender
    if sender[0] != ("bank" if model.SCOPE is None else "shop"):
        return _Refusal(QuarantineReason.UNKNOWN_SENDER, f"{first.type} does not come from a {sender[0]}")
    return _Read(sender, model.SCOPE, envelopes, None)


class Ingress:
    """
    Judges deliveries as docs/message-flow.md says: authentic events out, the rest into quarantine.

    `clock` tells a worker's own time; it is good enough for the signature's window of minutes and days,
    and decides nothing else.
    """

    def __init__(
        self,
        keys: KeyStore,
        publisher: Publisher,
        *,
        max_age_seconds: int,
        max_ahead_seconds: int,
        publish_timeout_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._publisher = publisher
        self._max_age_seconds = max_age_seconds
        self._max_ahead_seconds = max_ahead_seconds
        self._publish_timeout_seconds = publish_timeout_seconds
        self._clock = clock

    def admit(self, deliveries: Sequence[Delivery]) -> list[InboundEvent]:
        """
        Return the authentic events of these deliveries, in order; put the rest into quarantine first.

        Raises:
            QuarantineUnavailable: the broker did not confirm; try the deliveries again.
        """
        batch = _Batch(time.monotonic(), self._clock(), [])
        admitted: list[InboundEvent] = []
        refused: list[tuple[Delivery, _Refusal]] = []
        read = [(delivery, _read(delivery)) for delivery in deliveries]
        # Asked for together: however many names are invented, it is one question.
        senders = self._keys.senders({one.sender for _, one in read if isinstance(one, _Read)})
        verdicts = [
            one if isinstance(one, _Refusal) else self._judge(delivery, one, senders, batch)
            for delivery, one in read
        ]
        verdicts = self._judge_again(read, verdicts, senders, batch)
        for (queue_name, timestamp), messages in Counter(batch.sent).items():
            # A sender's clock may be ahead of ours.
            waited = max(0.0, batch.now.timestamp() - timestamp)
            observe_alike(_wait_of(queue_name), waited, times=messages)
        for (delivery, one), verdict in zip(read, verdicts, strict=True):
            if isinstance(verdict, _Refusal):
                refused.append((delivery, verdict))
                continue
            if isinstance(one, _Read) and one.orders is not None:
                # What was read in one pass is valid.
                admitted += verdict
                continue
            for event in verdict:
                if isinstance(event.data, InvalidData) and not _can_be_answered(event):
                    detail = f"event {event.envelope.id}: {event.data.detail}"
                    refused.append((delivery, _Refusal(QuarantineReason.UNREADABLE_ID, detail)))
                else:
                    admitted.append(event)
        self._quarantine(refused)
        return admitted

    def _judge_again(
        self,
        read: "Sequence[tuple[Delivery, _Read | _Refusal]]",
        verdicts: "list[list[InboundEvent] | _Refusal]",
        senders: Mapping[tuple[str, str], SenderRecord],
        batch: _Batch,
    ) -> "list[list[InboundEvent] | _Refusal]":
        """
        Judge what no kept key fits by the keys there were when it came.

        A key may have been registered since the kept ones were read, and quarantine is a last word. All of a
        batch is one question, and where the answer is what was known, no signature is tried twice.
        """
        if not any(isinstance(verdict, _Refusal) for verdict in verdicts):
            return verdicts
        doubted = {
            position: one
            for position, ((_, one), verdict) in enumerate(zip(read, verdicts, strict=True))
            if isinstance(one, _Read) and isinstance(verdict, _Refusal) and verdict.reason in _OF_KEYS
        }
        if not doubted:
            return verdicts
        fresh = self._keys.senders_since({one.sender for one in doubted.values()}, batch.came_before)
        return [
            self._judge(read[position][0], doubted[position], fresh, batch)
            if position in doubted
            and fresh.get(doubted[position].sender) != senders[doubted[position].sender]
            else verdict
            for position, verdict in enumerate(verdicts)
        ]

    def _judge(
        self,
        delivery: Delivery,
        read: _Read,
        senders: Mapping[tuple[str, str], SenderRecord],
        batch: _Batch,
    ) -> list[InboundEvent] | _Refusal:
        """Return a message's authentic events, and note of which queue it is, and when it was sent."""
        kind, sender_id = read.sender
        sender = senders.get(read.sender)
        if sender is None:
            return _Refusal(QuarantineReason.UNKNOWN_SENDER, f"{kind} {sender_id} is not registered")
        try:
            verified = verify(
                body=delivery.body,
                headers=delivery.headers,
                keys=sender.keys,
                now=batch.now,
                max_age_s=self._max_age_seconds,
                max_ahead_s=self._max_ahead_seconds,
                scope=read.scope,
            )
        except SignatureRefused as error:
            return _Refusal(error.reason, error.detail)
        envelopes = read.envelopes
        if len(envelopes) == 1 and verified.webhook_id != envelopes[0].id and not _is_batch(delivery):
            return _Refusal(QuarantineReason.WEBHOOK_ID_MISMATCH, "webhook-id is not the event's id")
        if delivery.attempt == 0:
            # A retry's time in a lane is no wait for a worker.
            batch.sent.append((delivery.queue_name, verified.timestamp))
        if read.orders is not None:
            return [
                InboundEvent(kind, sender_id, sender.active, envelope, order, order.content_hash())
                for envelope, order in zip(envelopes, read.orders, strict=True)
            ]
        return [_event(kind, sender_id, sender, envelope) for envelope in envelopes]

    def _quarantine(self, refused: Sequence[tuple[Delivery, _Refusal]]) -> None:
        if not refused:
            return
        reach("quarantine: before publish")
        outcomes = self._publisher.publish(
            [quarantine_message(delivery, refusal.reason, refusal.detail) for delivery, refusal in refused],
            timeout_s=self._publish_timeout_seconds,
        )
        if any(outcome is not PublishOutcome.CONFIRMED for outcome in outcomes):
            raise QuarantineUnavailable(
                f"{sum(o is not PublishOutcome.CONFIRMED for o in outcomes)} of {len(outcomes)} messages"
                " not confirmed into quarantine"
            )
        reach("quarantine: confirmed")
        for delivery, refusal in refused:
            QUARANTINED.labels(refusal.reason.value).inc()
            log.warning(
                "message_quarantined",
                queue=delivery.queue_name,
                reason=refusal.reason.value,
                bytes=len(delivery.body),
            )


def quarantine_message(delivery: Delivery, reason: str, detail: str) -> Outgoing:
    """Copy a message for quarantine: body and headers as they came, and why it is there."""
    return Outgoing(
        # Where RabbitMQ sends what matches no binding; it leads into quarantine and nowhere else.
        exchange=UNROUTED_EXCHANGE,
        routing_key=QUARANTINE_QUEUE,
        body=delivery.body,
        content_type=delivery.content_type or "",
        type=delivery.type,
        headers={
            **foreign_headers(delivery.headers),
            REASON_HEADER: str(reason),
            DETAIL_HEADER: detail,
            QUEUE_HEADER: delivery.queue_name,
            FIRST_ROUTING_KEY_HEADER: delivery.routing_key,
        },
        message_id=delivery.message_id,
    )


@cache
def _wait_of(queue_name: str) -> Histogram:
    """Return the queue's own metric; finding it costs as much as measuring."""
    return INBOUND_WAIT_SECONDS.labels(queue_name)


def _can_be_answered(event: InboundEvent) -> bool:
    data = event.data
    return INBOUND[event.envelope.type].REJECTED is not None and not (
        isinstance(data, InvalidData) and data.subject_id is None
    )


def _is_batch(delivery: Delivery) -> bool:
    return (delivery.content_type or "").split(";", 1)[0].strip().lower().endswith("-batch+json")


def _event(kind: str, sender_id: str, sender: SenderRecord, envelope: Envelope) -> InboundEvent:
    data = validate_data(envelope.type, envelope.data)
    return InboundEvent(
        sender_kind=kind,
        sender_id=sender_id,
        sender_active=sender.active,
        envelope=envelope,
        data=data,
        content_hash=hash_of_raw(envelope.type, envelope.data)
        if isinstance(data, InvalidData)
        else data.content_hash(),
    )
