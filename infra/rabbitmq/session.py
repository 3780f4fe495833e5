"""
One subscription to one queue, for as long as its connection lives: deliveries in, acknowledgements out.

A channel's delivery tags mean nothing on the next one, so whatever belongs to a session ends with it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
import structlog
from msgspec import Struct

from infra.rabbitmq.amqp import CONNECTION_ERRORS, SOCKET_TIMEOUT_SECONDS, connection_parameters
from infra.rabbitmq.deliveries import DeliveryReader, ReadingConnection
from infra.rabbitmq.messages import Delivery, delivery_from_wire

log = structlog.get_logger(__name__)

# A message that came back this often may be what killed its workers. Until one below it is seen, a consumer
# takes one at a time, so that a crash counts against that one and not against hundreds beside it.
SUSPECT_DELIVERY_COUNT = 3
# So long a finished batch waits for an earlier one, so that one frame can acknowledge both.
ACK_PATIENCE_SECONDS = 0.1
# How often a consumer with enough in hand still reads a little. Far below the 15 seconds for which RabbitMQ
# waits for a reader before it ends the connection, and heartbeats need it, too.
SLOW_READ_SECONDS = 1.0
_OPEN_SECONDS = 4 * SOCKET_TIMEOUT_SECONDS
_CLOSE_SECONDS = SOCKET_TIMEOUT_SECONDS


class ConsumerCancelled(Exception):
    """The broker ended the subscription: the queue was deleted, or its leader is gone."""


LOST_SESSION: tuple[type[BaseException], ...] = (ConsumerCancelled, *CONNECTION_ERRORS)


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
        # Above it: finished and not said yet, and said one by one.
        self._finished: set[int] = set()
        self._acknowledged: set[int] = set()

    @property
    def waiting(self) -> bool:
        """Whether tags are finished and not acknowledged, because one below them is unfinished."""
        return bool(self._finished)

    def finish(self, tags: Iterable[int]) -> None:
        """Mark tags as done, each once."""
        self._finished.update(tags)

    def acks(self, *, patient: bool) -> list[Ack]:
        """Return what to send, in order; the patient leave out what cannot share a frame yet."""
        finished, acknowledged = self._finished, self._acknowledged
        tag, last, count = self._lowest_unfinished, 0, 0
        while True:
            if tag in finished:
                finished.discard(tag)
                last = tag
                count += 1
            elif tag in acknowledged:
                acknowledged.discard(tag)
            else:
                break
            tag += 1
        self._lowest_unfinished = tag
        acks = [Ack(last, multiple=count > 1)] if last else []
        if not patient:
            acks += [Ack(tag, multiple=False) for tag in sorted(finished)]
            acknowledged.update(finished)
            finished.clear()
        return acks


class Buffered(Struct, frozen=True, gc=False):
    """A delivery that was not handed out yet, and the tag that acknowledges it."""

    tag: int
    delivery: Delivery


class Session:
    """
    One connection, channel and subscription. Only `settle`, `wake` and `closed` cross threads.

    Raises:
        pika.exceptions.AMQPError, OSError: there is no such subscription to be had.
    """

    def __init__(self, broker_url: str, queue_name: str, prefetch: int) -> None:
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._tracker = TagTracker()
        self._finished: deque[int] = deque()
        self._flush_pending = False
        self._patience: object | None = None
        self._lost_because: BaseException | None = None
        self._woken = False
        # Set by whoever wants the loop to turn, for when it rests.
        self._called = threading.Event()
        self._careful = True
        self._widen = False
        self._stopped = False
        self._channel: Any = None
        self._consumer_tag: str | None = None
        self._consumers = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.delivered: deque[Buffered] = deque()
        self.opened_at = time.monotonic()
        self._connection = ReadingConnection(
            connection_parameters(broker_url, name=queue_name),
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
        )
        self._loop = self._connection.ioloop
        self._loop.activate_poller()
        try:
            self._turn(
                _OPEN_SECONDS, lambda: self._consumer_tag is not None or self._lost_because is not None
            )
            self._raise_if_not_open()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def pump(self, seconds: float, *, slowly: bool = False) -> None:
        """
        Exchange frames with the broker until something happens, or for this long.

        `slowly` leaves most of what comes in the sockets, so that the broker keeps it: a hundred KiB or so is
        read a second, and whenever somebody settles or wakes.

        Raises:
            ConsumerCancelled: the broker ended the subscription.
            pika.exceptions.AMQPError, OSError: the connection is gone.
        """
        if slowly:
            self._called.wait(min(seconds, SLOW_READ_SECONDS))
            self._called.clear()
            seconds = 0
        self._turn(seconds, lambda: self._woken or bool(self.delivered) or self._lost_because is not None)
        self._woken = False
        self._raise_if_lost()
        if self._widen:
            self._widen = self._careful = False
            self._unsubscribe(self._subscribe_wide)

    def stop_deliveries(self) -> None:
        """
        Let nothing more come in; what is unacknowledged stays so until settled or the session ends.

        What pika reads of what was on its way goes back at once.
        """
        if not self._stopped:
            self._stopped = True
            self.delivered.clear()
            if self._consumer_tag is not None:
                self._unsubscribe()

    def settle(self, tags: Iterable[int]) -> None:
        """Acknowledge these, from any thread; nothing happens when the channel is gone."""
        self._finished.extend(tags)
        if not self._flush_pending:
            self._flush_pending = True
            self._call(self._flush)

    def wake(self) -> None:
        """Make `pump` return soon, from any thread."""
        self._call(self._wake_up)

    def close(self) -> None:
        """End the session: acks given before are sent, what is unacknowledged goes back to its queue."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        try:
            if self._channel is not None and self._channel.is_open:
                self._flush(patient=False)
            if not (self._connection.is_closed or self._connection.is_closing):
                self._connection.close()
            self._turn(_CLOSE_SECONDS, lambda: bool(self._connection.is_closed))
        except CONNECTION_ERRORS as error:
            # It is closed either way; what was not acknowledged comes again.
            log.debug("session_close_failed", queue=self._queue_name, error=repr(error))
        finally:
            with suppress(*CONNECTION_ERRORS):
                self._connection.cut()
            self._loop.deactivate_poller()
            self._loop.close()

    def _turn(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Run the loop until it is enough, or for this long."""
        late = False

        def end() -> None:
            nonlocal late
            late = True

        timer = self._loop.call_later(seconds, end)
        try:
            while not (late or enough()):
                self._connection.begin_turn()
                self._loop.poll()
                self._loop.process_timeouts()
        finally:
            self._loop.remove_timeout(timer)

    def _raise_if_not_open(self) -> None:
        self._raise_if_lost()
        if self._consumer_tag is None:
            raise TimeoutError(f"no subscription to {self._queue_name} within {_OPEN_SECONDS:.0f} s")

    def _raise_if_lost(self) -> None:
        if self._lost_because is not None:
            raise self._lost_because

    def _call(self, function: Callable[[], None]) -> None:
        with self._lock:
            # When the channel is gone, so is what this would have acknowledged.
            if not self._closed.is_set():
                self._loop.add_callback_threadsafe(function)
                self._called.set()

    def _wake_up(self) -> None:
        self._woken = True

    def _flush(self, *, patient: bool = True) -> None:
        self._flush_pending = False
        finished = self._finished
        self._tracker.finish([finished.popleft() for _ in range(len(finished))])
        # A channel that is going down takes no more; what was not acknowledged comes again.
        with suppress(pika.exceptions.ChannelWrongStateError):
            for ack in self._tracker.acks(patient=patient):
                self._channel.basic_ack(ack.tag, multiple=ack.multiple)
        if self._patience is None and self._tracker.waiting:
            self._patience = self._loop.call_later(ACK_PATIENCE_SECONDS, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        self._flush(patient=False)

    # --- what pika calls back -------------------------------------------------

    def _on_open(self, connection: Any) -> None:  # noqa: ANN401 - pika is untyped
        connection.read_much_at_once()
        connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Any) -> None:  # noqa: ANN401 - pika is untyped
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_cancelled)
        self._subscribe(1)

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:  # noqa: ANN401 - pika is untyped
        # For instance a queue that does not exist.
        self._lose(reason)

    def _on_lost(self, _connection: Any, reason: BaseException) -> None:  # noqa: ANN401 - pika is untyped
        self._lose(reason)

    def _on_cancelled(self, _frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        self._lose(ConsumerCancelled(f"the broker cancelled the consumer of {self._queue_name}"))

    def _lose(self, reason: BaseException) -> None:
        if self._lost_because is None:
            known = isinstance(reason, LOST_SESSION)
            self._lost_because = reason if known else pika.exceptions.AMQPConnectionError(repr(reason))

    # --- the subscription -----------------------------------------------------

    def _subscribe(self, prefetch: int) -> None:
        self._consumers += 1
        consumer_tag = f"holdfast-{self._consumers}"
        self._connection.reader = DeliveryReader(
            self._queue_name,
            channel_number=self._channel.channel_number,
            consumer_tag=consumer_tag,
            frame_max=self._connection.params.frame_max,
            take=self._take,
        )
        self._channel.basic_qos(prefetch_count=prefetch)
        self._channel.basic_consume(
            self._queue_name,
            self._on_delivery,
            consumer_tag=consumer_tag,
            callback=lambda _frame: self._subscribed(consumer_tag),
        )

    def _subscribed(self, consumer_tag: str) -> None:
        self._consumer_tag = consumer_tag
        if self._stopped:
            self._unsubscribe()

    def _subscribe_wide(self) -> None:
        if not self._stopped:
            self._subscribe(self._prefetch)

    def _unsubscribe(self, then: Callable[[], None] | None = None) -> None:
        consumer_tag, self._consumer_tag = self._consumer_tag, None
        if consumer_tag is not None:
            self._channel.basic_cancel(consumer_tag, callback=(lambda _frame: then()) if then else None)

    def _on_delivery(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        """Take what the reader left to pika."""
        headers = properties.headers or {}
        if self._careful:
            count = headers.get("x-delivery-count", 0)
            self._widen = not (isinstance(count, int) and count >= SUSPECT_DELIVERY_COUNT)
        self._add(
            method.delivery_tag,
            delivery_from_wire(
                self._queue_name,
                method.exchange,
                method.routing_key,
                body,
                content_type=properties.content_type,
                type_=properties.type,
                headers=headers,
                message_id=properties.message_id,
                redelivered=method.redelivered,
            ),
        )

    def _take(self, tag: int, delivery: Delivery) -> None:
        # A count of deliveries would be a number, which the reader leaves to pika.
        if self._careful:
            self._widen = True
        self._add(tag, delivery)

    def _add(self, tag: int, delivery: Delivery) -> None:
        if not self._stopped:
            self.delivered.append(Buffered(tag, delivery))
