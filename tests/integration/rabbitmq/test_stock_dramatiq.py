"""What stock Dramatiq does where ours is hardened: the reason for the broker class, kept true by running."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import dramatiq.worker
import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed
from rabbitmq_support import Recorder, Workplace, amqp, depth, memory_alarm, read, send, wait_until

from infra.rabbitmq.messages import command_message

ENVELOPE = {
    "queue_name": "stock",
    "actor_name": "work",
    "args": ["bad"],
    "kwargs": {},
    "options": {},
    "message_id": "1",
    "message_timestamp": 1,
}


@contextmanager
def _stock(url: str, done: list[str], **options: Any) -> Iterator[RabbitmqBroker]:
    broker = RabbitmqBroker(url=url, confirm_delivery=True)

    def work(what: str) -> None:
        if what == "fail":
            raise RuntimeError
        done.append(what)

    dramatiq.actor(work, broker=broker, queue_name="stock", actor_name="work", **options)
    broker.declare_queue("stock", ensure=True)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop(timeout=5000)
        broker.close()


def _left(url: str) -> int:
    return sum(depth(url, name) for name in ("stock", "stock.DQ", "stock.XQ"))


def test_stock_loses_a_message_whose_retry_cannot_be_published(fresh_url: str) -> None:
    """Ours: test_a_retry_that_the_broker_does_not_take_is_never_acknowledged."""
    tried = threading.Event()

    def fail(*_: Any, **__: Any) -> None:
        tried.set()
        raise ConnectionClosed(RuntimeError("the broker is away"))

    with _stock(fresh_url, []) as broker:
        broker.get_actor("work").send("fail")
        broker.enqueue = fail  # type: ignore[method-assign]
        assert tried.wait(20)
    assert _left(fresh_url) == 0


@pytest.mark.parametrize("poison", [{"options": None}, {"actor_name": ["work"]}], ids=["options", "actor"])
def test_stock_stumbles_over_one_envelope_for_ever(
    fresh_url: str, poison: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: test_whatever_a_stranger_sends_reaches_the_handler_as_bytes_and_nothing_else."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.05)
    done: list[str] = []
    with _stock(fresh_url, done):
        send(fresh_url, "", "stock", json.dumps(ENVELOPE | poison).encode())
        send(fresh_url, "", "stock", json.dumps(ENVELOPE | {"args": ["good"]}).encode())
        wait_until(lambda: caplog.text.count("Consumer encountered an unexpected error") >= 5)
    assert _left(fresh_url) >= 1, "it is still there, and stops the next consumer"


def test_stock_lets_the_sender_decide_that_a_failure_is_none(fresh_url: str) -> None:
    """`max_retries` from outside; with ours nothing that arrives is an option."""
    done: list[str] = []
    with _stock(fresh_url, done):
        body = ENVELOPE | {"args": ["fail"], "options": {"max_retries": 0}}
        send(fresh_url, "", "stock", json.dumps(body).encode())
        wait_until(lambda: depth(fresh_url, "stock.XQ") == 1)


def test_stock_deletes_dead_letters_after_seven_days(fresh_url: str) -> None:
    """Ours: test_dead_letters_quarantine_and_orphans_never_expire_..."""
    with _stock(fresh_url, []):
        pass
    with (
        amqp(fresh_url) as channel,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="x-message-ttl"),
    ):
        channel.queue_declare("stock.XQ", durable=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is the point
def test_stock_goes_on_without_a_worker_thread_that_died(
    fresh_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: test_a_part_that_has_died_ends_the_process_with_an_error."""
    died = threading.Event()

    def die(_self: object, _message: object) -> None:
        died.set()
        raise SystemExit

    monkeypatch.setattr(dramatiq.worker.WorkerThread, "process_message", die)
    done: list[str] = []
    with _stock(fresh_url, done) as broker:
        broker.get_actor("work").send("first")
        assert died.wait(20)
        broker.get_actor("work").send("second")
        wait_until(lambda: depth(fresh_url, "stock") == 0)
        assert done == [], "taken, and nobody works on it"


@pytest.fixture
def short_consumer_timeout(test_servers: Any) -> Iterator[float]:
    """A broker that closes a channel whose messages stay unacknowledged for a second."""
    node = test_servers.rabbitmq
    node._evaluate(
        "application:set_env(rabbit, consumer_timeout, 1000),"
        "application:set_env(rabbit, channel_tick_interval, 200), ok."
    )
    yield 1.0
    node._evaluate(
        "application:set_env(rabbit, consumer_timeout, 1800000),"
        "application:set_env(rabbit, channel_tick_interval, 60000), ok."
    )


