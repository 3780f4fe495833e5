"""From a queue into a handler: batches, and what becomes of what fails."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from rabbitmq_support import Poison, Recorder, TryLater, Workplace, amqp, depth, read, send, wait_until

from infra.rabbitmq.broker import CommandNotPublished, NotACommand
from infra.rabbitmq.consumer import QueueConsumer
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.session import Session


class FarFuture(datetime):
    """Day 10^12 of January: pika writes such a time, and cannot read it again."""

    def utctimetuple(self) -> time.struct_time:
        return time.struct_time((2026, 1, 10**12, 0, 0, 0, 0, 1, 0))


MIB = 1 << 20
NUMBERS = [str(number).encode() for number in range(300)]


def _command(url: str, *bodies: bytes, type_: str = "hold_funds", **properties: Any) -> None:
    send(url, "holdfast.deliver", "escrow.hold", *bodies, type=type_, **properties)


def _failing_for(*bad: bytes, error: type[Exception]) -> Callable[[Sequence[Delivery]], None]:
    def behave(deliveries: Sequence[Delivery]) -> None:
        if any(delivery.body in bad for delivery in deliveries):
            raise error("no")

    return behave


def test_what_is_waiting_comes_in_batches_up_to_the_bound_each_message_once(url: str) -> None:
    _command(url, *NUMBERS)
    recorder = Recorder()
    with Workplace(url, batch_bound=64).on("escrow.hold", recorder, actor_name="hold_funds"):
        wait_until(lambda: len(recorder.done) >= 300)
    assert sorted(recorder.bodies) == sorted(NUMBERS)
    assert max(len(batch) for batch in recorder.batches) == 64
    assert depth(url, "escrow.hold") == 0, "all acknowledged"


def test_a_lone_message_does_not_wait_for_company(url: str) -> None:
    recorder = Recorder()
    with Workplace(url).on("escrow.hold", recorder, actor_name="hold_funds") as place:
        wait_until(lambda: place.broker.ready)
        _command(url, b"1")
        wait_until(lambda: recorder.done, patience=1)


def test_one_bad_message_fails_alone_and_its_neighbours_are_done(url: str) -> None:
    _command(url, *NUMBERS[:50])
    recorder = Recorder(_failing_for(b"7", error=Poison))
    with Workplace(url).on("escrow.hold", recorder, actor_name="hold_funds"):
        wait_until(lambda: len(recorder.done) == 49)
        dead = read(url, "escrow.hold.XQ")
    assert dead.body == b"7"
    assert str(dead.headers["holdfast-reason"]).startswith("poison: Poison at ")
    assert dead.headers["holdfast-queue"] == "escrow.hold"
    assert sorted(recorder.bodies) == sorted(set(NUMBERS[:50]) - {b"7"})
    assert depth(url, "escrow.hold") == 0


def test_what_may_work_later_comes_back_through_a_lane_with_its_attempt_counted(url: str) -> None:
    attempts: list[int] = []

    def fail_first(deliveries: Sequence[Delivery]) -> None:
        attempts.extend(delivery.attempt for delivery in deliveries)
        if deliveries[0].attempt == 0:
            raise TryLater

    recorder = Recorder(fail_first)
    send(url, "holdfast.inbound", "order.paid", b"{}", headers={"webhook-id": "w"}, message_id="m", type="t")
    with Workplace(url).on("payment.intake", recorder, external=True):
        wait_until(lambda: recorder.done)
    assert attempts == [0, 1]
    (done,) = recorder.done
    assert (done.exchange, done.routing_key) == ("holdfast.inbound", "order.paid")
    assert (done.headers["webhook-id"], done.message_id, done.type) == ("w", "m", "t")
    assert not done.redelivered
    assert depth(url, "payment.intake") == 0


def test_after_the_last_attempt_it_rests_in_the_dead_letter_queue(url: str) -> None:
    recorder = Recorder(_failing_for(b"x", error=TryLater))
    with Workplace(url, max_attempts=2).on("escrow.hold", recorder, actor_name="hold_funds"):
        _command(url, b"x")
        dead = read(url, "escrow.hold.XQ")
    assert len(recorder.batches) == 2
    assert str(dead.headers["holdfast-reason"]).startswith("gave up after 2 attempts: TryLater at ")
    assert "x-death" not in dead.headers


def test_a_command_that_nobody_knows_is_a_dead_letter_and_stops_nobody(url: str) -> None:
    recorder = Recorder()
    with Workplace(url).on("escrow.hold", recorder, actor_name="hold_funds"):
        _command(url, b"1", type_="format_disk")
        send(url, "holdfast.deliver", "escrow.hold", b"2")
        _command(url, b"3")
        wait_until(lambda: recorder.done)
        assert {read(url, "escrow.hold.XQ").body for _ in range(2)} == {b"1", b"2"}
    assert recorder.bodies == [b"3"]


def test_the_commands_of_one_queue_each_get_their_own_batches(url: str) -> None:
    submits, checks = Recorder(), Recorder()
    for number in NUMBERS[:40]:
        name = "submit_transfer" if int(number) % 2 else "check_transfer"
        send(url, "holdfast.deliver", "payout.bank", number, type=name)
    place = Workplace(url)
    place.on("payout.bank", submits, actor_name="submit_transfer")
    place.on("payout.bank", checks, actor_name="check_transfer")
    with place:
        wait_until(lambda: len(submits.done) + len(checks.done) == 40)
    assert {delivery.type for delivery in submits.done} == {"submit_transfer"}
    assert {delivery.type for delivery in checks.done} == {"check_transfer"}


DRAMATIQ_ENVELOPE = {
    "queue_name": "payout.bank",
    "actor_name": ["a", "list"],
    "args": [],
    "kwargs": {},
    "options": None,
    "message_id": "1",
    "message_timestamp": 1,
}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(json.dumps(DRAMATIQ_ENVELOPE).encode(), id="Dramatiq's envelope"),
        pytest.param(
            json.dumps(
                DRAMATIQ_ENVELOPE
                | {
                    "actor_name": "payment_intake",
                    "options": {"throws": "x", "max_retries": 0, "pipe_target": {}},
                }
            ).encode(),
            id="Dramatiq's options",
        ),
        pytest.param(
            json.dumps(DRAMATIQ_ENVELOPE | {"actor_name": "x", "options": {"eta": "soon"}}).encode(), id="eta"
        ),
        pytest.param(b"x" * (2 << 20), id="2 MiB"),
    ],
)
def test_whatever_a_stranger_sends_reaches_the_handler_as_bytes_and_nothing_else(
    url: str, body: bytes
) -> None:
    recorder = Recorder()
    with Workplace(url).on("payment.intake", recorder, external=True):
        send(url, "holdfast.inbound", "order.paid", body, b"next")
        wait_until(lambda: len(recorder.done) == 2)
    assert sorted(recorder.bodies) == sorted([body, b"next"])
    assert depth(url, "payment.intake") == 0


def test_a_strangers_cc_header_copies_nothing_when_the_message_fails(url: str) -> None:
    recorder = Recorder(_failing_for(b"x", error=Poison))
    with Workplace(url).on("payment.intake", recorder, external=True):
        # The sender may route copies by its own right; ours must not.
        send(url, "holdfast.inbound", "order.paid", b"x", headers={"BCC": ["nowhere"], "CC": ["escrow.hold"]})
        assert "CC" not in read(url, "payment.intake.XQ").headers
    assert depth(url, "escrow.hold") == 0


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"h": "x" * 130_500}, id="a frame filled to the brim"),
        pytest.param({b"\xff": "x"}, id="a name that is not UTF-8"),
        pytest.param({"h": {"h": [{"h": None}]}, "t": datetime(9999, 12, 31, tzinfo=UTC)}, id="nested"),
    ],
)
@pytest.mark.parametrize("error", [Poison, TryLater])
def test_a_strangers_headers_do_not_keep_a_message_from_its_way_out(
    url: str, headers: dict[Any, Any], error: type[Exception]
) -> None:
    """What is added on the way out must not make the frame too large: that costs the whole connection."""
    recorder = Recorder(_failing_for(b"x", error=error))
    with Workplace(url, max_attempts=2).on("payment.intake", recorder, external=True):
        send(url, "holdfast.inbound", "order.paid", b"x", b"good", headers=headers)
        assert read(url, "payment.intake.XQ").body == b"x"
        wait_until(lambda: recorder.done)
    assert depth(url, "payment.intake") == 0


def test_properties_that_break_the_client_library_stop_no_consumer(url: str) -> None:
    """Stock pika raises in its read loop at a time-stamp in the far future, and so does whoever is next."""
    recorder = Recorder()
    far_future = FarFuture(2026, 1, 1, tzinfo=UTC)
    with Workplace(url).on("payment.intake", recorder, external=True):
        send(url, "holdfast.inbound", "order.paid", b"hostile", headers={"t": far_future})
        send(url, "holdfast.inbound", "order.paid", b"good")
        wait_until(lambda: len(recorder.done) == 2)
    assert sorted(recorder.bodies) == [b"good", b"hostile"]


def test_a_redelivered_message_is_handled_on_its_own(url: str) -> None:
    _command(url, *NUMBERS[:10])
    with amqp(url) as channel:
        for _ in range(5):
            channel.basic_get("escrow.hold")
    recorder = Recorder()
    with Workplace(url).on("escrow.hold", recorder, actor_name="hold_funds"):
        wait_until(lambda: len(recorder.done) == 10)
    redelivered = [batch for batch in recorder.batches if any(one.redelivered for one in batch)]
    assert [len(batch) for batch in redelivered] == [1] * 5


def test_batches_of_two_threads_finish_in_any_order_and_all_are_acknowledged(url: str) -> None:
    _command(url, *NUMBERS)
    first_may_end = threading.Event()
    lock = threading.Lock()
    begun = 0

    def hold_the_first(_deliveries: Sequence[Delivery]) -> None:
        nonlocal begun
        with lock:
            begun += 1
            mine = begun
        if mine == 1:
            assert first_may_end.wait(20)

    recorder = Recorder(hold_the_first)
    with Workplace(url, threads=2, batch_bound=32, prefetch_batches=4).on(
        "escrow.hold", recorder, actor_name="hold_funds"
    ):
        wait_until(lambda: begun >= 4)
        first_may_end.set()
        wait_until(lambda: len(recorder.done) == 300)
    assert sorted(recorder.bodies) == sorted(NUMBERS)
    assert depth(url, "escrow.hold") == 0


def _in_hand(consumer: QueueConsumer) -> int:
    """How many messages wait for a batch of theirs; a copy first, since the consumer's thread goes on."""
    return sum(len(waiting.buffered) for waiting in list(consumer._buffers.values()))


