"""
Every exchange, queue and binding, as data; and the two things done with it: declare it, and check it.

Workers never declare anything: a queue declared by whoever comes first has whatever arguments that version
had. `apply` is run once a deployment, `verify` says how the broker differs from what is written here.
"""

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pika
import pika.exceptions

from infra.rabbitmq import delay_lanes
from infra.rabbitmq.amqp import connection_parameters
from infra.rabbitmq.messages import DEAD_LETTER_EXCHANGE, DEFAULT_EXCHANGE, dead_letter_queue

INBOUND_EXCHANGE = "holdfast.inbound"
EVENTS_EXCHANGE = "holdfast.events"
DELIVER_EXCHANGE = delay_lanes.DELIVER_EXCHANGE
UNROUTED_EXCHANGE = "holdfast.unrouted"
ORPHANS_EXCHANGE = "holdfast.orphans"
QUARANTINE_QUEUE = "quarantine"
ORPHANS_QUEUE = "orphans"

PAYMENT_INTAKE = "payment.intake"
PAYMENT_BANK = "payment.bank"
PAYMENT_MATCH = "payment.match"
ESCROW_HOLD = "escrow.hold"
ESCROW_RELEASE = "escrow.release"
ESCROW_DISPUTE = "escrow.dispute"
PAYOUT_WITHDRAWAL = "payout.withdrawal"
PAYOUT_SELLER = "payout.seller"
PAYOUT_PASSWORD = "payout.password"  # noqa: S105 - a queue's name
PAYOUT_BANK = "payout.bank"

# Which event types of the outside lead into which queue. A queue without any is fed by commands only.
WORK_QUEUES: Mapping[str, tuple[str, ...]] = {
    PAYMENT_INTAKE: ("order.paid",),
    PAYMENT_BANK: ("bank.credited", "bank.debited"),
    PAYMENT_MATCH: (),
    ESCROW_HOLD: (),
    ESCROW_RELEASE: (),
    ESCROW_DISPUTE: ("dispute.opened", "dispute.resolved", "refund.requested"),
    PAYOUT_WITHDRAWAL: ("withdrawal.requested",),
    PAYOUT_SELLER: ("seller.enrolled", "seller.password_changed"),
    PAYOUT_PASSWORD: (),
    PAYOUT_BANK: (),
}

# Set explicitly because RabbitMQ 4 defaults to 20, counts messages that were merely prefetched by a worker
# that died, and deletes what exceeds it where there is no dead-letter exchange. Attempts are counted by us;
# this is the guard against a message that kills every worker before it can count.
WORK_QUEUE_DELIVERY_LIMIT = 100
# On queues without a dead-letter exchange the limit means deletion; nothing may ever reach it.
NO_DELIVERY_LIMIT = 2_000_000_000
SHOP_QUEUE_MAX_LENGTH = 1_000_000
SHOP_QUEUE_MAX_BYTES = 1 << 30

OLDEST_RABBITMQ = (3, 10)
_SHOP_ID = re.compile(r"[a-z0-9-]{1,64}")
_NOT_FOUND = 404
_DIFFERENT = 406


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue; its type is among the arguments."""

    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue, or to another exchange."""

    source: str
    destination: str
    routing_key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """All broker objects, in an order in which they can be declared."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


class Drift(StrEnum):
    """How the broker can differ from what is written here."""

    MISSING_EXCHANGE = "missing_exchange"
    DIFFERENT_EXCHANGE = "different_exchange"
    FOREIGN_EXCHANGE = "foreign_exchange"
    MISSING_QUEUE = "missing_queue"
    DIFFERENT_QUEUE = "different_queue"
    FOREIGN_QUEUE = "foreign_queue"
    MISSING_BINDING = "missing_binding"
    FOREIGN_BINDING = "foreign_binding"
    POLICY = "policy"
    BROKER_TOO_OLD = "broker_too_old"
    FEATURE_FLAG_OFF = "feature_flag_off"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference, for a person to read."""

    drift: Drift
    name: str
    detail: str


def topology(day_seconds: int) -> Topology:
    """Everything that this version needs, for a day of this length."""
    exchanges: list[Exchange] = []
    queues: list[Queue] = []
    bindings: list[Binding] = []
    for part in (_outside(), _work(), _ladder(), _periods(day_seconds)):
        exchanges += part.exchanges
        queues += part.queues
        bindings += part.bindings
    return Topology(tuple(exchanges), tuple(queues), tuple(bindings))


