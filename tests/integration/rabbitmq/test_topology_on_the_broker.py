import pika
import pytest
from rabbitmq_support import DAY_SECONDS, amqp, read, send

from infra.rabbitmq import topology
from infra.rabbitmq.topology import Drift


def test_applied_twice_it_is_what_verify_wants(fresh_url: str) -> None:
    topology.apply(fresh_url, DAY_SECONDS)
    topology.apply(fresh_url, DAY_SECONDS)
    assert topology.verify(fresh_url, DAY_SECONDS) == []


def test_verify_finds_everything_missing_and_creates_nothing(fresh_url: str) -> None:
    wanted = topology.topology(DAY_SECONDS)
    for _ in range(2):
        findings = topology.verify(fresh_url, DAY_SECONDS)
        missing = {finding.name for finding in findings if finding.drift is Drift.MISSING_QUEUE}
        assert missing == {queue.name for queue in wanted.queues}
        missing = {finding.name for finding in findings if finding.drift is Drift.MISSING_EXCHANGE}
        assert missing == {exchange.name for exchange in wanted.exchanges}


def test_verify_finds_a_queue_with_other_arguments(fresh_url: str) -> None:
    with amqp(fresh_url) as channel:
        channel.queue_declare("escrow.hold", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare("delay.rung.1000", durable=True)
    found = {
        finding.name
        for finding in topology.verify(fresh_url, DAY_SECONDS)
        if finding.drift is Drift.DIFFERENT_QUEUE
    }
    assert found == {"escrow.hold", "delay.rung.1000"}


@pytest.mark.parametrize(
    "argument",
    ["x-delivery-limit", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-overflow"],
)
def test_verify_finds_each_missing_argument_of_a_work_queue(fresh_url: str, argument: str) -> None:
    arguments = dict(topology.work_queue_arguments("escrow.hold"))
    del arguments[argument]
    with amqp(fresh_url) as channel:
        channel.queue_declare("escrow.hold", durable=True, arguments=arguments)
    assert "escrow.hold" in {
        finding.name
        for finding in topology.verify(fresh_url, DAY_SECONDS)
        if finding.drift is Drift.DIFFERENT_QUEUE
    }


def test_verify_finds_an_exchange_without_its_alternate(fresh_url: str) -> None:
    with amqp(fresh_url) as channel:
        channel.exchange_declare("holdfast.inbound", exchange_type="topic", durable=True)
    assert [
        finding.name
        for finding in topology.verify(fresh_url, DAY_SECONDS)
        if finding.drift is Drift.DIFFERENT_EXCHANGE
    ] == ["holdfast.inbound"]


def test_another_length_of_the_day_meets_no_old_lane(fresh_url: str) -> None:
    topology.apply(fresh_url, 1)
    topology.apply(fresh_url, 86_400)
    assert topology.verify(fresh_url, 86_400) == []


def test_an_inbound_message_of_unknown_type_lands_in_quarantine(url: str) -> None:
    send(url, "holdfast.inbound", "order.unheard_of", b"{}")
    assert read(url, "quarantine").routing_key == "order.unheard_of"


def test_a_shop_gets_its_own_events_and_nobody_elses(url: str) -> None:
    assert topology.declare_shop_queue(url, "acme") == "events.acme"
    topology.declare_shop_queue(url, "acme-2")
    send(url, "holdfast.events", "acme.order.held", b"1")
    assert read(url, "events.acme").body == b"1"
    with amqp(url) as channel, pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("holdfast.events", "acm.order.held", b"2", mandatory=True)
