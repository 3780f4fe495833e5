import time

import pytest
from rabbitmq_support import DAY_SECONDS, Recorder, Workplace, amqp, depth, read, wait_until

from infra.rabbitmq.messages import PublishOutcome, command_message
from infra.rabbitmq.publisher import Publisher


@pytest.mark.parametrize("delay_ms", [1000, 1001, 2000, 4000])
def test_a_delayed_command_is_never_early_and_at_most_a_second_late(url: str, delay_ms: int) -> None:
    publisher = Publisher(url)
    message = command_message("escrow.release", "release_hold", b"{}", delay_ms=delay_ms)
    began = time.monotonic()
    assert publisher.publish([message]) == [PublishOutcome.CONFIRMED]
    sent = time.monotonic()
    read(url, "escrow.release")
    arrived = time.monotonic()
    publisher.close()
    assert arrived - began >= delay_ms / 1000
    assert arrived - sent < delay_ms / 1000 + 2  # rounding up, and the load of the machine


def test_a_protection_period_waits_in_the_broker_and_comes_through_the_delivery_exchange(url: str) -> None:
    publisher = Publisher(url)
    period_ms = 3 * DAY_SECONDS * 1000
    publisher.publish(
        [
            command_message(
                "escrow.release",
                "release_hold",
                b"{}",
                delay_ms=period_ms,
                attempt=1,
                day_seconds=DAY_SECONDS,
            )
        ]
    )
    publisher.close()
    began = time.monotonic()
    recorder = Recorder()
    with Workplace(url).on("escrow.release", recorder, actor_name="release_hold"):
        wait_until(lambda: recorder.done)
        waited = time.monotonic() - began
    assert 2.5 < waited < 5
    assert recorder.done[0].attempt == 1


def test_lanes_do_not_jam_when_a_target_queue_is_gone(url: str) -> None:
    """Without an alternate exchange a hundred such messages keep everybody else's from leaving the lane."""
    publisher = Publisher(url)
    strays = [command_message("no.such.queue", "x", b"{}", delay_ms=1000) for _ in range(300)]
    assert set(publisher.publish(strays)) == {PublishOutcome.CONFIRMED}
    publisher.publish([command_message("escrow.release", "release_hold", b"{}", delay_ms=1000)])
    publisher.close()
    read(url, "escrow.release", patience=10)
    wait_until(lambda: depth(url, "orphans") == 300)


def test_a_message_that_was_retried_many_times_is_not_taken_for_a_cycle(url: str) -> None:
    """RabbitMQ drops what expires in the same queue again; a retry is a new message to it."""
    publisher = Publisher(url)
    for attempt in range(3):
        message = command_message("escrow.release", "release_hold", b"{}", delay_ms=1000, attempt=attempt)
        assert publisher.publish([message]) == [PublishOutcome.CONFIRMED]
        came = read(url, "escrow.release")
        assert came.headers.get("holdfast-attempt", 0) == attempt
    publisher.close()


def test_nothing_consumes_from_a_lane(url: str) -> None:
    recorder = Recorder()
    with Workplace(url).on("escrow.release", recorder, actor_name="release_hold") as place:
        wait_until(lambda: place.broker.ready)
        with amqp(url) as channel:
            for queue_name in ("delay.rung.1000", f"delay.{3 * DAY_SECONDS * 1000}"):
                assert channel.queue_declare(queue_name, passive=True).method.consumer_count == 0
