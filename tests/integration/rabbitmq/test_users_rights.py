"""RabbitMQ's own gate: each user logs in for real and is refused what is not its business."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pika
import pika.exceptions
import pytest
from rabbitmq_support import depth
from workflow_support.broker_gate import Gate

from infra.local.rabbitmq import PrivateRabbitMQ
from infra.rabbitmq import access
from infra.rabbitmq.access import BrokerUser
from infra.rabbitmq.topology import WORK_QUEUES, declare_shop_queue
from infra.rabbitmq.verification import judge_broker

DAY_SECONDS = 1
PERSISTENT = pika.BasicProperties(delivery_mode=2)
SHOP, OTHER_SHOP, BANK = "acme", "other", "first"
WORKERS = tuple(access.WORKER_QUEUES)


@pytest.fixture(scope="module")
def gate(test_servers: Any, broker_url: str) -> Iterator[Gate]:
    assert isinstance(test_servers.rabbitmq, PrivateRabbitMQ), "needs a broker that this run may add users to"
    gate = Gate(test_servers.rabbitmq, broker_url)
    wanted = access.installation_definitions(DAY_SECONDS, gate.vhost, {})
    for what in ("users", "permissions", "topic_permissions"):
        del wanted[what]
    gate.load(wanted)
    for shop in (SHOP, OTHER_SHOP):
        declare_shop_queue(broker_url, shop)
    gate.admit(
        *access.installation_users(),
        access.shop_user(SHOP, {"orders", "sellers"}),
        access.bank_user(BANK),
    )
    yield gate
    gate.forget()


def tries(url: str, act: Callable[[Any], object]) -> bool:
    """Do something on a channel of this user's own; tell whether RabbitMQ let it."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        act(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        assert error.reply_code == 403, error  # noqa: PT017 - any other refusal is not the gate's
        return False
    finally:
        if connection.is_open:
            connection.close()
    return True


def writes(exchange: str, key: str) -> Callable[[Any], object]:
    return lambda channel: channel.basic_publish(exchange, key, b"x", PERSISTENT, mandatory=True)


def reads(queue: str) -> Callable[[Any], object]:
    return lambda channel: channel.basic_get(queue)


DECLARES: list[Callable[[Any], object]] = [
    lambda channel: channel.queue_declare("mine", durable=True),
    lambda channel: channel.exchange_declare("mine", durable=True),
    lambda channel: channel.queue_delete("payment.intake"),
    lambda channel: channel.queue_bind("payment.intake", "holdfast.events", "#"),
    lambda channel: channel.queue_bind(f"events.{SHOP}", "holdfast.events", "#"),
    lambda channel: channel.queue_bind(f"events.{SHOP}", "holdfast.inbound", "#"),
    lambda channel: channel.exchange_delete("holdfast.inbound"),
]


def test_what_is_imported_is_what_this_version_needs(gate: Gate, test_servers: Any) -> None:
    verdict = judge_broker(gate.owner_url, test_servers.rabbitmq.management_url, DAY_SECONDS)
    strange = [found for found in verdict.findings if not found.name.startswith("events.")]
    assert strange == []


SHOP_USER = access.shop_user(SHOP, {"orders", "sellers"})


@pytest.mark.parametrize("event_type", ["order.paid", "dispute.opened", "withdrawal.requested"])
def test_a_shop_writes_its_events_and_reads_its_queue(gate: Gate, event_type: str) -> None:
    assert tries(gate.url(SHOP_USER), writes("holdfast.inbound", event_type))
    assert tries(gate.url(SHOP_USER), reads(f"events.{SHOP}"))


@pytest.mark.parametrize(
    "act",
    [
        writes("holdfast.inbound", "bank.credited"),
        writes("holdfast.inbound", "order.paid.more"),
        writes("holdfast.events", f"{SHOP}.order.held"),
        writes("holdfast.deliver", "escrow.release"),
        writes("holdfast.delay.rung.0", "escrow.release"),
        writes("holdfast.dead_letters", "payment.intake.XQ"),
        writes("holdfast.unrouted", ""),
        writes("", "escrow.release"),
        writes("", f"events.{OTHER_SHOP}"),
        reads(f"events.{OTHER_SHOP}"),
        reads("payment.intake"),
        reads("quarantine"),
        lambda channel: channel.queue_purge("payment.intake"),
        *DECLARES,
    ],
)
def test_a_shop_can_do_nothing_else(gate: Gate, act: Callable[[Any], object]) -> None:
    assert not tries(gate.url(SHOP_USER), act)


