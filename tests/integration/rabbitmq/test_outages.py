"""Database away, broker away, queue deleted, worker dead: nothing is lost, and no attempt counted."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pika
import pytest
from dramatiq import Middleware
from dramatiq.broker import MessageProxy
from rabbitmq_support import (
    Cable,
    Poison,
    Recorder,
    TryLater,
    Unavailable,
    Workplace,
    amqp,
    depth,
    read,
    send,
    wait_until,
)
from structlog.testing import capture_logs

from infra.rabbitmq import consumer as consumer_module
from infra.rabbitmq import session as session_module
from infra.rabbitmq import topology
from infra.rabbitmq.messages import Delivery

BODIES = [str(number).encode() for number in range(40)]


def _command(url: str, *bodies: bytes) -> None:
    send(url, "holdfast.deliver", "escrow.hold", *bodies, type="hold_funds")


class Database:
    """Stands for a database that can be away."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.asked = 0

    def use(self, _deliveries: Sequence[Delivery]) -> None:
        self.asked += 1
        if not self.up.is_set():
            raise Unavailable

    def await_recovery(self, stopping: threading.Event) -> None:
        while not self.up.wait(0.02) and not stopping.is_set():
            pass


def test_while_the_database_is_away_messages_wait_and_no_attempt_is_counted(url: str) -> None:
    database = Database()
    recorder = Recorder(database.use)
    _command(url, *BODIES)
    with Workplace(url, await_recovery=database.await_recovery).on(
        "escrow.hold", recorder, actor_name="hold_funds"
    ) as place:
        wait_until(lambda: not place.broker.availability.open)
        assert not place.broker.ready
        asked = database.asked
        _command(url, b"late")
        time.sleep(0.5)
        assert database.asked <= asked + 2, "waiting is not spinning"
        database.up.set()
        wait_until(lambda: len(recorder.done) == 41)
        wait_until(lambda: place.broker.ready)
    assert {delivery.attempt for delivery in recorder.done} == {0}
    assert not any(delivery.redelivered for delivery in recorder.done)
    assert (depth(url, "escrow.hold"), depth(url, "escrow.hold.XQ")) == (0, 0)


def test_stopping_while_the_database_is_away_hands_everything_back(url: str) -> None:
    database = Database()
    recorder = Recorder(database.use)
    _command(url, *BODIES)
    with Workplace(url, await_recovery=database.await_recovery).on(
        "escrow.hold", recorder, actor_name="hold_funds"
    ) as place:
        wait_until(lambda: not place.broker.availability.open)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    wait_until(lambda: depth(url, "escrow.hold") == 40)
    assert recorder.done == []
    assert depth(url, "escrow.hold.XQ") == 0


def test_a_long_outage_hands_messages_back_instead_of_letting_the_broker_close_the_channel(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "HOLD_SECONDS", 0.3)
    database = Database()
    recorder = Recorder(database.use)
    _command(url, *BODIES)
    with Workplace(url, await_recovery=database.await_recovery).on(
        "escrow.hold", recorder, actor_name="hold_funds"
    ):
        wait_until(lambda: database.asked)
        wait_until(lambda: depth(url, "escrow.hold") == 40)
        database.up.set()
        wait_until(lambda: len(recorder.done) >= 40)
    assert sorted({delivery.body for delivery in recorder.done}) == sorted(BODIES)
    assert depth(url, "escrow.hold") == 0


def test_a_message_that_takes_the_database_away_by_itself_is_not_tried_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.rabbitmq.batches.FIRST_BACK_OFF_SECONDS", 0.001)
    monkeypatch.setattr("infra.rabbitmq.batches.MAX_BACK_OFF_SECONDS", 0.001)

    def crash_the_server(deliveries: Sequence[Delivery]) -> None:
        if any(delivery.body == b"7" for delivery in deliveries):
            raise Unavailable

    recorder = Recorder(crash_the_server)
    _command(url, *BODIES)
    with Workplace(url, max_attempts=1).on("escrow.hold", recorder, actor_name="hold_funds"):
        assert read(url, "escrow.hold.XQ").body == b"7"
        wait_until(lambda: len(recorder.done) == 39)


def test_a_retry_that_the_broker_does_not_take_is_never_acknowledged(url: str) -> None:
    """Stock Dramatiq logs the failed publish and acknowledges: the message is gone."""
    with Cable(url) as cable:
        recorder = Recorder(lambda _deliveries: (_ for _ in ()).throw(TryLater))
        place = Workplace(url, publisher_url=cable.url, publish_timeout_s=0.2)
        cable.unplug()
        with place.on("escrow.hold", recorder, actor_name="hold_funds"):
            _command(url, b"precious")
            wait_until(lambda: not place.broker.availability.open)
        wait_until(lambda: depth(url, "escrow.hold") == 1)
    assert read(url, "escrow.hold").body == b"precious"


