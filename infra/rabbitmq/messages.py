"""What goes over the wire, in plain data: a delivery as it came, a message to send, what became of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from types import MappingProxyType

from msgspec import Struct

from infra.rabbitmq import delay_lanes
from infra.rabbitmq.amqp import can_be_written

DELIVER_EXCHANGE = delay_lanes.DELIVER_EXCHANGE
DEAD_LETTER_EXCHANGE = "holdfast.dead_letters"
# The exchange without a name routes to the queue that the routing key names.
DEFAULT_EXCHANGE = ""

ATTEMPT_HEADER = "holdfast-attempt"
QUEUE_HEADER = "holdfast-queue"
REASON_HEADER = "holdfast-reason"
# A retry travels through our own exchanges; where it first came from is judged again on the next try.
FIRST_EXCHANGE_HEADER = "holdfast-exchange"
FIRST_ROUTING_KEY_HEADER = "holdfast-routing-key"
# W3C Trace Context: who sent a command. On events of strangers it stands in the signed body and nowhere else.
TRACEPARENT_HEADER = "traceparent"
# RabbitMQ's shortstr; a longer routing key cannot be sent.
MAX_SHORT_STRING_BYTES = 255
MAX_REASON_CHARACTERS = 500
AS_TEXT_HEADER = "holdfast-headers-as-text"
# Even where every character takes four bytes, this fits.
MAX_TEXT_CHARACTERS = 12_000

# Headers that RabbitMQ acts upon or writes itself. Republished, CC and BCC would make the broker send copies
# wherever a stranger wished, and x-death would make it see a cycle where there is a retry.
_BROKER_HEADER = re.compile(
    r"^(CC|BCC|x-death|x-(first|last)-death-.*|x-delivery-count|x-acquired-count|x-delay|x-opt-.*)$"
)
_OWN_HEADER_PREFIX = "holdfast-"


class Failure(Enum):
    """What a failed handler calls for."""

    UNAVAILABLE = "unavailable"
    """Database or broker away: keep the messages, wait, try again; no attempt is counted."""
    RETRY = "retry"
    """Worth another try later, through a retry lane, up to a bound."""
    POISON = "poison"
    """No further try can help: to the dead-letter queue at once."""


class PublishOutcome(StrEnum):
    """What became of one message that was to be published."""

    CONFIRMED = "confirmed"
    REFUSED = "refused"
    """A queue on its way is full."""
    UNROUTABLE = "unroutable"
    """No queue is bound for it."""
    UNKNOWN = "unknown"
    """Connection lost or time out: it may have arrived or not."""
    UNSAYABLE = "unsayable"
    """No message can be made of it, and the broker was not asked."""


class Delivery(Struct, frozen=True, gc=False):
    """
    One AMQP message as it came; everything in it is untrusted.

    `exchange` and `routing_key` are those of its first arrival, also when it comes
    back from a retry lane. `attempt` is 0 at first and only ever counted by us.
    """

    queue_name: str
    exchange: str
    routing_key: str
    body: bytes
    content_type: str | None = None
    type: str | None = None
    headers: Mapping[str, object] = MappingProxyType({})
    message_id: str | None = None
    redelivered: bool = False
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish: always persistent, mandatory and confirmed."""

    exchange: str
    routing_key: str
    body: bytes
    content_type: str | None = "application/json"
    type: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    message_id: str | None = None


def command_message(
    queue_name: str,
    name: str,
    body: bytes,
    *,
    delay_ms: int = 0,
    attempt: int = 0,
    day_seconds: int | None = None,
    traceparent: str | None = None,
) -> Outgoing:
    """
    A command to one of our own queues, now or after a delay.

    With `day_seconds`, a delay that is one protection period waits in that period's own lane. The delay is
    rounded up to whole seconds, never down: early is a broken promise.

    Raises:
        delay_lanes.DelayTooLong: above 30 days.
    """
    exchange, routing_key = delay_lanes.route(queue_name, delay_ms, day_seconds=day_seconds)
    headers: dict[str, object] = {ATTEMPT_HEADER: attempt} if attempt else {}
    if traceparent is not None:
        headers[TRACEPARENT_HEADER] = traceparent
    return Outgoing(exchange=exchange, routing_key=routing_key, body=body, type=name, headers=headers)


