"""A pool grows and shrinks while work comes in: nothing is lost, nothing is done twice, all end well."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from workflow_support.outsider import Shop, order_data
from workflow_support.system import Process, System

SELLERS = [f"s-{n}" for n in range(5)]
BATCH = 10


class Pool:
    """The processes of one type; all are the same, and none knows of the others."""

    def __init__(self, system: System, name: str, folder: Path) -> None:
        self._system = system
        self._name = name
        self._folder = folder
        self._added: list[Process] = []
        self.exit_codes: list[int] = []

    def grow(self, to: int) -> None:
        """Start processes beside the one that the system has, until there are so many."""
        self._added += [self._process(number) for number in range(2, to + 1)]
        for process in self._added:
            process.start()

    def wait_until_ready(self) -> None:
        for process in self._added:
            process.wait_until_ready()

    def shrink_to_the_newest(self) -> None:
        """Tell all but the newest to stop, the oldest first: who remains has seen only a part."""
        *old, newest = [self._system.processes[self._name], *self._added]
        for process in old:
            self.exit_codes.append(process.stop())
        self._added = [newest]

    def back_to_the_first(self) -> None:
        """Start the system's own process again, then stop the other."""
        first = self._system.processes[self._name]
        first.start()
        first.wait_until_ready()
        for process in self._added:
            self.exit_codes.append(process.stop())
        self._added.clear()

    def close(self) -> None:
        for process in self._added:
            if process.is_running:
                process.stop()

    def _process(self, number: int) -> Process:
        command = [sys.executable, "-m", f"workers.{self._name}.worker"]
        return Process(f"{self._name}-{number}", command, self._system.environment, self._folder)


class Load:
    """What is done over and over, in a thread of its own, until it is enough."""

    def __init__(self, act: Callable[[], None], *, pause_seconds: float) -> None:
        self._act = act
        self._pause_seconds = pause_seconds
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._repeat)
        self._failure: BaseException | None = None
        self._thread.start()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()
        assert self._failure is None, self._failure

    def _repeat(self) -> None:
        try:
            while not self._enough.is_set():
                self._act()
                self._enough.wait(self._pause_seconds)
        except BaseException as error:  # noqa: BLE001 - told to the test, which has a thread of its own
            self._failure = error


def pay(system: System, shop: Shop, orders: list[dict[str, Any]]) -> None:
    """Publish orders under one signature, and let the buyers' money arrive."""
    events = [shop.event("order.paid", order) for order in orders]
    shop.publish(shop.message(*events, batch=True))
    system.buyers_pay(*orders)


@pytest.fixture
def pool_of(system: System, tmp_path: Path) -> Iterator[Callable[[str], Pool]]:
    with ExitStack() as leaving:

        def make(name: str) -> Pool:
            pool = Pool(system, name, tmp_path)
            leaving.callback(pool.close)
            return pool

        yield make


def test_pools_grow_to_four_and_shrink_to_one_while_work_comes_in(
    system: System, pool_of: Callable[[str], Pool]
) -> None:
    shop = system.a_shop("--funding", "announced")
    orders: list[dict[str, Any]] = []

    def pay_some() -> None:
        some = [order_data(splits={SELLERS[n % 5]: 1_000}) for n in range(BATCH)]
        pay(system, shop, some)
        orders.extend(some)

    load = Load(pay_some, pause_seconds=0.1)
    pools = [pool_of(name) for name in ("payment", "escrow")]
    for pool in pools:
        pool.grow(4)
    for pool in pools:
        pool.wait_until_ready()
    # One after the other, so that the rest is at work while one pool changes.
    for pool in pools:
        pool.shrink_to_the_newest()
        pool.back_to_the_first()
    load.stop()
    assert [pool.exit_codes for pool in pools] == [[0, 0, 0, 0]] * len(pools)

    # Nothing lost, nothing twice: every order is held under one id and released under one id, to the cent.
    held = shop.hears_all(lambda event: event.type == "order.held", len(orders), patience=60)
    released = shop.hears_all(lambda event: event.type == "hold.released", len(orders), patience=60)
    assert len(held) == len(released) == len(orders)
    assert {event.data["order_id"] for event in released} == {order["order_id"] for order in orders}
    for seller in SELLERS:
        earned = sum(order["amount"] for order in orders if order["splits"][0]["seller_id"] == seller)
        assert system.balances(shop, seller) == {
            "held": 0,
            "available": earned,
            "in_payout": 0,
            "paid_out": 0,
        }
    assert system.broken_promises() == []


def test_the_payout_pool_grows_and_shrinks_while_withdrawals_come_in(
    system: System, pool_of: Callable[[str], Pool]
) -> None:
    shop = system.a_shop("--funding", "announced")
    pay(system, shop, [order_data(splits={seller: 1_000_000}) for seller in SELLERS])
    for seller in SELLERS:
        shop.enrols(seller)
    shop.hears_all(lambda event: event.type == "seller.accepted", len(SELLERS))
    shop.hears_all(lambda event: event.type == "hold.released", len(SELLERS))
    withdrawals: list[str] = []
    load = Load(
        lambda: withdrawals.extend(shop.withdraws(seller, 100) for seller in SELLERS), pause_seconds=0.5
    )
    pool = pool_of("payout")
    pool.grow(4)
    pool.wait_until_ready()
    pool.shrink_to_the_newest()
    pool.back_to_the_first()
    load.stop()
    assert pool.exit_codes == [0, 0, 0, 0]

    settled = shop.hears_all(lambda event: event.type == "payout.settled", len(withdrawals), patience=60)
    assert {event.data["withdrawal_id"] for event in settled} == set(withdrawals)
    for event in settled:
        assert system.accepted_by_bank(event.data["end_to_end_id"]) == 1
    paid_out = 100 * len(withdrawals) // len(SELLERS)
    for seller in SELLERS:
        assert system.balances(shop, seller) == {
            "held": 0,
            "available": 1_000_000 - paid_out,
            "in_payout": 0,
            "paid_out": paid_out,
        }
    assert system.broken_promises() == []