def test_a_dead_letter_queue_that_is_missing_keeps_the_message_until_it_is_there(url: str) -> None:
    recorder = Recorder(lambda _deliveries: (_ for _ in ()).throw(Poison))
    with amqp(url) as channel:
        channel.queue_delete("escrow.hold.XQ")
    place = Workplace(url)
    with place.on("escrow.hold", recorder, actor_name="hold_funds"):
        _command(url, b"precious")
        wait_until(lambda: not place.broker.availability.open)
        topology.apply(url, 1)
        assert read(url, "escrow.hold.XQ").body == b"precious"
    assert depth(url, "escrow.hold") == 0


def test_a_consumer_comes_back_by_itself_after_its_connection_broke(url: str) -> None:
    with Cable(url) as cable:
        recorder = Recorder()
        with Workplace(cable.url).on("escrow.hold", recorder, actor_name="hold_funds"):
            for body in BODIES[:3]:
                _command(url, body)
                wait_until(lambda body=body: body in recorder.bodies)
                cable.cut()
            # What was done but not yet acknowledged comes again, before this one.
            _command(url, b"last")
            wait_until(lambda: b"last" in recorder.bodies)
    assert depth(url, "escrow.hold") == 0


def test_an_acknowledgement_after_a_reconnect_takes_no_new_message_with_it(url: str) -> None:
    """
    On the new channel the old tag is another message.

    The first message is being worked on when the connection breaks. It comes again, on the new channel,
    under tag 1 as before; the late acknowledgement of the first must not settle the second.
    """
    entered, leave = threading.Event(), threading.Event()
    seen: list[Delivery] = []

    def hang(deliveries: Sequence[Delivery]) -> None:
        seen.extend(deliveries)
        if len(seen) == 1:
            entered.set()
            assert leave.wait(20)
        else:
            raise SystemExit

    with Cable(url) as cable:
        place = Workplace(cable.url, threads=2)
        _command(url, b"precious")
        with place.on("escrow.hold", hang, actor_name="hold_funds"):
            assert entered.wait(20)
            cable.cut()
            wait_until(lambda: len(seen) == 2)
            leave.set()
            consumer = place.broker._consumers["escrow.hold"]
            wait_until(lambda: consumer._unfinished_batches == 0)
        wait_until(lambda: depth(url, "escrow.hold") == 1)
    assert [delivery.redelivered for delivery in seen] == [False, True]
    assert read(url, "escrow.hold").body == b"precious"


def test_a_queue_deleted_under_a_running_consumer_is_noticed_and_consumed_again_once_it_is_back(
    url: str,
) -> None:
    recorder = Recorder()
    with Workplace(url).on("escrow.hold", recorder, actor_name="hold_funds") as place:
        wait_until(lambda: place.broker.ready)
        with amqp(url) as channel:
            channel.queue_delete("escrow.hold")
        wait_until(lambda: not place.broker.ready)
        topology.apply(url, 1)
        _command(url, b"after")
        wait_until(lambda: recorder.bodies == [b"after"])


def test_a_broker_that_came_back_empty_is_named_once_with_its_remedy_and_worked_for_again(
    fresh_url: str,
) -> None:
    """Declaring what is missing is for the topology: every version of a worker would do it its own way."""
    topology.apply(fresh_url, 1)
    recorder = Recorder()
    with (
        capture_logs() as lines,
        Workplace(fresh_url).on("escrow.hold", recorder, actor_name="hold_funds") as place,
    ):
        wait_until(lambda: place.broker.ready)
        with amqp(fresh_url) as channel:
            for queue in topology.topology(1).queues:
                channel.queue_delete(queue.name)
        missing = {"event": "queue_missing", "queue": "escrow.hold", "do": "run `holdfast topology apply`"}
        wait_until(lambda: {**missing, "log_level": "error"} in lines)
        consumer = place.broker._consumers["escrow.hold"]
        wait_until(lambda: consumer._failures >= 4)
        assert not place.broker.ready
        topology.apply(fresh_url, 1)
        _command(fresh_url, b"after")
        wait_until(lambda: recorder.bodies == [b"after"])
        wait_until(lambda: place.broker.ready)
    assert [line["event"] for line in lines].count("queue_missing") == 1, (
        "a line a change, not one an attempt"
    )


