"""`/livez` turns red for what hangs, and for nothing that waits for a good reason."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from infra.rabbitmq.broker import SILENT_CONSUMER_SECONDS, STUCK_BATCH_SECONDS, HoldfastBroker
from infra.rabbitmq.consumer import QueueConsumer
from infra.rabbitmq.messages import Failure
from infra.rabbitmq.publisher import Publisher

_NOWHERE = "amqp://nobody:nothing@127.0.0.1:1/none"


@pytest.fixture
def clock() -> Iterator[list[float]]:
    now = [1000.0]
    with patch("infra.rabbitmq.consumer.time.monotonic", lambda: now[0]):
        yield now


@pytest.fixture
def worker(clock: list[float]) -> tuple[HoldfastBroker, QueueConsumer]:
    broker = HoldfastBroker(
        _NOWHERE,
        publisher=Publisher(_NOWHERE),
        classify=lambda _: Failure.RETRY,
        await_recovery=lambda _: None,
    )
    return broker, broker.consume("escrow.hold")


def test_a_consumer_thread_that_comes_by_no_more_is_told_of(
    worker: tuple[HoldfastBroker, QueueConsumer], clock: list[float]
) -> None:
    broker, _ = worker
    assert broker.stalled is None
    clock[0] += SILENT_CONSUMER_SECONDS + 1
    assert broker.stalled is not None
    assert "the consumer of escrow.hold" in broker.stalled


def test_a_batch_that_never_ends_is_told_of_unless_something_is_away(
    worker: tuple[HoldfastBroker, QueueConsumer], clock: list[float]
) -> None:
    broker, consumer = worker
    consumer._unfinished_batches = 1
    clock[0] += STUCK_BATCH_SECONDS + 1
    consumer._asked_at = clock[0]
    assert broker.stalled == f"no batch of escrow.hold has ended for {STUCK_BATCH_SECONDS + 1:.0f} s"
    with broker.availability.suspended("the database is away"):
        assert broker.stalled is None
    consumer.release()
    assert broker.stalled is None


def test_a_process_that_is_told_to_stop_is_not_called_stalled(
    worker: tuple[HoldfastBroker, QueueConsumer], clock: list[float]
) -> None:
    broker, _ = worker
    clock[0] += 2 * SILENT_CONSUMER_SECONDS
    broker.stop()
    assert broker.stalled is None
