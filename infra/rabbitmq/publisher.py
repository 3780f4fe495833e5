"""
Publishing with confirms: many messages in flight, an outcome for each, never a hang.

One connection, kept by a thread of its own, so heartbeats are answered whatever the callers do, and any
number of threads may publish. Sending one message and waiting for its confirm costs a disk flush a
message; a window of unconfirmed messages shares the flushes.
"""

import itertools
import random
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import pika
import structlog

from infra.rabbitmq.amqp import PERSISTENT, connection_parameters
from infra.rabbitmq.messages import Outgoing, PublishOutcome

log = structlog.get_logger(__name__)

FIRST_RECONNECT_SECONDS = 0.1
MAX_RECONNECT_SECONDS = 5.0
CLOSE_SECONDS = 5.0


class PublisherClosed(RuntimeError):
    """Publish after close: a mistake in the caller's shutdown, not a state of the broker."""


class UnencodableMessage(ValueError):
    """A header or property that AMQP cannot carry; sending it again cannot help."""


class _Job:
    """One call of `publish`: what became of each of its messages."""

    __slots__ = ("done", "error", "expired", "outcomes", "remaining")

    def __init__(self, size: int) -> None:
        self.outcomes: list[PublishOutcome | None] = [None] * size
        self.remaining = size
        self.done = threading.Event()
        self.expired = False
        self.error: Exception | None = None

    def resolve(self, index: int, outcome: PublishOutcome) -> None:
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.remaining -= 1
            if not self.remaining:
                self.done.set()


class _Entry:
    __slots__ = ("index", "job", "message", "returned")

    def __init__(self, message: Outgoing, job: _Job, index: int) -> None:
        self.message = message
        self.job = job
        self.index = index
        self.returned = False

    def resolve(self, outcome: PublishOutcome) -> None:
        self.job.resolve(self.index, outcome)


class Publisher:
    """
    Publishes persistent, mandatory, confirmed messages from any thread.

    Args:
        broker_url: AMQP URL.
        window: how many messages may be unconfirmed at once.
        name: what the broker's list of connections shows.
    """

    def __init__(self, broker_url: str, *, window: int = 512, name: str = "publisher") -> None:
        self._parameters = connection_parameters(broker_url, name=name)
        self._window = window
        self._name = name
        self._waiting: deque[_Entry] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._session: _Session | None = None
        self._closing = threading.Event()

    @property
    def connected(self) -> bool:
        """Whether messages can be sent right now."""
        session = self._session
        return session is not None and session.ready

    def publish(self, messages: Sequence[Outgoing], *, timeout_s: float = 10.0) -> list[PublishOutcome]:
        """
        Send messages and say what the broker answered to each, in the order given.

        Returns within the time-out: what is unanswered by then is UNKNOWN, and is not sent any more if it was
        still waiting here.

        Raises:
            UnencodableMessage: a message that AMQP cannot carry. The others may have been sent.
            PublisherClosed: after `close`.
        """
        if not messages:
            return []
        job = _Job(len(messages))
        with self._lock:
            if self._closing.is_set():
                raise PublisherClosed(f"publisher {self._name!r} is closed")
            self._waiting.extend(_Entry(message, job, index) for index, message in enumerate(messages))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"holdfast-{self._name}", daemon=True)
                self._thread.start()
        session = self._session
        if session is not None:
            session.wake()
        job.done.wait(timeout_s)
        job.expired = True
        if job.error is not None:
            raise UnencodableMessage(str(job.error)) from job.error
        return [outcome or PublishOutcome.UNKNOWN for outcome in job.outcomes]

    def close(self) -> None:
        """Close the connection; what is unconfirmed becomes UNKNOWN. Safe to call twice."""
        with self._lock:
            self._closing.set()
            thread, session = self._thread, self._session
        if session is not None:
            session.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            session = _Session(self._parameters, self._waiting, self._window, self._closing, self._name)
            self._session = session
            try:
                session.run()
            except Exception as error:  # noqa: BLE001 - this thread must outlive every error
                session.lost_because = error
            finally:
                session.abandon()
            if self._closing.is_set():
                break
            # A line when the state changes, not one an attempt.
            if session.was_ready or failures == 0:
                log.warning(
                    "publisher_connection_lost", publisher=self._name, error=repr(session.lost_because)
                )
            failures = 0 if session.was_ready else failures + 1
            ceiling = min(MAX_RECONNECT_SECONDS, FIRST_RECONNECT_SECONDS * 2 ** min(failures, 10))
            self._closing.wait(random.uniform(ceiling / 2, ceiling))  # noqa: S311 - spreads reconnects, no secret
            self._drop_expired()
        while self._waiting:
            self._waiting.popleft().resolve(PublishOutcome.UNKNOWN)

    def _drop_expired(self) -> None:
        """With the broker away nothing else takes messages out whose callers have given up."""
        for _ in range(len(self._waiting)):
            entry = self._waiting.popleft()
            if not entry.job.expired:
                self._waiting.append(entry)


