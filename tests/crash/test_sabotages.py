"""
The proofs can fail: each protection is taken away once, and the check that watches it must notice.

Every sabotage has its control: the same happens to the code as it is, and the same check is content.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from crash_sites import BankAtEdge, Nursery, Site, open_site
from sabotages import CarelessPublisher, without_row_locks, without_unique_keys
from sqlalchemy import Engine
from workflow_support.desk import DAY_SECONDS, Desk, database_engine
from workflow_support.events import (
    bank_credited,
    credit_data,
    order_data,
    order_paid,
    refund_requested,
)
from workflow_support.outsider import order_data as signed_order_data
from workflow_support.races import met_at_a_lock

from infra.crash_points import CRASH_EXIT_CODE
from infra.postgres.audit import run_audit
from infra.postgres.key_store import ensure_own_keys
from infra.postgres.step import Steps
from infra.rabbitmq import topology
from infra.rabbitmq.outbox_publisher import OutboxPublisher
from infra.rabbitmq.publisher import Publisher
from ops.store.deployment import ensure_day_length
from workers.payment import handlers as payment
from workers.payout import store as payout_store
from workers.payout.handlers import passwords


@pytest.fixture
def scratch(databases: Any, migrated_template: str) -> Iterator[str]:
    """A database that a test may spoil."""
    name = databases.create(template=migrated_template)
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture
def desk(scratch: str) -> Iterator[Desk]:
    with database_engine(scratch) as engine:
        with engine.begin() as connection:
            ensure_day_length(connection, DAY_SECONDS)
        desk = Desk(engine)
        yield desk
        desk.close()


def noticed(engine: Engine) -> set[str]:
    """Return the names of the invariants that the audit finds broken."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return {finding.check.name for finding in run_audit(connection) if not finding.ok}


# --- the unique key -------------------------------------------------------------------------------


@pytest.mark.parametrize("sabotaged", [False, True])
def test_the_audit_notices_that_the_key_of_payments_is_gone(desk: Desk, sabotaged: bool) -> None:  # noqa: FBT001 - a parameter of the test
    if sabotaged:
        desk.execute(without_unique_keys("payments"))
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    desk.shop_says(order_paid(shop, order))
    assert ("one_effect_per_business_key" in noticed(desk.engine)) == sabotaged
    if not sabotaged:
        assert noticed(desk.engine) == set()


# --- the row lock ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sabotaged", [False, True])
def test_a_race_without_the_lock_on_holds_is_lost_and_seen(desk: Desk, scratch: str, sabotaged: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A release and a refund of the same money, both of which have read it before either acts."""
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    desk.pass_protection(shop, order["order_id"])
    hold_id = desk.value("SELECT hold_id FROM holds WHERE order_id = :order", order=order["order_id"])
    refund = refund_requested(shop, order, {"s-1": 10_000})
    failures: list[Exception] = []

    def daring(act: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - a constraint that refuses has noticed it too
                failures.append(error)

        return run

    spoiled: AbstractContextManager[None] = (
        without_row_locks(desk.engine, "holds") if sabotaged else nullcontext()
    )
    with spoiled, database_engine(scratch) as unspoiled:
        met_at_a_lock(
            unspoiled,
            "SELECT 1 FROM holds WHERE order_id = :order FOR UPDATE",
            daring(lambda: desk.release(hold_id)),
            daring(lambda: desk.receive_recourse(refund)),
            order=order["order_id"],
        )
        desk.run()
    assert bool(failures or noticed(desk.engine)) == sabotaged


# --- the acknowledgement --------------------------------------------------------------------------


@pytest.fixture
def site(
    make_vhost: Callable[[], str], scratch: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sabotage")
    nursery = Nursery()
    # Nothing is paid out here.
    bank = BankAtEdge(nursery, folder, "", url="http://127.0.0.1:9")
    with open_site(
        broker_url=make_vhost(),
        database_url=scratch,
        bank=bank,
        folder=Path(folder, "site"),
        sellers=False,
    ) as site:
        yield site
    nursery.close()


@pytest.mark.parametrize(("sabotage", "lost"), [(None, 0), ("acknowledge_before_commit", 1)])
def test_an_order_acknowledged_before_its_commit_is_counted_as_lost(
    site: Site, sabotage: str | None, lost: int
) -> None:
    child = site.start(crash_at="receive_orders: before commit", sabotage=sabotage)
    site.shop.says("order.paid", signed_order_data())
    assert child.ended.result(60) == CRASH_EXIT_CODE
    applied = site.value("SELECT count(*) FROM payments")
    assert 1 - applied - site.left_in(topology.PAYMENT_INTAKE) == lost


# --- the confirm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("publisher_class", "lost"), [(Publisher, 0), (CarelessPublisher, 1)])
def test_an_event_published_without_confirm_is_counted_as_lost(
    desk: Desk, broker_url: str, publisher_class: type[Publisher], lost: int
) -> None:
    """The shop's queue is not there: the broker says so, to those who listen."""
    topology.apply(broker_url, DAY_SECONDS)
    shop = desk.a_shop(state="suspended")
    with desk.engine.begin() as connection:
        ensure_own_keys(connection, desk.vault)
    publisher = publisher_class(broker_url)
    try:
        outbox = OutboxPublisher(
            desk.engine, publisher, desk.keys.signer, timeout_seconds=10, day_seconds=DAY_SECONDS
        )
        steps = Steps(desk.engine, after_commit=outbox.publish_committed, grace_seconds=2)
        payment.receive_orders(steps, [order_paid(shop, order_data())])
    finally:
        publisher.close()
    told = desk.value("SELECT count(*) FROM events WHERE shop_id = :shop", shop=shop)
    waiting = desk.value(
        "SELECT count(*) FROM outbox WHERE shop_id = :shop AND published_at IS NULL", shop=shop
    )
    arrived = 0  # there is no queue in which it could be
    assert told - waiting - arrived == lost


# --- the count ------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(("sabotaged", "free_guesses"), [(False, 0), (True, 1)])
def test_a_guess_that_is_counted_only_after_its_check_is_seen_to_be_free(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    sabotaged: bool,  # noqa: FBT001 - a parameter of the test
    free_guesses: int,
) -> None:
    """Whoever can make the process die after each check could guess for ever."""
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=1_000)
    check, guesses = passwords._check, []

    def check_and_die(*given: Any) -> Any:
        guesses.append(check(*given).ok)
        raise PowerCut

    monkeypatch.setattr(passwords, "_check", check_and_die)
    if sabotaged:
        monkeypatch.setattr(payout_store, "mark_counted", lambda *_args, **_named: None)
    with pytest.raises(PowerCut):
        desk.seller_withdraws(platform.withdraws(seller, 1_000, password="incorrect horse"))
    counted = desk.value("SELECT failed_attempts FROM sellers WHERE seller_id = :seller", seller=seller)
    assert guesses == [False]
    assert len(guesses) - counted == free_guesses