@pytest.mark.parametrize(
    "act",
    [
        writes("holdfast.inbound", "order.paid"),
        writes("holdfast.inbound", "withdrawal.requested"),
        writes("", "payment.bank"),
        writes("holdfast.deliver", "payment.match"),
        reads("payment.bank"),
        lambda channel: channel.queue_purge("payment.bank"),
        reads(f"events.{SHOP}"),
        *DECLARES,
    ],
)
def test_a_bank_writes_statements_and_can_do_nothing_else(gate: Gate, act: Callable[[Any], object]) -> None:
    url = gate.url(access.bank_user(BANK))
    assert tries(url, writes("holdfast.inbound", "bank.credited"))
    assert not tries(url, act)


def test_a_key_of_one_scope_goes_with_a_user_of_one_scope(gate: Gate) -> None:
    sellers_side = access.shop_user(OTHER_SHOP, {"sellers"})
    gate.admit(sellers_side)
    assert tries(gate.url(sellers_side), writes("holdfast.inbound", "withdrawal.requested"))
    assert not tries(gate.url(sellers_side), writes("holdfast.inbound", "order.paid"))


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_reads_its_own_queues_only(gate: Gate, worker: str) -> None:
    user = access.worker_user(worker)
    own, _ = access.WORKER_QUEUES[worker]
    for queue in own:
        assert tries(gate.url(user), reads(queue)), queue
    others = {queue for queues, _ in access.WORKER_QUEUES.values() for queue in queues} - set(own)
    for queue in [*others, f"events.{SHOP}", "delay.rung.1000"]:
        assert not tries(gate.url(user), reads(queue)), queue


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_writes_commands_where_its_work_leads_only(gate: Gate, worker: str) -> None:
    user = access.worker_user(worker)
    own, others = access.WORKER_QUEUES[worker]
    for queue in WORK_QUEUES:
        allowed = queue in {*own, *others}
        assert tries(gate.url(user), writes("holdfast.deliver", queue)) is allowed, queue
        delayed = ".".join(["0"] * 13 + ["1", queue])
        assert tries(gate.url(user), writes("holdfast.delay.rung.0", delayed)) is allowed, queue
        assert not tries(gate.url(user), writes("", queue))
        assert not tries(gate.url(user), writes("", f"{queue}.XQ"))
        assert tries(gate.url(user), writes("holdfast.dead_letters", f"{queue}.XQ")) is (queue in own), queue
    assert tries(gate.url(user), writes("holdfast.unrouted", "quarantine"))
    assert tries(gate.url(user), writes("holdfast.events", f"{SHOP}.order.held"))
    assert not tries(gate.url(user), writes("holdfast.inbound", "order.paid"))


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("act", DECLARES)
def test_a_worker_declares_nothing(gate: Gate, worker: str, act: Callable[[Any], object]) -> None:
    assert not tries(gate.url(access.worker_user(worker)), act)


def test_an_operator_may_do_what_the_command_does(gate: Gate) -> None:
    url = gate.url(access.operator_user())
    assert declare_shop_queue(url, "third") == "events.third"
    assert tries(url, writes("", "quarantine"))
    assert depth(url, "quarantine") >= 1


def test_a_user_that_was_given_no_password_can_not_log_in(gate: Gate) -> None:
    """The committed file holds no passwords: importing it must open nothing."""
    nobody = BrokerUser("nobody", write="^$", read="^$")
    gate.load(access.user_definitions([nobody], gate.vhost, {}))
    gate.passwords[nobody.name] = ""
    parts = urlsplit(gate.owner_url)
    for password in ("", "guest", nobody.name):
        parameters = pika.ConnectionParameters(
            parts.hostname,
            parts.port,
            gate.vhost,
            pika.PlainCredentials(gate.name(nobody), password),
        )
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            pika.BlockingConnection(parameters)


def test_the_management_api_is_closed_to_all_of_them(gate: Gate, test_servers: Any) -> None:
    management = urlsplit(test_servers.rabbitmq.management_url)
    for user in (SHOP_USER, access.worker_user("payment")):
        login = urlsplit(gate.url(user))
        answer = httpx.get(
            f"http://{management.hostname}:{management.port}/api/overview",
            auth=(gate.name(user), str(login.password)),
            trust_env=False,
        )
        assert answer.status_code == 401
