import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from rabbitmq_support import Cable, amqp, depth, memory_alarm, read, wait_until

from infra.rabbitmq.messages import Outgoing, PublishOutcome, command_message
from infra.rabbitmq.publisher import Publisher, PublisherClosed, UnencodableMessage

GOOD = command_message("escrow.hold", "hold_funds", b"{}")
LOST = Outgoing("", "no.such.queue", b"{}")


def test_each_message_gets_its_own_answer_in_order(url: str) -> None:
    publisher = Publisher(url)
    outcomes = publisher.publish([GOOD, LOST, GOOD, LOST, LOST, GOOD])
    publisher.close()
    confirmed, unroutable = PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE
    assert outcomes == [confirmed, unroutable, confirmed, unroutable, unroutable, confirmed]
    assert depth(url, "escrow.hold") == 3


def test_a_full_queue_refuses_and_the_others_are_not_harmed(url: str) -> None:
    with amqp(url) as channel:
        channel.queue_declare(
            "events.full",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"},
        )
    publisher = Publisher(url)
    for _ in range(20):  # a quorum queue notices with a delay that it is full
        outcomes = publisher.publish([Outgoing("", "events.full", b"{}"), GOOD])
        assert outcomes[1] is PublishOutcome.CONFIRMED
        if outcomes[0] is PublishOutcome.REFUSED:
            break
    publisher.close()
    assert outcomes[0] is PublishOutcome.REFUSED


def test_many_more_messages_than_the_window_are_all_confirmed(url: str) -> None:
    publisher = Publisher(url, window=16)
    outcomes = publisher.publish([GOOD] * 1000)
    publisher.close()
    assert set(outcomes) == {PublishOutcome.CONFIRMED}
    assert depth(url, "escrow.hold") == 1000


def test_many_threads_publish_at_once(url: str) -> None:
    publisher = Publisher(url)
    outcomes: list[PublishOutcome] = []
    threads = [
        threading.Thread(target=lambda: outcomes.extend(publisher.publish([GOOD] * 50))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publisher.close()
    assert outcomes == [PublishOutcome.CONFIRMED] * 400
    assert depth(url, "escrow.hold") == 400


def test_what_cannot_be_encoded_is_an_error_and_nothing_to_send_again(url: str) -> None:
    publisher = Publisher(url)
    with pytest.raises(UnencodableMessage):
        publisher.publish([Outgoing("", "escrow.hold", b"{}", headers={"h": Decimal(10**30)})])
    assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
    publisher.close()


def test_an_exchange_that_does_not_exist_is_unknown_and_does_not_stop_the_publisher(url: str) -> None:
    """The broker closes the channel; what was in flight beside it may have arrived or not."""
    publisher = Publisher(url)
    assert publisher.publish([Outgoing("no.such.exchange", "k", b"")], timeout_s=5) == [
        PublishOutcome.UNKNOWN
    ]
    assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
    publisher.close()


def test_a_broker_that_is_away_costs_no_more_than_the_time_out(url: str) -> None:
    with Cable(url) as cable:
        cable.unplug()
        publisher = Publisher(cable.url)
        began = time.monotonic()
        assert publisher.publish([GOOD], timeout_s=0.5) == [PublishOutcome.UNKNOWN]
        assert time.monotonic() - began < 1.5
        cable.plugged = True
        assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
        publisher.close()
    assert depth(url, "escrow.hold") == 1, "what its caller gave up before it was sent is not sent later"


def test_a_broker_that_falls_silent_costs_no_more_than_the_time_out(url: str) -> None:
    with Cable(url) as cable:
        publisher = Publisher(cable.url)
        assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
        cable.silent = True
        began = time.monotonic()
        assert publisher.publish([GOOD], timeout_s=0.5) == [PublishOutcome.UNKNOWN]
        assert time.monotonic() - began < 1.5
        cable.silent = False
        assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
        publisher.close()


def test_a_connection_cut_in_flight_leaves_every_message_with_an_honest_answer(url: str) -> None:
    with Cable(url) as cable:
        publisher = Publisher(cable.url, window=64)
        outcomes: list[PublishOutcome] = []
        publishing = threading.Thread(target=lambda: outcomes.extend(publisher.publish([GOOD] * 5000)))
        publishing.start()
        wait_until(lambda: depth(url, "escrow.hold") > 0)
        cable.cut()
        publishing.join()
        publisher.close()
    confirmed = outcomes.count(PublishOutcome.CONFIRMED)
    assert confirmed + outcomes.count(PublishOutcome.UNKNOWN) == 5000
    wait_until(lambda: depth(url, "escrow.hold") >= confirmed)
    assert depth(url, "escrow.hold") <= 5000


def test_a_memory_alarm_does_not_hang_a_publish(url: str, test_servers: Any) -> None:
    """Stock Dramatiq's confirmed publish waits for as long as the broker blocks the connection."""
    publisher = Publisher(url)
    assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
    with memory_alarm(test_servers.rabbitmq):
        began = time.monotonic()
        assert publisher.publish([GOOD], timeout_s=0.5) == [PublishOutcome.UNKNOWN]
        wait_until(lambda: not publisher.connected)
        assert publisher.publish([GOOD], timeout_s=0.5) == [PublishOutcome.UNKNOWN]
        assert time.monotonic() - began < 3
    wait_until(lambda: publisher.connected)
    assert publisher.publish([GOOD]) == [PublishOutcome.CONFIRMED]
    publisher.close()


def test_messages_are_persistent_and_carry_what_they_were_given(url: str) -> None:
    publisher = Publisher(url)
    publisher.publish([command_message("escrow.hold", "hold_funds", b'{"a":1}', attempt=2)])
    publisher.close()
    message = read(url, "escrow.hold")
    assert (message.body, message.type) == (b'{"a":1}', "hold_funds")
    assert message.headers["holdfast-attempt"] == 2


def test_publishing_after_close_is_a_mistake_that_shows(url: str) -> None:
    publisher = Publisher(url)
    publisher.close()
    publisher.close()
    with pytest.raises(PublisherClosed):
        publisher.publish([GOOD])