def test_while_everybody_is_busy_a_batch_grows_and_a_full_one_is_handed_out(url: str) -> None:
    entered, leave = threading.Event(), threading.Event()
    sizes: list[int] = []

    def hang(deliveries: Sequence[Delivery]) -> None:
        sizes.append(len(deliveries))
        entered.set()
        leave.wait(20)

    _command(url, b"first")
    place = Workplace(url, threads=1, batch_bound=40, prefetch_batches=4)
    with place.on("escrow.hold", Recorder(hang), actor_name="hold_funds"):
        assert entered.wait(20)
        for _ in range(60):
            _command(url, b"later")
        (consumer,) = place.broker._consumers.values()
        # One at work, a full one ahead, the rest still growing.
        wait_until(lambda: (consumer._unfinished_batches, _in_hand(consumer)) == (2, 20))
        leave.set()
        wait_until(lambda: sum(sizes) == 61)
    assert sizes == [1, 40, 20]


def _hanging_first(
    sizes: list[int], entered: threading.Event, leave: threading.Event
) -> Callable[[Sequence[Delivery]], None]:
    def hang_first(deliveries: Sequence[Delivery]) -> None:
        sizes.append(len(deliveries))
        if len(sizes) == 1:
            entered.set()
            assert leave.wait(20)

    return hang_first


