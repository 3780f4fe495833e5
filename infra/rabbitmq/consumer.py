"""
From a queue to batches.

A consumer owns one connection at a time. What the connection has delivered waits in a buffer; a batch takes
what is there when a worker thread can use it, up to a bound, and never waits for more. So batches are small
when little comes in and grow by themselves when much does.

A batch belongs to the channel that delivered it. After a reconnect the same delivery tags mean other
messages, so an acknowledgement that comes late is dropped with its channel.
"""

import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pika
import pika.exceptions
import structlog
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy

from infra.rabbitmq.amqp import CONNECTION_ERRORS, connection_parameters
from infra.rabbitmq.availability import Availability
from infra.rabbitmq.messages import Delivery, delivery_from_wire

log = structlog.get_logger(__name__)

# A message that came back this often may be what killed its workers. Until one below it is seen, a consumer
# takes one at a time, so that a crash counts against that one and not against hundreds beside it.
SUSPECT_DELIVERY_COUNT = 3
# So long are messages kept in hand while the database is away; then they go back, because RabbitMQ closes a
# channel whose messages stay unacknowledged for half an hour (`consumer_timeout`).
HOLD_SECONDS = 60.0
FIRST_RECONNECT_SECONDS = 0.2
MAX_RECONNECT_SECONDS = 10.0
# A batch is one transaction. A message may name hundreds of orders, so its size counts too: this much is
# some thousand of them, enough to share what a transaction costs and few enough to stay short.
BATCH_BYTES = 256 << 10
# After this long a steady connection has earned a quick first reconnect again.
STEADY_SECONDS = 10.0
_NOT_FOUND = 404

ChooseActor = Callable[[Delivery], str]


class ConsumerCancelled(Exception):
    """The broker ended the subscription: the queue was deleted, or its leader is gone."""


_LOST: tuple[type[BaseException], ...] = (ConsumerCancelled, *CONNECTION_ERRORS)


@dataclass(frozen=True, slots=True)
class Ack:
    """One acknowledgement frame."""

    tag: int
    multiple: bool


class TagTracker:
    """
    Which delivery tags of one channel are done, and the fewest frames that say so.

    A `multiple` acknowledgement takes everything up to its tag with it, so it stays below the lowest tag
    that is unfinished. And it must name a tag that is still unacknowledged: RabbitMQ, not finding it, would
    acknowledge all it holds while it looks, and then close the channel.
    """

    def __init__(self) -> None:
        self._lowest_unfinished = 1
        self._acknowledged_above: set[int] = set()

    def finish(self, tags: Iterable[int]) -> list[Ack]:
        """Mark tags as done, each once; returns what to send, in order."""
        new = sorted(tags)
        finished = self._acknowledged_above
        finished.update(new)
        while self._lowest_unfinished in finished:
            finished.discard(self._lowest_unfinished)
            self._lowest_unfinished += 1
        below = [tag for tag in new if tag < self._lowest_unfinished]
        acks = [Ack(below[-1], multiple=len(below) > 1)] if below else []
        acks += [Ack(tag, multiple=False) for tag in new if tag > self._lowest_unfinished]
        return acks


@dataclass(frozen=True, slots=True)
class _Buffered:
    tag: int
    delivery: Delivery


