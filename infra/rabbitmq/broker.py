"""
Dramatiq on RabbitMQ, hardened in one place.

What stays of Dramatiq: its actors, its worker threads and its middleware. What is ours: nothing of its
envelope is read from the wire or written to it, queues come from the topology and are never declared in
passing, delays are lanes in the broker, and acknowledgement follows the work, not the absence of an
exception.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from dramatiq import Actor, Broker, Message, Middleware

from infra.observability.metrics import (
    BATCH_MESSAGES,
    BATCH_SECONDS,
    CONSUMER_CONNECTED,
    DATABASE_AVAILABLE,
    MESSAGES,
    begin_at_zero,
)
from infra.rabbitmq.availability import Availability
from infra.rabbitmq.batches import BECOMES, BatchHandler, BatchRunner, UnknownCommand
from infra.rabbitmq.consumer import COMMAND_BATCH_BYTES, EVENT_BATCH_BYTES, Batch, QueueConsumer
from infra.rabbitmq.messages import Delivery, Failure, PublishOutcome, command_message
from infra.rabbitmq.publisher import Publisher

__all__ = ["BatchHandler", "CommandNotPublished", "Failure", "HoldfastBroker", "NotACommand"]

log = structlog.get_logger(__name__)

# A consumer's thread comes by every second, and whatever it waits for has a time-out far below this.
SILENT_CONSUMER_SECONDS = 120.0
# A batch's statements and calls of the bank have time-outs of seconds; hundreds of them may come together.
STUCK_BATCH_SECONDS = 900.0


class NotACommand(TypeError):
    """`enqueue` takes commands that this process has an actor for, with one JSON body, and nothing else."""


class CommandNotPublished(RuntimeError):
    """The broker did not confirm a command; the caller must assume that it may or may not arrive."""

    def __init__(self, name: str, outcome: PublishOutcome) -> None:
        super().__init__(f"command {name} was not confirmed: {outcome.value}")
        self.name, self.outcome = name, outcome


class HoldfastBroker(Broker):
    """
    The broker class of every worker.

    Args:
        broker_url: AMQP URL, for the consumers; each queue has a connection of its own.
        publisher: takes retries, dead letters and commands.
        classify: what a handler's exception calls for.
        await_recovery: blocks until the database can be reached, or the event is set.
        batch_bound: most messages that a handler gets at once.
        prefetch_batches: how many bounds a channel holds unacknowledged.
        batches_ahead: how many batches of a queue may be in the workers' hands; one more than there are
            worker threads keeps them busy, and more would only make the batches smaller. The supervisor
            sets it.
        max_attempts: how often a message is tried in all.
        day_seconds: the length of a day, to find the lanes of the protection periods.
        middleware: all the middleware there is; Dramatiq's own defaults are not wanted here.
    """

    def __init__(
        self,
        broker_url: str,
        *,
        publisher: Publisher,
        classify: Callable[[BaseException], Failure],
        await_recovery: Callable[[threading.Event], None],
        batch_bound: int = 256,
        prefetch_batches: int = 2,
        batches_ahead: int = 3,
        max_attempts: int = 8,
        publish_timeout_s: float = 10.0,
        day_seconds: int | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        super().__init__(middleware=list(middleware))
        self.queues: set[str] = set()
        self.stopping = threading.Event()
        self.availability = Availability()
        DATABASE_AVAILABLE.set_function(lambda: float(self.availability.open))
        self.fatal_error: str | None = None
        self._broker_url = broker_url
        self._publisher = publisher
        self._batch_bound = batch_bound
        self._prefetch = batch_bound * prefetch_batches
        self.batches_ahead = batches_ahead
        self._publish_timeout_s = publish_timeout_s
        self._day_seconds = day_seconds
        self._external: dict[str, str] = {}
        self._commands: dict[str, dict[str, str]] = {}
        self._consumers: dict[str, QueueConsumer] = {}
        self._runner = BatchRunner(
            publisher,
            classify=classify,
            await_recovery=await_recovery,
            availability=self.availability,
            stopping=self.stopping,
            max_attempts=max_attempts,
            publish_timeout_s=publish_timeout_s,
        )
        self._await_recovery = await_recovery

    # --- actors ---------------------------------------------------------------

    def declare_batch_actor(
        self, *, queue_name: str, actor_name: str, handle: BatchHandler, external: bool
    ) -> Actor[..., Any]:
        """
        Have a handler called with batches of a queue.

        Args:
            queue_name: a queue of the topology.
            actor_name: for commands it is the AMQP type that leads here.
            handle: called in a worker thread.
            external: True when the queue is fed from outside: every message of it goes to this one actor,
                whatever it claims to be. False for commands: the actor is the one that the AMQP type names,
                and a type without an actor goes to the dead-letter queue.
        """
        if queue_name in self._external or (external and queue_name in self._commands):
            raise ValueError(f"{queue_name} is fed from outside and has one actor only")
        if external:
            self._external[queue_name] = actor_name
        else:
            if queue_name not in self._commands:
                self._commands[queue_name] = {}
                self._declare(queue_name, _unknown_actor(queue_name), _refuse_unknown)
            self._commands[queue_name][actor_name] = actor_name
        return self._declare(queue_name, actor_name, handle)

    def _declare(self, queue_name: str, actor_name: str, handle: BatchHandler) -> Actor[..., Any]:
        begin_at_zero(MESSAGES, (queue_name,), BECOMES)
        seconds, messages = BATCH_SECONDS.labels(actor_name), BATCH_MESSAGES.labels(actor_name)

        def run(batch: Batch) -> None:
            began = time.perf_counter()
            try:
                self._runner.run(handle, batch)
            except BaseException as error:
                # The runner deals with every failure of a handler. What still comes through is a mistake
                # in it or the end of the thread; the messages stay unacknowledged, and the process must
                # not go on as if nothing were the matter.
                self.fail(f"{actor_name}: {error!r}")
                raise
            seconds.observe(time.perf_counter() - began)
            messages.observe(len(batch.deliveries))

        return Actor(run, broker=self, actor_name=actor_name, queue_name=queue_name, priority=0, options={})

    def choose_actor(self, delivery: Delivery) -> str:
        """The actor for a delivery, by where it arrived; its own word counts among our own commands only."""
        external = self._external.get(delivery.queue_name)
        if external is not None:
            return external
        commands = self._commands[delivery.queue_name]
        return commands.get(delivery.type or "", _unknown_actor(delivery.queue_name))

    # --- what Dramatiq asks of a broker ---------------------------------------

    def declare_queue(self, queue_name: str) -> None:
        """Note the queue; the broker's own objects come from the topology alone."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 1000) -> QueueConsumer:
        """A consumer of one queue; the prefetch is ours to decide, not the worker's."""
        del prefetch
        consumer = QueueConsumer(
            self._broker_url,
            queue_name,
            choose_actor=self.choose_actor,
            availability=self.availability,
            stopping=self.stopping,
            on_nack=self.fail,
            batch_bound=self._batch_bound,
            batch_bytes=EVENT_BATCH_BYTES if queue_name in self._external else COMMAND_BATCH_BYTES,
            prefetch=self._prefetch,
            batches_ahead=self.batches_ahead,
            idle_seconds=timeout / 1000,
        )
        self._consumers[queue_name] = consumer
        CONSUMER_CONNECTED.labels(queue_name).set_function(lambda: float(consumer.connected))
        return consumer

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """
        Publish one of our commands, after `delay` milliseconds if given, and see it confirmed.

        Raises:
            NotACommand: anything else.
            CommandNotPublished: the broker did not confirm it.
        """
        if message.actor_name not in self._commands.get(message.queue_name, {}):
            raise NotACommand(f"{message.actor_name!r} is no command of {message.queue_name!r}")
        if message.options or message.kwargs or len(message.args) != 1:
            raise NotACommand("a command has one argument, its body, and no options")
        body = message.args[0]
        if isinstance(body, Mapping):
            body = json.dumps(dict(body), separators=(",", ":")).encode()
        if not isinstance(body, bytes):
            raise NotACommand("the body of a command is JSON in bytes, or a mapping")
        self.emit_before("enqueue", message, delay)
        outgoing = command_message(
            message.queue_name,
            message.actor_name,
            body,
            delay_ms=delay or 0,
            day_seconds=self._day_seconds,
        )
        (outcome,) = self._publisher.publish([outgoing], timeout_s=self._publish_timeout_s)
        if outcome is not PublishOutcome.CONFIRMED:
            raise CommandNotPublished(message.actor_name, outcome)
        self.emit_after("enqueue", message, delay)
        return message

    def close(self) -> None:
        """The consumers are closed by the worker; the publisher belongs to who made it."""

    # --- state ----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every queue is being consumed and nothing that work needs is away."""
        return (
            self.fatal_error is None
            and not self.stopping.is_set()
            and self.availability.open
            and bool(self.queues)
            and all(
                (consumer := self._consumers.get(queue_name)) is not None and consumer.connected
                for queue_name in self.queues
            )
        )

    @property
    def stalled(self) -> str | None:
        """What makes no progress although nothing is away, in a sentence; None where all is well."""
        if self.stopping.is_set() or not self.availability.open:
            return None
        for queue_name, consumer in self._consumers.items():
            if consumer.silent_seconds > SILENT_CONSUMER_SECONDS:
                return f"the consumer of {queue_name} has said nothing for {consumer.silent_seconds:.0f} s"
            if consumer.stuck_seconds > STUCK_BATCH_SECONDS:
                return f"no batch of {queue_name} has ended for {consumer.stuck_seconds:.0f} s"
        return None

    def stop(self) -> None:
        """Take nothing new and stop waiting; from any thread, also from a signal handler."""
        self.stopping.set()

    def fail(self, reason: str) -> None:
        """This process cannot be trusted any more; the supervisor ends it."""
        if self.fatal_error is None:
            self.fatal_error = reason
            log.critical("worker_failed", reason=reason)

    def await_recovery(self) -> None:
        """Wait until the database can be reached; every message taken before that would be handed back."""
        self._await_recovery(self.stopping)


def _unknown_actor(queue_name: str) -> str:
    return f"{queue_name}.unknown_command"


def _refuse_unknown(deliveries: Sequence[Delivery]) -> None:
    raise UnknownCommand(f"{len(deliveries)} messages of unknown type")