def retry_message(delivery: Delivery, *, delay_ms: int) -> Outgoing:
    """The same message once more, after a delay and with one attempt more on its count."""
    exchange, routing_key = delay_lanes.route(delivery.queue_name, delay_ms)
    headers = foreign_headers(delivery.headers)
    headers[ATTEMPT_HEADER] = delivery.attempt + 1
    headers[FIRST_EXCHANGE_HEADER] = delivery.exchange
    headers[FIRST_ROUTING_KEY_HEADER] = delivery.routing_key
    return _copy(delivery, exchange=exchange, routing_key=routing_key, headers=headers)


def dead_letter_message(delivery: Delivery, *, reason: str) -> Outgoing:
    """The same message for the dead-letter queue of its queue: raw bytes, its headers, and why."""
    headers = foreign_headers(delivery.headers)
    headers[ATTEMPT_HEADER] = delivery.attempt
    headers[QUEUE_HEADER] = delivery.queue_name
    headers[REASON_HEADER] = reason[:MAX_REASON_CHARACTERS]
    headers[FIRST_EXCHANGE_HEADER] = delivery.exchange
    headers[FIRST_ROUTING_KEY_HEADER] = delivery.routing_key
    return _copy(
        delivery,
        # Not the default exchange: whoever may write there may write into every queue.
        exchange=DEAD_LETTER_EXCHANGE,
        routing_key=dead_letter_queue(delivery.queue_name),
        headers=headers,
    )


def dead_letter_queue(queue_name: str) -> str:
    """Where messages of a queue go that ran out of attempts."""
    return f"{queue_name}.XQ"


def delivery_from_wire(
    queue_name: str,
    exchange: str,
    routing_key: str,
    body: bytes,
    *,
    content_type: object,
    type_: object,
    headers: Mapping[str, object] | Mapping[str | bytes, object] | None,
    message_id: object,
    redelivered: bool,
) -> Delivery:
    """
    Build a delivery from what the client library decoded.

    Our own headers mean something only on a message that came through our own delivery exchange, where
    nobody else may publish; from anywhere else they are as foreign as the body.
    """
    # The client library leaves a name that is not UTF-8 as bytes.
    named = {
        name if isinstance(name, str) else bytes(name).decode("utf-8", "backslashreplace"): value
        for name, value in (headers or {}).items()
    }
    return delivery_of_texts(
        queue_name,
        exchange,
        routing_key,
        body,
        _text(content_type),
        _text(type_),
        named,
        _text(message_id),
        redelivered,
    )


def delivery_of_texts(  # noqa: PLR0917 - by position, which is quicker, for every message
    queue_name: str,
    exchange: str,
    routing_key: str,
    body: bytes,
    content_type: str | None,
    type_: str | None,
    named: Mapping[str, object],
    message_id: str | None,
    redelivered: bool,  # noqa: FBT001 - see above
) -> Delivery:
    """Build a delivery of which every property and every header's name is known to be text."""
    attempt = 0
    if exchange == DELIVER_EXCHANGE and named:
        counted = named.get(ATTEMPT_HEADER)
        # A boolean is an int in Python, and no count.
        if isinstance(counted, int) and not isinstance(counted, bool) and counted > 0:
            attempt = int(counted)
        first_exchange = named.get(FIRST_EXCHANGE_HEADER)
        first_routing_key = named.get(FIRST_ROUTING_KEY_HEADER)
        if isinstance(first_exchange, str) and isinstance(first_routing_key, str):
            exchange, routing_key = first_exchange, first_routing_key
    return Delivery(
        queue_name,
        exchange,
        routing_key,
        body,
        content_type,
        type_,
        named,
        message_id,
        redelivered,
        attempt,
    )


def _text(value: object) -> str | None:
    # The client library leaves a short string that is not UTF-8 as bytes; as a property it names nothing.
    return value if isinstance(value, str) else None


def foreign_headers(headers: Mapping[str, object]) -> dict[str, object]:
    """
    A stranger's headers as they may be sent on: without what the broker acts upon and without our own names.

    Headers that cannot be written again become their text, cut to what fits.
    """
    foreign = {
        name: value
        for name, value in headers.items()
        if not _BROKER_HEADER.match(name) and not name.startswith(_OWN_HEADER_PREFIX)
    }
    if can_be_written(foreign):
        return foreign
    return {AS_TEXT_HEADER: repr(foreign)[:MAX_TEXT_CHARACTERS]}


def _copy(delivery: Delivery, *, exchange: str, routing_key: str, headers: Mapping[str, object]) -> Outgoing:
    return Outgoing(
        exchange=exchange,
        routing_key=routing_key,
        body=delivery.body,
        content_type=delivery.content_type,
        type=delivery.type,
        headers=headers,
        message_id=delivery.message_id,
    )
