"""Processes die and the broker goes away in the middle of everything: nothing is lost, nothing is early."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from workflow_support.outsider import Shop, order_data
from workflow_support.system import System

from infra.local.rabbitmq import PrivateRabbitMQ

SELLERS = [f"s-{n}" for n in range(5)]


def orders_of(count: int) -> list[dict[str, Any]]:
    return [order_data(splits={SELLERS[n % 5]: 1_000}) for n in range(count)]


def publish_in_batches(shop: Shop, orders: list[dict[str, Any]], size: int = 10) -> None:
    for start in range(0, len(orders), size):
        events = [shop.event("order.paid", order) for order in orders[start : start + size]]
        shop.publish(shop.message(*events, batch=True))


def all_released_once_and_in_time(shop: Shop, count: int) -> None:
    held = shop.hears_all(lambda event: event.type == "order.held", count, patience=60)
    released = shop.hears_all(lambda event: event.type == "hold.released", count, patience=60)
    assert (len(held), len(released)) == (count, count), "each under one id, however often it came"
    due = {event.data["order_id"]: datetime.fromisoformat(event.data["release_at"]) for event in held}
    for event in released:
        assert datetime.fromisoformat(event.data["released_at"]) >= due[event.data["order_id"]]


@pytest.mark.parametrize("victim", ["payment", "escrow", "payout", "relay"])
def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(system: System, victim: str) -> None:
    shop = system.a_shop()
    orders = orders_of(200)
    process = system.processes[victim]
    killing = threading.Timer(0.2, process.kill)
    killing.start()
    publish_in_batches(shop, orders)
    system.buyers_pay(*orders)
    killing.join()
    for seller in SELLERS:
        shop.enrols(seller)
    process.start()
    all_released_once_and_in_time(shop, len(orders))
    shop.hears_all(lambda event: event.type == "seller.accepted", len(SELLERS))
    # And once more while money leaves.
    withdrawals = {shop.withdraws(seller, 30_000) for seller in SELLERS}
    process.wait_until_ready()
    process.kill()
    process.start()
    settled = shop.hears_all(
        lambda event: event.type == "payout.settled" and event.data["withdrawal_id"] in withdrawals,
        len(SELLERS),
        patience=60,
    )
    for event in settled:
        assert system.accepted_by_bank(event.data["end_to_end_id"]) == 1
    for seller in SELLERS:
        assert system.balances(shop, seller) == {
            "held": 0,
            "available": 10_000,
            "in_payout": 0,
            "paid_out": 30_000,
        }
    process.wait_until_ready()
    assert system.broken_promises() == []


def test_every_worker_killed_while_holds_wait_changes_nothing(system: System) -> None:
    """The release waits in the broker's lane, not in a worker."""
    shop = system.a_shop("--funding", "announced")
    orders = orders_of(50)
    publish_in_batches(shop, orders)
    shop.hears_all(lambda event: event.type == "order.held", len(orders))
    workers = [process for name, process in system.processes.items() if name != "bank"]
    for process in workers:
        process.kill()
    for process in workers:
        process.start()
    all_released_once_and_in_time(shop, len(orders))
    for process in workers:
        process.wait_until_ready()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this test's own, since others could not bear its restart."""
    broker = PrivateRabbitMQ(tmp_path / "rabbitmq")
    broker.start()
    try:
        broker.wait_until_ready()
        yield broker
    finally:
        broker.stop()


def test_a_broker_restart_while_holds_wait_changes_nothing(
    own_broker: PrivateRabbitMQ, databases: Any, migrated_template: str, tmp_path: Path
) -> None:
    name = databases.create(template=migrated_template)
    system = System(broker_url=own_broker.url(), database_url=databases.url(name), folder=tmp_path)
    try:
        system.start()
        shop = system.a_shop("--funding", "announced", days=7)
        orders = orders_of(50)
        publish_in_batches(shop, orders)
        shop.hears_all(lambda event: event.type == "order.held", len(orders))
        own_broker.stop()
        own_broker.start()
        own_broker.wait_until_ready()
        _until_connected(shop.reconnect)
        all_released_once_and_in_time(shop, len(orders))
        assert system.broken_promises() == []
        assert all(process.is_running for process in system.processes.values())
        assert set(system.stop().values()) == {0}
    finally:
        system.close()
        databases.drop(name)


def _until_connected(connect: Callable[[], None]) -> None:
    """A node accepts connections a moment before it serves its queues again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connect()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
