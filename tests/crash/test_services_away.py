"""
The database goes away, the broker goes away, the process is asked to stop: all in the middle of the work.

Real servers of this module's own, stopped and started under a running process with all workers.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_sites import BankAtEdge, Nursery, Site, open_site, wait_until
from workflow_support.outsider import fresh, order_data

from infra.local.postgres import PrivatePostgres
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.local.services import services_in, start_services
from infra.postgres.migrate import migrate
from infra.rabbitmq import topology
from infra.settings import Settings

ORDERS = 200
# Closing connections after the drain; infra/rabbitmq/supervisor.py.
CLOSING_SECONDS = 5.0

# Starting two servers is most of it.
pytestmark = pytest.mark.timeout(300)


class Place:
    """A site on servers that can be stopped."""

    def __init__(self, site: Site, database: PrivatePostgres, broker: PrivateRabbitMQ) -> None:
        self.site = site
        self.database = database
        self.broker = broker

    def orders(self, count: int) -> list[str]:
        """Publish so many orders, each confirmed by the broker; return their ids."""
        orders = [order_data(splits={fresh("s"): 10_000}) for _ in range(count)]
        shop = self.site.shop
        shop.publish(*[shop.message(shop.event("order.paid", order)) for order in orders])
        return [str(order["order_id"]) for order in orders]

    def held(self, orders: list[str]) -> int:
        return int(self.site.value("SELECT count(*) FROM holds WHERE order_id = ANY(:orders)", orders=orders))

    def wait_until_held(self, orders: list[str]) -> None:
        wait_until(
            lambda: self.held(orders) == len(orders),
            what="all orders are held",
            log=self.site.read_log,
            pause=0.1,
        )

    def nothing_was_blamed_on_a_message(self) -> None:
        assert self.site.logged("message_failed") == [], "no attempt was burnt"
        assert self.site.value("SELECT count(*) FROM recorded_messages") == 0, "nothing was dead-lettered"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivatePostgres, PrivateRabbitMQ]]:
    folder = tmp_path_factory.mktemp("servers")
    services = services_in(folder)
    start_services(services)
    assert services.postgres is not None
    assert services.rabbitmq is not None
    yield services.postgres, services.rabbitmq
    services.stop()


@pytest.fixture
def place(servers: tuple[PrivatePostgres, PrivateRabbitMQ], tmp_path: Path) -> Iterator[Place]:
    database, broker = servers
    name = fresh("holdfast").replace("-", "_")
    database.create_database(name)
    migrate(database.url(name))
    broker.add_vhost(name)
    nursery = Nursery()
    # Nothing is paid out here, and the bank is away.
    bank = BankAtEdge(nursery, tmp_path, "", url="http://127.0.0.1:9")
    with open_site(
        broker_url=broker.url(name),
        database_url=database.url(name),
        bank=bank,
        folder=tmp_path / "site",
        sellers=False,
    ) as site:
        yield Place(site, database, broker)
    nursery.close()


def _alternate(lines: list[dict[str, Any]], first: str, second: str) -> bool:
    """One line for each change of state: never the same twice in a row."""
    names = [line["event"] for line in lines]
    return names == [first, second] * (len(names) // 2)


def test_while_the_database_is_away_messages_wait_and_the_work_resumes_by_itself(place: Place) -> None:
    site = place.site
    child = site.start()
    site.wait_until_ready()
    before = place.orders(ORDERS)
    wait_until(lambda: place.held(before) > 0, what="the work has begun")
    site.engine.dispose()
    place.database.stop()
    during = place.orders(ORDERS)
    wait_until(lambda: bool(site.logged("work_suspended")), what="it noticed", log=site.read_log)
    place.database.start()
    place.database.wait_until_ready()
    site.engine.dispose()
    place.wait_until_held([*before, *during])
    wait_until(lambda: len(site.logged("work_resumed")) == len(site.logged("work_suspended")), what="resumed")
    assert not child.ended.done(), "it waited, and did not die of it"
    assert _alternate(site.logged("work_suspended", "work_resumed"), "work_suspended", "work_resumed")
    for loop in {line["loop"] for line in site.logged("loop_failing")} - {"returns"}:
        lines = [line for line in site.logged("loop_failing", "loop_recovered") if line["loop"] == loop]
        assert len(lines) <= 2, f"one line when it starts, one when it ends: {lines}"
    place.nothing_was_blamed_on_a_message()
    site.check_audit()


def test_when_the_broker_was_away_everything_confirmed_is_still_done(place: Place) -> None:
    site = place.site
    child = site.start()
    site.wait_until_ready()
    before = place.orders(ORDERS)
    wait_until(lambda: place.held(before) > 0, what="the work has begun")
    place.broker.stop()
    wait_until(lambda: bool(site.logged("consumer_connection_lost")), what="it noticed")
    place.broker.start()
    place.broker.wait_until_ready()
    site.reconnect()
    after = place.orders(10)
    place.wait_until_held([*before, *after])
    for order in (before[0], before[-1], after[-1]):
        site.shop.hears("order.held", order_id=order)
    assert not child.ended.done(), "it waited, and did not die of it"
    lost = [line["queue"] for line in site.logged("consumer_connection_lost")]
    assert len(lost) == len(set(lost)), "one line for each connection, however often it tries"
    place.nothing_was_blamed_on_a_message()
    site.check_audit()


def test_sigterm_under_load_ends_well_and_loses_nothing(place: Place) -> None:
    site = place.site
    child = site.start()
    site.wait_until_ready()
    orders = place.orders(3 * ORDERS)
    wait_until(lambda: place.held(orders) > 0, what="the work has begun", pause=0.005)
    began = time.monotonic()
    assert child.terminate() == 0
    assert time.monotonic() - began < Settings.model_fields["drain_seconds"].default + CLOSING_SECONDS
    taken = site.value("SELECT count(*) FROM payments")
    assert taken + site.left_in(topology.PAYMENT_INTAKE) == len(orders), "each is in one place"
    site.start()
    place.wait_until_held(orders)
    place.nothing_was_blamed_on_a_message()
    site.come_to_rest()
