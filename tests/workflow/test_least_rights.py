"""The whole path with every process and the shop logged in to RabbitMQ as themselves."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from workflow_support.broker_gate import Gate
from workflow_support.outsider import Shop, order_data
from workflow_support.system import WORKERS, System

from infra.local.rabbitmq import PrivateRabbitMQ
from infra.rabbitmq import access
from infra.rabbitmq.access import worker_user


@pytest.fixture
def confined(
    test_servers: Any,
    make_vhost: Callable[[], str],
    databases: Any,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[System, Gate]]:
    assert isinstance(test_servers.rabbitmq, PrivateRabbitMQ), "needs a broker that this run may add users to"
    url = make_vhost()
    gate = Gate(test_servers.rabbitmq, url)
    bank = access.bank_user("sim")
    gate.admit(*map(worker_user, WORKERS), bank)
    name = databases.create(template=migrated_template)
    system = System(
        broker_url=url,
        database_url=databases.url(name),
        folder=tmp_path_factory.mktemp("confined"),
        users={worker: gate.url(worker_user(worker)) for worker in WORKERS} | {"bank": gate.url(bank)},
    )
    try:
        system.start()
        yield system, gate
        assert system.broken_promises() == []
    finally:
        system.close()
        databases.drop(name)
        gate.forget()


def test_the_whole_path_works_with_the_least_rights(confined: tuple[System, Gate]) -> None:
    system, gate = confined
    known = system.a_shop()
    user = access.shop_user(known.id, {"orders", "sellers"})
    gate.admit(user)
    shop = Shop(gate.url(user), known.id, known.key, system.holdfast_json("keys", "public")["keys"])
    known.close()
    order, disputed = order_data(splits={"s-1": 500}), order_data(splits={"s-1": 200})
    for each in (order, disputed):
        shop.says("order.paid", each)
        shop.hears("order.held", order_id=each["order_id"])
        system.buyers_pay(each)
        shop.hears("order.funded", order_id=each["order_id"])
    refund = {"refund_id": "r-1", "order_id": disputed["order_id"]}
    shop.says("refund.requested", refund | {"refunds": [{"seller_id": "s-1", "amount": 200}]})
    shop.hears("refund.settled", refund_id="r-1")
    shop.enrols("s-1")
    shop.hears("seller.accepted", seller_id="s-1")
    shop.hears("hold.released", order_id=order["order_id"])
    withdrawal = shop.withdraws("s-1", 500)
    shop.hears("payout.settled", withdrawal_id=withdrawal)
    # A forgery goes to quarantine, a command that is none to its dead letters, and both are recorded.
    forged = shop.message(shop.event("order.paid", order_data()))
    forged.headers["webhook-signature"] = "v1,AAAA"
    shop.publish(forged)
    deadline = 200
    while not (listed := system.holdfast_json("quarantine", "list")) and deadline:
        deadline -= 1
    assert [one["reason"] for one in listed] == ["bad_signature"]
    shop.close()
