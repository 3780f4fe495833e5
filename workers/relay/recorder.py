"""Take quarantine, dead letters and orphans into the database; acknowledged only once they are there."""

import base64
from collections.abc import Sequence
from typing import Any

import structlog

from infra.observability.metrics import RECORDED_MESSAGES
from infra.postgres.recorded_messages import Kind, RecordedMessage, record_messages
from infra.postgres.step import Steps
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.topology import ORPHANS_QUEUE, QUARANTINE_QUEUE
from schemas.reasons import QuarantineReason

log = structlog.get_logger(__name__)


def record(steps: Steps, deliveries: Sequence[Delivery]) -> None:
    """Keep messages that could not be processed, with all that is needed to look at and replay them."""
    messages = [_message(delivery) for delivery in deliveries]
    with steps.begin("record_messages") as step:
        record_messages(step.connection, messages, now=step.now)
    for message in messages:
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
    )


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
