"""What the tests on a real broker share: plain AMQP beside our code, a cable to pull, a worker to watch."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import pika
from dramatiq import Worker

from infra.local.rabbitmq import PrivateRabbitMQ
from infra.rabbitmq.broker import BatchHandler, HoldfastBroker
from infra.rabbitmq.messages import Delivery, Failure
from infra.rabbitmq.publisher import Publisher

PATIENCE_SECONDS = 20.0

# Three days of the test's protection periods last three seconds.
DAY_SECONDS = 1


def wait_until(true: Callable[[], object], *, patience: float = PATIENCE_SECONDS) -> None:
    """Return as soon as it is true; fail when it does not become true."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.01)


@contextmanager
def amqp(url: str) -> Iterator[Any]:
    """A channel with confirms, as any client would open it."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            connection.close()


@contextmanager
def memory_alarm(node: PrivateRabbitMQ) -> Iterator[None]:
    """
    The broker short of memory: it blocks every connection that publishes.

    An alarm reaches the connections some time after it was set; it is waited for here until none of
    them would let a message through any more.
    """
    alarm = "{resource_limit, memory, node()}"
    try:
        node._evaluate(
            f"rabbit_alarm:set_alarm({{{alarm}, []}}),"
            " Wait = fun Wait(0) -> not_blocked;"
            " Wait(Tries) ->"
            " case [open || Reader <- rabbit_networking:connections(),"
            " [{state, running}] <- [(catch rabbit_reader:info(Reader, [state]))]] of"
            " [] -> ok;"
            " _ -> timer:sleep(10), Wait(Tries - 1) end end,"
            " Wait(2000)."
        )
        yield
    finally:
        node._evaluate(f"rabbit_alarm:clear_alarm({alarm}), ok.")


def depth(url: str, queue_name: str) -> int:
    """How many messages are ready in a queue."""
    with amqp(url) as channel:
        return int(channel.queue_declare(queue_name, passive=True).method.message_count)


def is_empty(url: str, queue_name: str) -> bool:
    """Whether nothing is left, neither ready nor unacknowledged: deleting on condition tells, purging not."""
    return depth(url, queue_name) == 0


@dataclass(frozen=True, slots=True)
class Read:
    """A message taken out of a queue by a plain client."""

    body: bytes
    headers: Mapping[str, object]
    type: str | None
    message_id: str | None
    routing_key: str


def read(url: str, queue_name: str, *, patience: float = PATIENCE_SECONDS) -> Read:
    """Wait for the next message of a queue and take it out."""
    deadline = time.monotonic() + patience
    with amqp(url) as channel:
        while True:
            method, properties, body = channel.basic_get(queue_name, auto_ack=True)
            if method is not None:
                return Read(
                    body, properties.headers or {}, properties.type, properties.message_id, method.routing_key
                )
            assert time.monotonic() < deadline, f"nothing came into {queue_name}"
            time.sleep(0.01)


def send(
    url: str, exchange: str, routing_key: str, *bodies: bytes, mandatory: bool = True, **properties: Any
) -> None:
    """Publish bodies, each confirmed."""
    with amqp(url) as channel:
        for body in bodies:
            channel.basic_publish(
                exchange, routing_key, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory
            )


class Cable:
    """A TCP connection's middle: it can be pulled out, kept out, or fall silent."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 5672)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
        self.plugged = True
        self.silent = False
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection now, as a crash would; new ones come through again."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def unplug(self) -> None:
        """Break every connection and let none come through."""
        self.plugged = False
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.plugged:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while True:
                for end in select.select([near, far], [], [], 0.05)[0]:
                    if self.silent:
                        time.sleep(0.02)
                        continue
                    data = end.recv(65_536)
                    if not data:
                        return
                    (far if end is near else near).sendall(data)
        except (OSError, ValueError):
            return
        finally:
            near.close()
            far.close()


class Unavailable(Exception):
    """The database is away."""


class Poison(Exception):
    """This message can never be done."""


class TryLater(Exception):
    """Might work another time."""


def classify(error: BaseException) -> Failure:
    if isinstance(error, Unavailable):
        return Failure.UNAVAILABLE
    return Failure.POISON if isinstance(error, Poison) else Failure.RETRY


@dataclass
class Recorder:
    """A handler that remembers what it got; `behave` decides what becomes of it."""

    behave: Callable[[Sequence[Delivery]], None] = lambda _deliveries: None
    batches: list[list[Delivery]] = field(default_factory=list)
    done: list[Delivery] = field(default_factory=list)

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        self.batches.append(list(deliveries))
        self.behave(deliveries)
        self.done += deliveries

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.done]


class Workplace:
    """A broker class, its publisher and a running Dramatiq worker, put together as a worker process does."""

    def __init__(
        self, url: str, *, threads: int = 2, publisher_url: str | None = None, **options: Any
    ) -> None:
        self.publisher = Publisher(publisher_url or url)
        options.setdefault("await_recovery", lambda _stopping: None)
        options.setdefault("publish_timeout_s", 2.0)
        self.broker = HoldfastBroker(
            url, publisher=self.publisher, classify=classify, batches_ahead=threads + 1, **options
        )
        self.worker = Worker(self.broker, worker_threads=threads, worker_timeout=100)

    def on(
        self, queue_name: str, handle: BatchHandler, *, actor_name: str | None = None, external: bool = False
    ) -> Self:
        """Declare an actor; without a name it is the queue's only one."""
        self.broker.declare_batch_actor(
            queue_name=queue_name,
            actor_name=actor_name or queue_name.replace(".", "_"),
            handle=handle,
            external=external,
        )
        return self

    def __enter__(self) -> Self:
        self.worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()
        self.worker.stop(timeout=10_000)
        self.publisher.close()