def test_while_a_batch_is_at_work_the_next_one_grows_though_somebody_is_free(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.rabbitmq.consumer.GROW_SECONDS", 60.0)
    entered, leave, sizes = threading.Event(), threading.Event(), list[int]()
    _command(url, b"first")
    place = Workplace(url, threads=2, batch_bound=40, prefetch_batches=4)
    with place.on("escrow.hold", Recorder(_hanging_first(sizes, entered, leave)), actor_name="hold_funds"):
        assert entered.wait(20)
        for _ in range(60):
            _command(url, b"later")
        (consumer,) = place.broker._consumers.values()
        wait_until(lambda: sizes == [1, 40])
        wait_until(lambda: _in_hand(consumer) == 20)
        leave.set()
        wait_until(lambda: sum(sizes) == 61)
    assert sizes == [1, 40, 20]


def test_messages_of_another_kind_do_not_wait_for_a_batch_to_grow(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each kind waits behind a batch that is at work; neither makes the other's batch larger."""
    monkeypatch.setattr("infra.rabbitmq.consumer.GROW_SECONDS", 60.0)
    entered, leave, sizes = threading.Event(), threading.Event(), list[int]()
    other = Recorder()
    place = Workplace(url, threads=2).on("escrow.release", other, actor_name="settle_claims")
    send(url, "holdfast.deliver", "escrow.release", b"first", type="release_hold")
    hang = Recorder(_hanging_first(sizes, entered, leave))
    with place.on("escrow.release", hang, actor_name="release_hold"):
        assert entered.wait(20)
        send(url, "holdfast.deliver", "escrow.release", b"other", type="settle_claims")
        send(url, "holdfast.deliver", "escrow.release", b"later", type="release_hold")
        wait_until(lambda: other.bodies == [b"other"])
        leave.set()
        wait_until(lambda: sizes == [1, 1])


def test_a_batch_that_takes_long_does_not_keep_the_others_waiting(url: str) -> None:
    entered, leave, sizes = threading.Event(), threading.Event(), list[int]()
    _command(url, b"first")
    place = Workplace(url, threads=2, batch_bound=40, prefetch_batches=4)
    with place.on("escrow.hold", Recorder(_hanging_first(sizes, entered, leave)), actor_name="hold_funds"):
        assert entered.wait(20)
        for count in (2, 3):
            _command(url, b"later")
            wait_until(lambda count=count: len(sizes) == count)
        leave.set()
    assert sizes == [1, 1, 1]


def test_of_large_messages_only_so_much_is_taken_in_hand(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is busy, much is to come: the broker keeps what is beyond the bound; all is done later."""
    monkeypatch.setattr("infra.rabbitmq.consumer.BUFFERED_BYTES", 4 * MIB)
    read, slow_reads = Session.pump, list[int]()

    def note(session: Session, seconds: float, *, slowly: bool = False) -> None:
        read(session, seconds, slowly=slowly)
        if slowly:
            slow_reads.append(consumer._buffered_bytes)

    monkeypatch.setattr(Session, "pump", note)
    entered, leave, sizes = threading.Event(), threading.Event(), list[int]()
    bodies = [bytes([number]) * MIB for number in range(24)]
    recorder = Recorder(_hanging_first(sizes, entered, leave))
    place = Workplace(url, threads=1, batch_bound=32, prefetch_batches=2)
    with place.on("escrow.hold", recorder, actor_name="hold_funds"):
        (consumer,) = place.broker._consumers.values()
        _command(url, *bodies)
        assert entered.wait(20)
        wait_until(lambda: len(slow_reads) == 3)
        leave.set()
        wait_until(lambda: len(recorder.done) == len(bodies))
    assert max(slow_reads[:3]) < 6 * MIB
    assert sorted(recorder.bodies) == bodies
    assert depth(url, "escrow.hold") == 0


def test_an_unfinished_batch_is_not_taken_along_by_a_later_one(url: str) -> None:
    """The first batch hangs while later ones finish; the process then dies: the first must come again."""
    _command(url, *NUMBERS)
    lock = threading.Lock()
    hung: list[Delivery] = []
    free = threading.Event()

    def hang_first(deliveries: Sequence[Delivery]) -> None:
        with lock:
            first = not hung
            if first:
                hung.extend(deliveries)
        if first:
            free.wait(30)
            raise SystemExit

    recorder = Recorder(hang_first)
    place = Workplace(url, threads=2, batch_bound=32, prefetch_batches=4)
    with place.on("escrow.hold", recorder, actor_name="hold_funds"):
        wait_until(lambda: len(recorder.done) + len(hung) == 300)
        for consumer in place.broker._consumers.values():
            session = consumer._session
            assert session is not None
            wait_until(lambda session=session: not (session._finished or session._tracker.waiting))
            session._call(session._connection.close)
        wait_until(lambda: depth(url, "escrow.hold") == len(hung))
        place.broker.stop()
        free.set()
    assert {read(url, "escrow.hold").body for _ in hung} == {delivery.body for delivery in hung}


def test_enqueue_takes_commands_that_have_an_actor_and_nothing_else(url: str) -> None:
    recorder = Recorder()
    place = Workplace(url)
    actor = place.broker.declare_batch_actor(
        queue_name="escrow.hold", actor_name="hold_funds", handle=recorder, external=False
    )
    outside = place.broker.declare_batch_actor(
        queue_name="payment.intake", actor_name="take_in", handle=recorder, external=True
    )
    with place:
        actor.send({"holds": ["h-1"]})
        actor.send_with_options(args=(b'{"holds":["h-2"]}',), delay=1000)
        for refused in (
            actor.send,
            lambda: actor.send("text"),
            lambda: actor.send(b"{}", b"{}"),
            lambda: actor.send_with_options(args=(b"{}",), max_retries=3),
            lambda: outside.send(b"{}"),
        ):
            with pytest.raises(NotACommand):
                refused()
        with pytest.raises(ValueError, match="maximum"):
            actor.send_with_options(args=(b"{}",), delay=31 * 86_400_000)
        wait_until(lambda: len(recorder.done) == 2)
    assert sorted(recorder.bodies) == [b'{"holds":["h-1"]}', b'{"holds":["h-2"]}']
    place.publisher.close()


def test_a_command_that_is_not_confirmed_is_an_error(url: str) -> None:
    place = Workplace(url)
    actor = place.broker.declare_batch_actor(
        queue_name="escrow.hold", actor_name="hold_funds", handle=Recorder(), external=False
    )
    with amqp(url) as channel:
        channel.queue_delete("escrow.hold")
    with amqp(url) as channel:
        channel.queue_delete("orphans")
    with pytest.raises(CommandNotPublished):
        actor.send(b"{}")
    place.publisher.close()