class _Session:
    """One connection's life. Everything but `wake` runs in the publisher's own thread."""

    def __init__(
        self,
        parameters: Any,  # noqa: ANN401 - pika is untyped
        waiting: deque[_Entry],
        window: int,
        closing: threading.Event,
        name: str,
    ) -> None:
        self._waiting = waiting
        self._window = window
        self._closing = closing
        self._name = name
        self._unconfirmed: dict[int, _Entry] = {}
        self._oldest_tag = 1
        self._tags = itertools.count(1)
        self._channel: Any = None
        self._blocked = False
        self._wake_pending = False
        self._stopped = False
        self.ready = False
        self.was_ready = False
        self.lost_because: BaseException | None = None
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
        )

    def run(self) -> None:
        self._connection.ioloop.start()

    def wake(self) -> None:
        """Have the session look at the waiting messages; from any thread."""
        if self._stopped or self._wake_pending:
            return
        self._wake_pending = True
        self._connection.ioloop.add_callback_threadsafe(self._pump)

    def abandon(self) -> None:
        """The connection is gone: nobody will ever answer for what was in flight."""
        self._stopped = True
        self.ready = False
        for entry in self._unconfirmed.values():
            entry.resolve(PublishOutcome.UNKNOWN)
        self._unconfirmed.clear()

    def _on_open(self, connection: Any) -> None:  # noqa: ANN401 - pika is untyped
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Any) -> None:  # noqa: ANN401 - pika is untyped
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_returned)
        channel.confirm_delivery(self._on_confirm, callback=self._on_confirm_mode)

    def _on_confirm_mode(self, _frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        self.ready = self.was_ready = True
        log.info("publisher_connected", publisher=self._name)
        self._pump()

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:  # noqa: ANN401 - pika is untyped
        # For instance an exchange that does not exist. The messages in flight share the channel's fate.
        self.lost_because = reason
        self.ready = False
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()

    def _on_lost(self, _connection: Any, reason: BaseException) -> None:  # noqa: ANN401 - pika is untyped
        self.lost_because = self.lost_because or reason
        self.ready = False
        self._stopped = True
        self._connection.ioloop.stop()

    def _on_blocked(self, _connection: Any, frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        # The broker is short of memory or disk and reads nothing from here until it says otherwise.
        self._blocked = True
        self.ready = False
        log.warning("publisher_blocked_by_broker", publisher=self._name, reason=frame.method.reason)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        self._blocked = False
        self.ready = True
        log.info("publisher_unblocked_by_broker", publisher=self._name)
        self._pump()

    def _pump(self) -> None:
        self._wake_pending = False
        if self._closing.is_set():
            if not (self._connection.is_closing or self._connection.is_closed):
                self._connection.close()
            return
        if not self.ready or self._blocked:
            return
        waiting, unconfirmed = self._waiting, self._unconfirmed
        while waiting and len(unconfirmed) < self._window:
            entry = waiting.popleft()
            if not entry.job.expired:
                self._send(entry)

    def _send(self, entry: _Entry) -> None:
        message = entry.message
        properties = pika.BasicProperties(
            content_type=message.content_type,
            headers=dict(message.headers) if message.headers else None,
            delivery_mode=PERSISTENT,
            message_id=message.message_id,
            type=message.type,
        )
        try:
            self._channel.basic_publish(
                message.exchange, message.routing_key, message.body, properties, mandatory=True
            )
        except pika.exceptions.AMQPConnectionError:
            raise
        except pika.exceptions.ChannelWrongStateError:
            self._waiting.appendleft(entry)
            self.ready = False
        except Exception as error:  # noqa: BLE001 - pika encodes everything before it sends anything
            entry.job.error = error
            entry.job.done.set()
        else:
            self._unconfirmed[next(self._tags)] = entry

    def _on_returned(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        # The return precedes its confirm but does not say which message it is. The oldest that looks the
        # same is it: messages that look the same are the same, and have the same fate.
        for entry in self._unconfirmed.values():
            message = entry.message
            if (
                not entry.returned
                and message.routing_key == method.routing_key
                and message.exchange == method.exchange
                and message.body == body
                and message.message_id == properties.message_id
            ):
                entry.returned = True
                return

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401 - pika is untyped
        method = frame.method
        refused = isinstance(method, pika.spec.Basic.Nack)
        last = method.delivery_tag
        tags = range(self._oldest_tag, last + 1) if method.multiple else (last,)
        for tag in tags:
            entry = self._unconfirmed.pop(tag, None)
            if entry is None:
                continue
            if refused:
                entry.resolve(PublishOutcome.REFUSED)
            elif entry.returned:
                entry.resolve(PublishOutcome.UNROUTABLE)
            else:
                entry.resolve(PublishOutcome.CONFIRMED)
        if method.multiple:
            self._oldest_tag = max(self._oldest_tag, last + 1)
        self._pump()