def _outside() -> Topology:
    return Topology(
        exchanges=(
            Exchange(UNROUTED_EXCHANGE, "fanout"),
            Exchange(INBOUND_EXCHANGE, "topic", {"alternate-exchange": UNROUTED_EXCHANGE}),
            Exchange(EVENTS_EXCHANGE, "topic"),
        ),
        queues=(Queue(QUARANTINE_QUEUE, _kept_for_people()),),
        bindings=(Binding(UNROUTED_EXCHANGE, QUARANTINE_QUEUE, ""),),
    )


def _work() -> Topology:
    queues = [Queue(ORPHANS_QUEUE, _kept_for_people())]
    bindings = [Binding(ORPHANS_EXCHANGE, ORPHANS_QUEUE, "")]
    for name, event_types in WORK_QUEUES.items():
        queues.append(Queue(dead_letter_queue(name), _kept_for_people()))
        queues.append(Queue(name, work_queue_arguments(name)))
        bindings.append(Binding(DEAD_LETTER_EXCHANGE, dead_letter_queue(name), dead_letter_queue(name)))
        bindings += [Binding(INBOUND_EXCHANGE, name, event_type) for event_type in event_types]
        bindings += [Binding(DELIVER_EXCHANGE, name, key) for key in delay_lanes.delivery_binding_keys(name)]
    return Topology(
        exchanges=(
            Exchange(ORPHANS_EXCHANGE, "fanout"),
            # No alternate: a dead letter whose queue is missing stays where it is until somebody mends that.
            Exchange(DEAD_LETTER_EXCHANGE, "topic"),
            # A delayed message whose queue is gone must leave its lane all the same, or it jams it for all.
            Exchange(DELIVER_EXCHANGE, "topic", {"alternate-exchange": ORPHANS_EXCHANGE}),
        ),
        queues=tuple(queues),
        bindings=tuple(bindings),
    )


def _ladder() -> Topology:
    exchanges: list[Exchange] = []
    queues: list[Queue] = []
    bindings: list[Binding] = []
    for rung in range(delay_lanes.RUNGS):
        source = delay_lanes.rung_exchange(rung)
        exchanges.append(Exchange(source, "topic", {"alternate-exchange": ORPHANS_EXCHANGE}))
        lower = delay_lanes.rung_exchange(rung - 1)
        bindings.append(Binding(source, lower, delay_lanes.rung_binding_key(rung, 0), to_exchange=True))
        for digit in range(1, delay_lanes.BASE):
            lane = delay_lanes.ladder_lane(rung, digit)
            queues.append(Queue(lane.queue_name, lane.arguments()))
            bindings.append(Binding(source, lane.queue_name, delay_lanes.rung_binding_key(rung, digit)))
    return Topology(tuple(exchanges), tuple(queues), tuple(bindings))


def _periods(day_seconds: int) -> Topology:
    lanes = delay_lanes.period_lanes(day_seconds)
    return Topology(
        exchanges=tuple(Exchange(delay_lanes.period_exchange(lane.delay_ms), "fanout") for lane in lanes),
        queues=tuple(Queue(lane.queue_name, lane.arguments()) for lane in lanes),
        bindings=tuple(
            Binding(delay_lanes.period_exchange(lane.delay_ms), lane.queue_name, "") for lane in lanes
        ),
    )


def work_queue_arguments(name: str) -> Mapping[str, object]:
    """Replicated, and nothing that leaves it unhandled is lost."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": WORK_QUEUE_DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEFAULT_EXCHANGE,
        "x-dead-letter-routing-key": dead_letter_queue(name),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _kept_for_people() -> Mapping[str, object]:
    """Dead letters, quarantine and orphans stay until somebody takes them; there is no time to live."""
    return {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT}


def shop_queue(shop_id: str) -> tuple[Queue, Binding]:
    """
    Where one shop reads its events: bounded, so that a shop that stops reading delays itself only.

    Raises:
        ValueError: not a shop id; a dot in it would widen the binding to other shops.
    """
    if not _SHOP_ID.fullmatch(shop_id):
        raise ValueError(f"not a shop id: {shop_id!r}")
    name = f"events.{shop_id}"
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": NO_DELIVERY_LIMIT,
        "x-max-length": SHOP_QUEUE_MAX_LENGTH,
        "x-max-length-bytes": SHOP_QUEUE_MAX_BYTES,
        "x-overflow": "reject-publish",
    }
    return Queue(name, arguments), Binding(EVENTS_EXCHANGE, name, f"{shop_id}.#")


def apply(connection_url: str, day_seconds: int) -> None:
    """
    Declare everything; what is there already stays as it is.

    Raises:
        pika.exceptions.ChannelClosedByBroker: an object exists with other arguments; the text names it.
    """
    wanted = topology(day_seconds)
    with _channel(connection_url) as channel:
        for exchange in wanted.exchanges:
            _declare_exchange(channel, exchange)
        for queue in wanted.queues:
            _declare_queue(channel, queue)
        for binding in wanted.bindings:
            _bind(channel, binding)


def declare_shop_queue(connection_url: str, shop_id: str) -> str:
    """Declare and bind a shop's event queue; returns its name."""
    queue, binding = shop_queue(shop_id)
    with _channel(connection_url) as channel:
        _declare_queue(channel, queue)
        _bind(channel, binding)
    return queue.name