class Session:
    """One connection, channel and subscription. Only `settle`, `wake` and `closed` cross threads."""

    def __init__(self, broker_url: str, queue_name: str, prefetch: int) -> None:
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._tracker = TagTracker()
        self._finished: deque[int] = deque()
        self._flush_pending = False
        self._cancelled_by_broker = False
        self._careful = True
        self._widen = False
        self._consumer_tag: str | None = None
        self._closed = threading.Event()
        self.delivered: deque[_Buffered] = deque()
        self.opened_at = time.monotonic()
        self._connection = pika.BlockingConnection(connection_parameters(broker_url, name=queue_name))
        try:
            self._channel = self._connection.channel()
            self._channel.add_on_cancel_callback(self._on_cancelled)
            self._subscribe(1)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def pump(self, seconds: float) -> None:
        """
        Exchange frames with the broker until something happens, or for this long.

        Raises:
            ConsumerCancelled: the broker ended the subscription.
            pika.exceptions.AMQPError, OSError: the connection is gone.
        """
        self._connection.process_data_events(time_limit=seconds)
        if self._cancelled_by_broker:
            raise ConsumerCancelled(f"the broker cancelled the consumer of {self._queue_name}")
        if not self._channel.is_open:
            raise pika.exceptions.ChannelWrongStateError(str(getattr(self._channel, "_closing_reason", "")))
        if self._widen:
            self._widen = False
            self._careful = False
            self._unsubscribe()
            self._subscribe(self._prefetch)

    def stop_deliveries(self) -> None:
        """Let nothing more come in; what is unacknowledged stays so until settled or the session ends."""
        if self._consumer_tag is not None:
            self._unsubscribe()
            self.delivered.clear()

    def settle(self, tags: Iterable[int]) -> None:
        """Acknowledge these, from any thread; nothing happens when the channel is gone."""
        self._finished.extend(tags)
        if not self._flush_pending:
            self._flush_pending = True
            self._call(self._flush)

    def wake(self) -> None:
        """Make `pump` return soon, from any thread."""
        self._call(_nothing)

    def close(self) -> None:
        """End the session: acks given before are sent, what is unacknowledged goes back to its queue."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            if self._connection.is_open:
                self._flush()
                self._connection.close()
        except CONNECTION_ERRORS as error:
            # It is closed either way; what was not acknowledged comes again.
            log.debug("session_close_failed", queue=self._queue_name, error=repr(error))

    def _call(self, function: Callable[[], None]) -> None:
        if self._closed.is_set():
            return
        # When the channel is gone, so is what this would have acknowledged.
        with suppress(*CONNECTION_ERRORS):
            self._connection.add_callback_threadsafe(function)

    def _flush(self) -> None:
        self._flush_pending = False
        finished = self._finished
        tags = [finished.popleft() for _ in range(len(finished))]
        for ack in self._tracker.finish(tags) if tags else ():
            self._channel.basic_ack(ack.tag, multiple=ack.multiple)

    def _subscribe(self, prefetch: int) -> None:
        self._channel.basic_qos(prefetch_count=prefetch)
        self._consumer_tag = self._channel.basic_consume(self._queue_name, self._on_delivery)

    def _unsubscribe(self) -> None:
        consumer_tag, self._consumer_tag = self._consumer_tag, None
        if consumer_tag is not None:
            self._channel.basic_cancel(consumer_tag)

    def _on_cancelled(self, _frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        self._cancelled_by_broker = True

    def _on_delivery(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        if self._careful:
            count = (properties.headers or {}).get("x-delivery-count", 0)
            self._widen = not (isinstance(count, int) and count >= SUSPECT_DELIVERY_COUNT)
        delivery = delivery_from_wire(
            self._queue_name,
            method.exchange,
            method.routing_key,
            body,
            content_type=properties.content_type,
            type_=properties.type,
            headers=properties.headers,
            message_id=properties.message_id,
            redelivered=method.redelivered,
        )
        self.delivered.append(_Buffered(method.delivery_tag, delivery))


def _nothing() -> None:
    """Wake the event loop, no more."""


class Batch:
    """Messages for one actor that one channel delivered; each is acknowledged on its own account."""

    __slots__ = ("_session", "_tags", "deliveries")

    def __init__(self, session: Session, tags: Sequence[int], deliveries: Sequence[Delivery]) -> None:
        self._session = session
        self._tags = tags
        self.deliveries = deliveries

    @property
    def abandoned(self) -> bool:
        """The channel is gone: the broker has these messages back, and somebody else gets them."""
        return self._session.closed

    def settle(self, positions: Iterable[int]) -> None:
        """Acknowledge these messages of the batch, each at most once: their work is committed elsewhere."""
        self._session.settle([self._tags[position] for position in positions])

    def __repr__(self) -> str:
        # Dramatiq logs arguments while debugging; bodies stay out of logs.
        return f"<Batch of {len(self.deliveries)}>"


class BatchMessage(MessageProxy):
    """A batch in the form that Dramatiq's worker carries around. Built here, never decoded from anywhere."""

    def __init__(self, queue_name: str, actor_name: str, batch: Batch, consumer: "QueueConsumer") -> None:
        super().__init__(
            Message(queue_name=queue_name, actor_name=actor_name, args=(batch,), kwargs={}, options={})
        )
        self.batch = batch
        self.consumer = consumer


