"""Orders that arrive at a fixed rate, and how long each takes until the shop reads that it is held."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pika
from drain import MeasurementFailed, Workers
from holdfast_workers import Installation
from orders import SHOP, Order, make_orders, single_events
from sampling import percentile

from infra.rabbitmq.messages import Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher
from schemas.envelope import BATCH_CONTENT_TYPE

_TICK_SECONDS = 0.005
_LAST_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds from publishing to the answer's arrival at the shop, one an order."""

    rate: float
    seconds: Sequence[float]

    @property
    def p50_ms(self) -> float:
        return percentile(self.seconds, 50) * 1000

    @property
    def p99_ms(self) -> float:
        return percentile(self.seconds, 99) * 1000


class Answers:
    """Reads the shop's queue and notes when each order's `order.held` came."""

    def __init__(self, broker_url: str) -> None:
        self.arrived: dict[str, float] = {}
        self._broker_url = broker_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        import json  # noqa: PLC0415 - beside its only use

        connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=64)
        for method, properties, body in channel.consume(f"events.{SHOP}", inactivity_timeout=0.2):
            if self._stop.is_set():
                break
            if method is None:
                continue
            now = time.monotonic()
            parsed = json.loads(body)
            for event in parsed if properties.content_type == BATCH_CONTENT_TYPE else [parsed]:
                if event["type"] == "order.held":
                    self.arrived.setdefault(event["data"]["order_id"], now)
            channel.basic_ack(method.delivery_tag)
        channel.cancel()
        connection.close()


class Arrivals:
    """Publishes orders at a fixed rate from a thread; what is late is made up for, never left out."""

    def __init__(self, there: Installation, *, rate: float, seconds: float) -> None:
        self._rate = rate
        self._orders = make_orders(int(rate * seconds), sellers=10_000)
        self._messages = single_events(self._orders, there.keys)
        self._publisher = Publisher(there.broker_url, name="bench-arrivals")
        self._published: dict[str, float] = {}
        self._unconfirmed = 0

    def run(self) -> None:
        """Publish all of them; returns when the last is confirmed."""
        began = time.monotonic()
        sent = 0
        while sent < len(self._messages):
            due = min(len(self._messages), int((time.monotonic() - began) * self._rate) + 1)
            if due > sent:
                self._publish(self._orders[sent:due], self._messages[sent:due])
                sent = due
            time.sleep(_TICK_SECONDS)
        self._publisher.close()

    def latencies(self, answers: Answers, workers: Workers) -> Latencies:
        """Wait for every answer."""
        deadline = time.monotonic() + _LAST_ANSWER_SECONDS
        while missing := sum(order not in answers.arrived for order in self._published):
            workers.check()
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"{missing} of {len(self._published)} orders were not answered")
            time.sleep(_TICK_SECONDS)
        return Latencies(self._rate, [answers.arrived[order] - at for order, at in self._published.items()])

    def between(self, answers: Answers, start: float, end: float) -> list[float]:
        """Return the latencies of orders published between two moments of the monotonic clock."""
        return [
            answers.arrived[order] - at
            for order, at in self._published.items()
            if start <= at < end and order in answers.arrived
        ]

    def _publish(self, orders: Sequence[Order], messages: Sequence[Outgoing]) -> None:
        now = time.monotonic()
        for order in orders:
            self._published[str(order["order_id"])] = now
        outcomes = self._publisher.publish(messages, timeout_s=60)
        if any(outcome is not PublishOutcome.CONFIRMED for outcome in outcomes):
            raise MeasurementFailed("the broker did not take an order")


def measure_latency(
    there: Installation, rates: Sequence[float], *, seconds: float, at_least_orders: int
) -> list[Latencies]:
    """Measure at each rate for so long, and longer where fewer orders would come; after a short warm-up."""
    results = []
    answers = Answers(there.broker_url)
    with there.running() as workers, answers.reading():
        warm_up = Arrivals(there, rate=50, seconds=2)
        warm_up.run()
        warm_up.latencies(answers, workers)
        for rate in rates:
            arrivals = Arrivals(there, rate=rate, seconds=max(seconds, at_least_orders / rate))
            arrivals.run()
            results.append(arrivals.latencies(answers, workers))
    return results
