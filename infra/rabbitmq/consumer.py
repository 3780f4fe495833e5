"""
From a queue to batches.

A consumer owns one connection at a time. What the connection has delivered waits in a buffer; a batch takes
what is there, up to a bound, as soon as nothing of the queue is being worked on. Else it grows: until nothing
is being worked on, until it is full, or, where a worker thread is free for it, until `GROW_SECONDS` after the
last batch was taken. So batches are small when little comes in and grow by themselves when much does.
Messages of several kinds make no larger batch by waiting, so they don't.

A batch belongs to the channel that delivered it. After a reconnect the same delivery tags mean other
messages, so an acknowledgement that comes late is dropped with its channel.
"""

import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Self

import pika.exceptions
import structlog
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy

from infra.rabbitmq.availability import Availability
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.session import LOST_SESSION, Buffered, Session

log = structlog.get_logger(__name__)

# So long are messages kept in hand while the database is away; then they go back, because RabbitMQ closes a
# channel whose messages stay unacknowledged for half an hour (`consumer_timeout`).
HOLD_SECONDS = 60.0
FIRST_RECONNECT_SECONDS = 0.2
MAX_RECONNECT_SECONDS = 10.0
# A batch is one transaction, and a message may name hundreds of orders or holds, so its size counts too. This
# much is some two thousand orders in full, or thirteen thousand that a command names: enough to share what a
# transaction costs, and few enough to keep it short.
EVENT_BATCH_BYTES, COMMAND_BATCH_BYTES = 1536 << 10, 512 << 10
# A batch costs as much as some hundreds of orders before it has done anything, so one batch of what has come
# is quicker than two. But one that waits, for a lock or a bank, must not keep the other threads idle.
GROW_SECONDS = 0.1
# The broker bounds what it delivers ahead by number alone, and a message may have a MiB. With this much in
# hand a queue is read on slowly: it is thousands of single events, or a score of the largest messages.
BUFFERED_BYTES = 16 << 20
# So often is read before a batch is made; a read takes a hundred KiB or so.
_MOST_READS = 16
# After this long a steady connection has earned a quick first reconnect again.
STEADY_SECONDS = 10.0
_NOT_FOUND = 404

ChooseActor = Callable[[Delivery], str]


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


class _Waiting:
    """What has come for one actor, in order, and how many bytes its bodies have."""

    __slots__ = ("buffered", "size")

    def __init__(self) -> None:
        self.buffered: deque[Buffered] = deque()
        self.size = 0


class QueueConsumer(Consumer):
    """
    Dramatiq's view of one queue.

    It reconnects by itself, so that an outage is one line in the log, not a stack trace every three seconds.

    Args:
        broker_url: AMQP URL.
        queue_name: must exist; workers declare nothing.
        choose_actor: which actor a delivery is for.
        batch_bound: most messages in one batch.
        batch_bytes: most bytes of their bodies, unless it is one alone.
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
        batch_bytes: int,
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
        self._batch_bytes = batch_bytes
        self._batches_ahead = batches_ahead
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._unfinished_batches = 0
        self._taken_at = 0.0
        self._session: Session | None = None
        self._buffers: OrderedDict[str, _Waiting] = OrderedDict()
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
                self._read_what_came(session)
                if (message := self._take(session)) is not None:
                    return message
            session.pump(self._pause_seconds(deadline), slowly=self._has_enough)
            self._sort(session)
            return self._take(session)
        except LOST_SESSION as error:
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
            actor_name = self._choose_actor(buffered.delivery)
            waiting = self._buffers.get(actor_name)
            if waiting is None:
                waiting = self._buffers[actor_name] = _Waiting()
            waiting.buffered.append(buffered)
            waiting.size += len(buffered.delivery.body)

    @property
    def _buffered_bytes(self) -> int:
        return sum(waiting.size for waiting in self._buffers.values())

    @property
    def _has_enough(self) -> bool:
        return self._buffered_bytes > BUFFERED_BYTES

    def _gains_by_waiting(self) -> bool:
        """Whether the next batch may still grow, and keeps none of another kind from its turn."""
        waiting = next(iter(self._buffers.values()))
        return (
            len(self._buffers) == 1
            and waiting.size <= self._batch_bytes
            and len(waiting.buffered) < self._batch_bound
            and not waiting.buffered[0].delivery.redelivered
        )

    def _growing_seconds(self, now: float) -> float:
        """How much longer the next batch may grow at most, while another is at work."""
        if self._unfinished_batches >= self._batches_ahead - 1:
            # Nobody is free, at least until one of those at work ends.
            return math.inf
        return self._taken_at + GROW_SECONDS - now

    def _pause_seconds(self, deadline: float) -> float:
        """How long to wait for what comes; a batch that ends wakes us before that."""
        now = time.monotonic()
        if not self._takes_batches:
            return max(0.0, deadline - now)
        return max(0.0, min(deadline - now, self._growing_seconds(now)))

    @property
    def _takes_batches(self) -> bool:
        return bool(self._buffers) and self._availability.open and not self._stopping.is_set()

    def _read_what_came(self, session: Session) -> None:
        """Read until nothing more lies there, or enough is in hand."""
        for _ in range(_MOST_READS):
            if self._has_enough:
                return
            session.pump(0)
            if not session.delivered:
                return
            self._sort(session)

    def _take(self, session: Session) -> BatchMessage | None:
        if not self._takes_batches:
            return None
        with self._lock:
            if self._unfinished_batches >= self._batches_ahead:
                return None
            now = time.monotonic()
            if self._unfinished_batches and self._growing_seconds(now) > 0 and self._gains_by_waiting():
                return None
            if not self._unfinished_batches:
                self._progress_at = now
            self._unfinished_batches += 1
            self._taken_at = now
        actor_name, waiting = self._buffers.popitem(last=False)
        taken = self._cut(waiting)
        if waiting.buffered:
            # To the end: the actors of one queue take turns.
            self._buffers[actor_name] = waiting
        batch = Batch(session, [one.tag for one in taken], [one.delivery for one in taken])
        return BatchMessage(self._queue_name, actor_name, batch, self)

    def _cut(self, waiting: _Waiting) -> list[Buffered]:
        """Take the next batch from what waits, one message at least."""
        buffered = waiting.buffered
        taken = [buffered.popleft()]
        size = len(taken[0].delivery.body)
        # What was delivered before may be what broke its worker; it is handled on its own.
        if not taken[0].delivery.redelivered:
            while buffered and len(taken) < self._batch_bound and not buffered[0].delivery.redelivered:
                if size + len(buffered[0].delivery.body) > self._batch_bytes:
                    break
                taken.append(buffered.popleft())
                size += len(taken[-1].delivery.body)
        waiting.size -= size
        return taken