class QueueConsumer(Consumer):
    """
    Dramatiq's view of one queue.

    It reconnects by itself, so that an outage is one line in the log, not a stack trace every three seconds.

    Args:
        broker_url: AMQP URL.
        queue_name: must exist; workers declare nothing.
        choose_actor: which actor a delivery is for.
        batch_bound: most messages in one batch.
        prefetch: how many unacknowledged messages the channel may hold.
        batches_ahead: how many batches may be handed out and unfinished at once.
        idle_seconds: how long one call waits for messages.
    """

    def __init__(
        self,
        broker_url: str,
        queue_name: str,
        *,
        choose_actor: ChooseActor,
        availability: Availability,
        stopping: threading.Event,
        on_nack: Callable[[str], None],
        batch_bound: int,
        prefetch: int,
        batches_ahead: int,
        idle_seconds: float,
    ) -> None:
        self._queue_name = queue_name
        self._open_session = partial(Session, broker_url, queue_name, prefetch)
        self._choose_actor = choose_actor
        self._availability = availability
        self._stopping = stopping
        self._on_nack = on_nack
        self._batch_bound = batch_bound
        self._batches_ahead = batches_ahead
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._unfinished_batches = 0
        self._session: Session | None = None
        self._buffers: OrderedDict[str, deque[_Buffered]] = OrderedDict()
        self._failures = 0
        self._queue_missing = False
        self._connect_at = 0.0
        self._asked_at = self._progress_at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long ago the consumer's thread last came by."""
        return time.monotonic() - self._asked_at

    @property
    def stuck_seconds(self) -> float:
        """For how long batches have been in the workers' hands without one of them ending."""
        return time.monotonic() - self._progress_at if self._unfinished_batches else 0.0

    @property
    def connected(self) -> bool:
        session = self._session
        return session is not None and not session.closed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchMessage | None:
        """The next batch, or None when there was nothing to hand out for a while. No outage raises."""
        self._asked_at = time.monotonic()
        deadline = self._asked_at + self._idle_seconds
        try:
            session = self._session or self._connect(deadline)
            if session is None:
                return None
            if self._stopping.is_set():
                session.stop_deliveries()
                self._buffers.clear()
            elif self._availability.closed_seconds > HOLD_SECONDS:
                log.info("messages_handed_back", queue=self._queue_name)
                self._drop_session()
                return None
            else:
                session.pump(0)
                self._sort(session)
                if (message := self._take(session)) is not None:
                    return message
            session.pump(max(0.0, deadline - time.monotonic()))
            self._sort(session)
            return self._take(session)
        except _LOST as error:
            self._lost(error)
            return None

    def ack(self, message: MessageProxy) -> None:
        """
        The worker is through with a batch. What it settled is acknowledged already, and nothing else is.

        Dramatiq calls this for a batch whose handler failed, too; that is why this acknowledges nothing.
        """
        if isinstance(message, BatchMessage):
            message.consumer.release()

    def nack(self, message: MessageProxy) -> None:
        """Nothing of ours rejects a message; whatever did is a mistake that must not lose it."""
        self._on_nack(f"a batch of {self._queue_name} was rejected by {message!r}")
        self.ack(message)

    def release(self) -> None:
        """One batch less in the workers' hands."""
        with self._lock:
            self._unfinished_batches -= 1
            self._progress_at = time.monotonic()
        session = self._session
        if session is not None:
            session.wake()

    def close(self) -> None:
        self._drop_session()

    def _connect(self, deadline: float) -> Session | None:
        now = time.monotonic()
        if self._stopping.is_set() or not self._availability.open or now < self._connect_at:
            waits_until = min(deadline, self._connect_at) if self._connect_at > now else deadline
            self._stopping.wait(max(0.0, waits_until - now))
            if self._stopping.is_set():
                # The flag no longer makes anybody wait; without a pause this would spin until the end.
                time.sleep(0.01)
            return None
        session = self._open_session()
        self._session = session
        self._queue_missing = False
        if self._failures:
            log.info("consumer_connected", queue=self._queue_name)
        return session

    def _lost(self, error: BaseException) -> None:
        session = self._session
        if session is not None and time.monotonic() - session.opened_at > STEADY_SECONDS:
            self._failures = 0
        # A line when the state changes, not one an attempt.
        if isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code == _NOT_FOUND:
            # A broker that came back empty. We wait: what it should hold is for the topology to say.
            if not self._queue_missing:
                log.error("queue_missing", queue=self._queue_name, do="run `holdfast topology apply`")
            self._queue_missing = True
        elif session is not None or self._failures == 0:
            log.warning("consumer_connection_lost", queue=self._queue_name, error=repr(error))
        self._drop_session()
        ceiling = min(MAX_RECONNECT_SECONDS, FIRST_RECONNECT_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads reconnects, no secret
        self._connect_at = time.monotonic() + pause

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        self._buffers.clear()
        if session is not None:
            session.close()

    def _sort(self, session: Session) -> None:
        delivered = session.delivered
        while delivered:
            buffered = delivered.popleft()
            self._buffers.setdefault(self._choose_actor(buffered.delivery), deque()).append(buffered)

    def _take(self, session: Session) -> BatchMessage | None:
        if not self._buffers or not self._availability.open or self._stopping.is_set():
            return None
        with self._lock:
            if self._unfinished_batches >= self._batches_ahead:
                return None
            if not self._unfinished_batches:
                self._progress_at = time.monotonic()
            self._unfinished_batches += 1
        actor_name, waiting = self._buffers.popitem(last=False)
        taken = [waiting.popleft()]
        size = len(taken[0].delivery.body)
        # What was delivered before may be what broke its worker; it is handled on its own.
        if not taken[0].delivery.redelivered:
            while waiting and len(taken) < self._batch_bound and not waiting[0].delivery.redelivered:
                size += len(waiting[0].delivery.body)
                if size > BATCH_BYTES:
                    break
                taken.append(waiting.popleft())
        if waiting:
            # To the end: the actors of one queue take turns.
            self._buffers[actor_name] = waiting
        batch = Batch(session, [one.tag for one in taken], [one.delivery for one in taken])
        return BatchMessage(self._queue_name, actor_name, batch, self)
