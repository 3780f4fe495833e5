"""Take quarantine, dead letters and orphans into the database; acknowledged only once they are there."""

import base64
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import structlog

from infra.observability.metrics import QUARANTINE_OVERFLOW, RECORDED_MESSAGES, begin_at_zero
from infra.postgres.quarantine_bounds import ALL, SENDER, Bounds, count_overflow, known_senders, sort_by_room
from infra.postgres.recorded_messages import Kind, RecordedMessage, record_messages
from infra.postgres.step import Steps
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.topology import ORPHANS_QUEUE, QUARANTINE_QUEUE
from schemas.reasons import QuarantineReason

log = structlog.get_logger(__name__)

NO_BOUNDS = Bounds(sys.maxsize, sys.maxsize, sys.maxsize, sys.maxsize)
_SOURCE = re.compile(rb'"source"\s*:\s*"/((?:shops|banks)/[a-z0-9-]{1,64})"')

begin_at_zero(QUARANTINE_OVERFLOW, (ALL, SENDER))
begin_at_zero(RECORDED_MESSAGES, get_args(Kind))


def record(steps: Steps, deliveries: Sequence[Delivery], bounds: Bounds = NO_BOUNDS) -> None:
    """
    Keep messages that could not be processed, with all that is needed to look at and replay them.

    Of those that are not authentic, what is beyond the bounds is counted instead.
    """
    messages = [_message(delivery) for delivery in deliveries]
    with steps.begin("record_messages") as step:
        known = known_senders(step.connection, [message.sender for message in messages])
        messages = [
            message if message.sender in known else replace(message, sender="") for message in messages
        ]
        by_room = sort_by_room(step.connection, messages, bounds)
        record_messages(step.connection, by_room.kept, now=step.now)
        count_overflow(step.connection, [message for message, _ in by_room.counted], now=step.now)
    for (sender, bound), count in Counter((one.sender, bound) for one, bound in by_room.counted).items():
        QUARANTINE_OVERFLOW.labels(bound=bound).inc(count)
        log.error("quarantine_full", bound=bound, sender=sender, counted=count)
    for message in by_room.kept:
        RECORDED_MESSAGES.labels(kind=message.kind).inc()
        log.warning("message_recorded", kind=message.kind, queue=message.queue, reason=message.reason)


def _message(delivery: Delivery) -> RecordedMessage:
    headers = {name: _json_value(value) for name, value in delivery.headers.items()}
    origin = str(headers.pop("holdfast-queue", "") or "")
    routing_key = str(headers.pop("holdfast-routing-key", "") or delivery.routing_key)
    detail = str(headers.pop("holdfast-detail", "") or "")
    reason = str(headers.pop("holdfast-reason", "") or "")
    kind = _kind(delivery.queue_name)
    if not reason:
        # It never reached a worker: it came through an alternate exchange or a delivery limit.
        reason = QuarantineReason.UNROUTED if kind == "quarantine" else kind
    return RecordedMessage(
        kind=kind,
        queue=origin or delivery.queue_name.removesuffix(".XQ"),
        exchange=delivery.exchange,
        routing_key=routing_key,
        body=delivery.body,
        reason=reason if kind == "quarantine" else reason.split(":", 1)[0],
        detail=detail or reason,
        content_type=delivery.content_type,
        message_type=delivery.type,
        headers=headers,
        sender=_claimed_sender(delivery.body),
    )


def _claimed_sender(body: bytes) -> str:
    """Return whom a message says it is from. Proves nothing: it only decides whose room it takes."""
    claimed = _SOURCE.search(body)
    return claimed[1].decode("ascii") if claimed else ""


def _kind(queue_name: str) -> Kind:
    if queue_name == QUARANTINE_QUEUE:
        return "quarantine"
    return "orphan" if queue_name == ORPHANS_QUEUE else "dead_letter"


def _json_value(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Headers of strangers may hold anything that AMQP knows; keep it readable."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return str(value)