@pytest.mark.usefixtures("short_consumer_timeout")
def test_a_delay_longer_than_the_consumer_time_out_arrives_once_and_on_time(url: str) -> None:
    recorder = Recorder()
    with Workplace(url).on("escrow.release", recorder, actor_name="release_hold") as place:
        wait_until(lambda: place.broker.ready)
        began = time.monotonic()
        place.publisher.publish([command_message("escrow.release", "release_hold", b"{}", delay_ms=4000)])
        wait_until(lambda: recorder.done)
        assert 4 <= time.monotonic() - began < 6
        assert not recorder.done[0].redelivered
    assert len(recorder.done) == 1
    assert depth(url, "escrow.release") == 0


@pytest.mark.usefixtures("short_consumer_timeout")
def test_stocks_own_delay_costs_it_the_channel(
    fresh_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps the message unacknowledged in the worker's memory for as long as the delay lasts."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.05)
    with _stock(fresh_url, []) as broker:
        broker.get_actor("work").send_with_options(args=("late",), delay=10_000)
        wait_until(lambda: "delivery acknowledgement on channel" in caplog.text.lower())


def test_stock_lets_the_sender_write_into_any_queue(fresh_url: str) -> None:
    """`pipe_target` from outside; with ours nothing that arrives is an option."""
    with _stock(fresh_url, []) as broker:
        broker.declare_queue("victim", ensure=True)
        target = ENVELOPE | {"queue_name": "victim", "actor_name": "anything", "args": ["forged"]}
        body = ENVELOPE | {"args": ["good"], "options": {"pipe_target": target}}
        send(fresh_url, "", "stock", json.dumps(body).encode())
        # It came into that queue, whose worker has no actor of that name.
        assert json.loads(read(fresh_url, "victim.XQ").body)["args"][0] == "forged"


class _RetriesAfterAck(dramatiq.Middleware):
    """
    Lets a retry come into its queue only when the first attempt is acknowledged.

    Stock acknowledges that on the channel of the queue it names, by a tag that may be the retry's own there.
    """

    def __init__(self) -> None:
        self._acknowledged = threading.Event()

    def after_ack(self, _broker: dramatiq.Broker, _message: Any) -> None:
        self._acknowledged.set()

    def before_enqueue(self, _broker: dramatiq.Broker, _message: Any, delay: int | None) -> None:
        assert delay is not None or self._acknowledged.wait(20)


def test_stock_retries_where_the_sender_says(fresh_url: str) -> None:
    """A `queue_name` that is another queue's; ours knows a message by the queue that it came from."""
    with _stock(fresh_url, [], max_retries=1, min_backoff=1) as broker:
        broker.add_middleware(_RetriesAfterAck())
        broker.declare_queue("victim", ensure=True)
        body = ENVELOPE | {"args": ["fail"], "queue_name": "victim"}
        send(fresh_url, "", "stock", json.dumps(body).encode())
        wait_until(lambda: depth(fresh_url, "victim.XQ") == 1)


def test_stock_keeps_of_an_undecodable_message_neither_reason_nor_more_than_seven_days(
    fresh_url: str,
) -> None:
    """Ours: test_whatever_a_stranger_sends_... and test_a_dead_letter_keeps_the_message_and_says_why."""
    with _stock(fresh_url, []):
        send(fresh_url, "", "stock", b"\xff not JSON")
        came = read(fresh_url, "stock.XQ")
    assert came.body == b"\xff not JSON"
    assert set(came.headers) <= {
        "x-death",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
    }


def test_stock_publishing_hangs_for_as_long_as_the_broker_blocks(fresh_url: str, test_servers: Any) -> None:
    """Ours: test_a_memory_alarm_does_not_hang_a_publish."""
    broker = RabbitmqBroker(url=fresh_url, confirm_delivery=True)
    dramatiq.actor(lambda: None, broker=broker, queue_name="stock", actor_name="work")
    broker.declare_queue("stock", ensure=True)
    publishing = threading.Thread(target=broker.get_actor("work").send)
    with memory_alarm(test_servers.rabbitmq):
        publishing.start()
        publishing.join(2)
        assert publishing.is_alive()
    publishing.join(20)
    assert not publishing.is_alive()
    broker.close()


def test_stock_makes_a_lossy_queue_anew_where_one_was_deleted(
    fresh_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours waits for the declared one: test_a_queue_deleted_under_a_running_consumer_..."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.05)
    with _stock(fresh_url, []), amqp(fresh_url) as channel:
        channel.queue_delete("stock")
        wait_until(lambda: _exists(fresh_url, "stock"))
    lossy = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "stock.XQ"}
    with amqp(fresh_url) as channel:
        # Accepted, so just this is there: one replica, dead letters at most once, no bound on deliveries.
        channel.queue_declare("stock", durable=True, arguments=lossy)


def _exists(url: str, queue_name: str) -> bool:
    try:
        depth(url, queue_name)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True