def test_the_end_of_a_handlers_thread_acknowledges_nothing_and_fails_the_process(url: str) -> None:
    def end_the_thread(_deliveries: Sequence[Delivery]) -> None:
        raise SystemExit

    with Workplace(url).on("escrow.hold", end_the_thread, actor_name="hold_funds") as place:
        _command(url, b"precious")
        wait_until(lambda: place.broker.fatal_error)
    wait_until(lambda: depth(url, "escrow.hold") == 1)


def test_a_rejection_by_anybody_else_loses_nothing_and_fails_the_process(url: str) -> None:
    """Middleware may call `fail()`; stock Dramatiq then sends the message to its dead letters, for 7 days."""

    class Rejecting(Middleware):
        def before_process_message(self, _broker: Any, message: MessageProxy) -> None:
            message.fail()

    recorder = Recorder()
    with Workplace(url, middleware=[Rejecting()]).on(
        "escrow.hold", recorder, actor_name="hold_funds"
    ) as place:
        _command(url, b"precious")
        wait_until(lambda: place.broker.fatal_error)
    wait_until(lambda: depth(url, "escrow.hold") == 1)


def _die_while_holding(url: str, messages: int) -> None:
    """What a killed worker does to what it had prefetched: each message was delivered once more."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=messages)
    held: list[int] = []
    channel.basic_consume("escrow.hold", lambda _c, method, _p, _b: held.append(method.delivery_tag))
    while len(held) < messages:
        connection.process_data_events(time_limit=1)
    connection.close()


def test_innocent_messages_are_not_prefetched_beside_one_that_kills_its_workers(url: str) -> None:
    """The broker counts every redelivery; a worker that dies with 512 messages in hand counts against all."""
    _command(url, *BODIES)
    for _ in range(session_module.SUSPECT_DELIVERY_COUNT):
        _die_while_holding(url, 40)
    entered, leave = threading.Event(), threading.Event()

    def hang(_deliveries: Sequence[Delivery]) -> None:
        entered.set()
        leave.wait(20)

    recorder = Recorder(hang)
    with Workplace(url, threads=1).on("escrow.hold", recorder, actor_name="hold_funds"):
        assert entered.wait(20)
        assert depth(url, "escrow.hold") == 39, "one at a time"
        leave.set()
        wait_until(lambda: len(recorder.done) == 40)
        _command(url, *(b"new" for _ in range(20)))
        wait_until(lambda: len(recorder.done) == 60)


def test_a_session_that_the_broker_does_not_let_go_of_leaves_nothing_behind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is closed and not cut would keep what was delivered there from everybody else."""
    monkeypatch.setattr(session_module, "_CLOSE_SECONDS", 0.05)
    _command(url, *BODIES)
    session = session_module.Session(url, "escrow.hold", prefetch=10)
    while not session.delivered:
        session.pump(1)
    connection = session._connection._transport._sock
    monkeypatch.setattr(session._connection, "close", lambda: None)
    session.close()
    assert connection.fileno() == -1
    wait_until(lambda: depth(url, "escrow.hold") == len(BODIES))


def test_what_kills_every_worker_ends_as_a_dead_letter_and_the_others_are_done(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stock settings it goes round for ever (RabbitMQ 3) or takes its neighbours along (RabbitMQ 4)."""
    arguments = {**topology.work_queue_arguments("escrow.hold"), "x-delivery-limit": 8}
    with amqp(url) as channel:
        channel.queue_delete("escrow.hold")
        channel.queue_declare("escrow.hold", durable=True, arguments=arguments)
        channel.queue_bind("escrow.hold", "holdfast.deliver", "escrow.hold")
    _command(url, b"killer", *BODIES)
    done: list[bytes] = []
    deadline = time.monotonic() + 60
    while depth(url, "escrow.hold.XQ") == 0 or len(done) < 40:
        assert time.monotonic() < deadline
        killed = threading.Event()

        def work(deliveries: Sequence[Delivery], killed: threading.Event = killed) -> None:
            if any(delivery.body == b"killer" for delivery in deliveries):
                killed.set()
                raise SystemExit
            done.extend(delivery.body for delivery in deliveries)

        with Workplace(url, threads=1).on("escrow.hold", work, actor_name="hold_funds"):
            wait_until(lambda killed=killed: killed.is_set() or len(done) >= 40)
    assert read(url, "escrow.hold.XQ").body == b"killer"
    assert sorted(done) == sorted(BODIES)
    with amqp(url) as channel:
        channel.queue_delete("escrow.hold")