def verify(connection_url: str, day_seconds: int) -> list[Finding]:
    """
    Compare the broker with what is written here, over plain AMQP, changing nothing.

    Bindings, and what does not belong here, cannot be seen over AMQP: `infra.rabbitmq.verification` adds
    what the management API shows.
    """
    wanted = topology(day_seconds)
    findings = list(_feature_flag_findings(connection_url))
    connection = pika.BlockingConnection(connection_parameters(connection_url, name="topology"))
    try:
        findings += _version_findings(connection)
        for exchange in wanted.exchanges:
            findings += _exchange_findings(connection, exchange)
        for queue in wanted.queues:
            findings += _queue_findings(connection, queue)
    finally:
        connection.close()
    return findings


def _version_findings(connection: Any) -> Iterator[Finding]:  # noqa: ANN401 - pika is untyped
    # The blocking adapter does not show the server's own properties; its implementation does.
    properties = connection._impl.server_properties or {}  # noqa: SLF001
    text = str(properties.get("version", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_RABBITMQ:
        oldest = ".".join(map(str, OLDEST_RABBITMQ))
        yield Finding(Drift.BROKER_TOO_OLD, "rabbitmq", f"version {text}; {oldest} is the oldest that works")


def _feature_flag_findings(connection_url: str) -> Iterator[Finding]:
    """Without `stream_queue` RabbitMQ quietly dead-letters at most once; only a stream shows if it is on."""
    name = f"holdfast.probe.{uuid.uuid4()}"
    try:
        # Of its own: where the flag is off, the broker answers by closing the connection.
        with _channel(connection_url) as channel:
            channel.queue_declare(name, durable=True, arguments={"x-queue-type": "stream"})
            channel.queue_delete(name)
    except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker) as error:
        yield Finding(
            Drift.FEATURE_FLAG_OFF,
            "stream_queue",
            "dead-lettering is at most once without it: delayed messages may be lost; run"
            f" `rabbitmqctl enable_feature_flag stream_queue` ({error.reply_code} {error.reply_text})",
        )


def _exchange_findings(connection: Any, exchange: Exchange) -> Iterator[Finding]:  # noqa: ANN401 - untyped
    problem = _problem(connection, lambda channel: channel.exchange_declare(exchange.name, passive=True))
    if problem is not None and problem[0] == _NOT_FOUND:
        yield Finding(Drift.MISSING_EXCHANGE, exchange.name, problem[1])
        return
    problem = _problem(connection, lambda channel: _declare_exchange(channel, exchange))
    if problem is not None:
        yield Finding(Drift.DIFFERENT_EXCHANGE, exchange.name, problem[1])


def _queue_findings(connection: Any, queue: Queue) -> Iterator[Finding]:  # noqa: ANN401 - pika is untyped
    problem = _problem(connection, lambda channel: channel.queue_declare(queue.name, passive=True))
    if problem is not None and problem[0] == _NOT_FOUND:
        yield Finding(Drift.MISSING_QUEUE, queue.name, problem[1])
        return
    # It exists, so declaring it creates nothing and only compares the arguments.
    problem = _problem(connection, lambda channel: _declare_queue(channel, queue))
    if problem is not None:
        yield Finding(Drift.DIFFERENT_QUEUE, queue.name, problem[1])


def _problem(connection: Any, act: Any) -> tuple[int, str] | None:  # noqa: ANN401 - pika is untyped
    """What the broker objected to, if anything; an objection costs the channel, so each act has its own."""
    channel = connection.channel()
    try:
        act(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        return error.reply_code, error.reply_text
    channel.close()
    return None


@contextmanager
def _channel(connection_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(connection_parameters(connection_url, name="topology"))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def _declare_exchange(channel: Any, exchange: Exchange) -> None:  # noqa: ANN401 - pika is untyped
    channel.exchange_declare(
        exchange.name, exchange_type=exchange.type, durable=True, arguments=dict(exchange.arguments)
    )


def _declare_queue(channel: Any, queue: Queue) -> None:  # noqa: ANN401 - pika is untyped
    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


def _bind(channel: Any, binding: Binding) -> None:  # noqa: ANN401 - pika is untyped
    if binding.to_exchange:
        channel.exchange_bind(binding.destination, binding.source, routing_key=binding.routing_key)
    else:
        channel.queue_bind(binding.destination, binding.source, routing_key=binding.routing_key)
