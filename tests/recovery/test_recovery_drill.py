"""PostgreSQL goes back to an earlier moment, the broker is empty; bank and shop remember the rest."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest
from losable_broker import LosableBroker
from workflow_support.outsider import Message, Shop, fresh, order_data
from workflow_support.system import WORKERS, System

from infra.local.archived_postgres import ArchivedPostgres

ADA, BEN = "s-ada", "s-ben"
REFUND = 4_000


@pytest.fixture
def narrate(say: Callable[[str], None]) -> Callable[[str], None]:
    """Only `make drill` wants to read it."""
    return say if "HOLDFAST_DRILL" in os.environ else lambda _line: None


class RememberingShop:
    """A shop that keeps what it published, as the contract advises, and can publish it again."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.published: list[Message] = []
        publish = shop.publish

        def keep_and_publish(*messages: Message) -> None:
            self.published += messages
            publish(*messages)

        shop.publish = keep_and_publish  # type: ignore[method-assign]
        self.publish_again = publish


def an_order(system: System, shop: Shop, splits: dict[str, int], *, released: bool = True) -> dict[str, Any]:
    order = order_data(splits=splits)
    shop.says("order.paid", order)
    system.buyers_pay(order)
    shop.hears("order.funded", order_id=order["order_id"])
    if released:
        shop.hears_all(
            lambda event: event.type == "hold.released" and event.data["order_id"] == order["order_id"],
            len(splits),
        )
    return order


def a_refund(shop: Shop, order: dict[str, Any], seller: str) -> str:
    data = {
        "refund_id": fresh("r"),
        "order_id": order["order_id"],
        "refunds": [{"seller_id": seller, "amount": REFUND}],
    }
    shop.says("refund.requested", data)
    shop.hears("refund.settled", refund_id=data["refund_id"])
    return str(data["refund_id"])


def settled(shop: Shop, *withdrawals: str) -> None:
    for withdrawal in withdrawals:
        shop.hears("payout.settled", withdrawal_id=withdrawal)


def report(system: System) -> tuple[bool, dict[str, list[dict[str, str]]]]:
    """Return what `holdfast recover report` leaves to people, by kind."""
    exit_code, said = system._terminal.run(["recover", "report", "--json"])
    told = json.loads(said)
    assert (exit_code == 0) == told["ok"]
    decisions: dict[str, list[dict[str, str]]] = {}
    for decision in told["decisions"]:
        assert decision["remedy"]
        decisions.setdefault(decision["what"], []).append(decision)
    return told["ok"], decisions


def journal(system: System) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (
        httpx.get(f"{system.bank_url}/journal", timeout=30).raise_for_status().json()
    )
    return entries


def ids_at_bank(system: System) -> list[str]:
    return [entry["end_to_end_id"] for entry in journal(system) if entry["kind"] == "transfer_accepted"]


@pytest.mark.timeout(300)
def test_back_at_an_earlier_moment_nothing_is_paid_twice_and_the_audit_passes(  # noqa: PLR0915 - one story
    system: System,
    postgres: ArchivedPostgres,
    broker: LosableBroker,
    narrate: Callable[[str], None],
) -> None:
    remembering = RememberingShop(system.a_shop())
    shop = remembering.shop
    for seller in (ADA, BEN):
        shop.enrols(seller)
        shop.hears("seller.accepted", seller_id=seller)
    postgres.back_up()
    narrate("a base backup is taken; WAL is archived")

    an_order(system, shop, {ADA: 10_000, BEN: 10_000})
    first = shop.withdraws(ADA, 1_000)
    settled(shop, first)
    waiting = an_order(system, shop, {BEN: 9_000}, released=False)
    with psycopg.connect(postgres.url("holdfast")) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    said_before = len(remembering.published)
    narrate(f"{moment:%H:%M:%S.%f}: this moment will be restored")

    late_order = an_order(system, shop, {BEN: 6_000})
    from_old_money = shop.withdraws(ADA, 2_500)
    never_said_again = shop.withdraws(ADA, 6_000)
    from_new_money = shop.withdraws(BEN, 15_500)
    refunded = an_order(system, shop, {ADA: 5_000}, released=False)
    refund = a_refund(shop, refunded, ADA)
    settled(shop, from_old_money, from_new_money, never_said_again)
    paid_before = ids_at_bank(system)
    assert len(paid_before) == 5
    narrate("afterwards two orders, three payouts and a refund go all the way")

    postgres.archive_all()
    for name in WORKERS:
        system.processes[name].kill()
    assert system.processes["bank"].stop() == 0
    postgres.restore(moment)
    broker.is_lost()
    narrate("disaster: workers killed, broker empty, database restored to that moment")

    system.holdfast("payouts", "pause", "--why", "restored to an earlier moment")
    system.holdfast("topology", "apply")
    system.holdfast("shop", "add", shop.id, "--protection-days", "3")
    shop.reconnect()
    for process in system.processes.values():
        process.start()
    for process in system.processes.values():
        process.wait_until_ready()
    ok, decisions = report(system)
    forgotten = {decision["subject"] for decision in decisions["transfer_unknown_to_us"]}
    assert not ok
    assert forgotten == set(paid_before[1:]), "the three payouts and the refund that the bank has made"
    narrate(f"`holdfast recover report` names {len(forgotten)} transfers that the bank knows and we do not")

    shop.received.clear()
    adopt = ("recover", "adopt", "payout", "--shop", shop.id, "--withdrawal", never_said_again)
    adopt += ("--seller", ADA, "--destination", "d-1", "--why", "the shop has lost it")
    system.holdfast_of_the_owner((*adopt, "--dry-run"), adopt, adopt)
    settled(shop, never_said_again)
    assert ids_at_bank(system) == paid_before
    narrate(
        "one that its shop has lost as well is taken back into the books: the bank is asked and has paid it"
    )

    httpx.post(f"{system.bank_url}/statement/again", timeout=30).raise_for_status()
    wanted = {late_order["bank_reference"], refunded["bank_reference"]}
    for _ in range(300):
        _, decisions = report(system)
        if {one["subject"] for one in decisions.get("credit_without_order", [])} == wanted:
            break
    assert {one["subject"] for one in decisions["credit_without_order"]} == wanted
    narrate("the bank says its statement again: two credits wait for orders that were forgotten")

    again = remembering.published[said_before:]
    orders = [message for message in again if message.routing_key == "order.paid"]
    others = [
        message for message in again if message.routing_key not in {"order.paid", "withdrawal.requested"}
    ]
    remembering.publish_again(*orders)
    shop.hears("order.funded", order_id=refunded["order_id"])
    remembering.publish_again(*others)
    shop.hears("refund.accepted", refund_id=refund)
    for order in (waiting, late_order):
        shop.hears("hold.released", order_id=order["order_id"], patience=60)
    withdrawals = [
        message
        for message in again
        if message.routing_key == "withdrawal.requested" and never_said_again.encode() not in message.body
    ]
    remembering.publish_again(*withdrawals)
    for withdrawal in (from_old_money, from_new_money):
        shop.hears("withdrawal.accepted", withdrawal_id=withdrawal)
    assert report(system) == (True, {}), "everything that the bank has made is known again"
    assert ids_at_bank(system) == paid_before, "nothing went to the bank while payouts were paused"
    narrate("the shop says again what was forgotten; nothing is left to decide")

    system.holdfast("payouts", "resume", "--why", "all transfers are known again")
    settled(shop, from_old_money, from_new_money)
    shop.hears("refund.settled", refund_id=refund)
    assert ids_at_bank(system) == paid_before, "each transfer was made once, before the disaster"
    assert system.balances(shop, ADA) == {
        "held": 0,
        "available": 10_000 - 1_000 - 2_500 - 6_000 + 1_000,
        "in_payout": 0,
        "paid_out": 9_500,
    }
    assert system.balances(shop, BEN) == {
        "held": 0,
        "available": 10_000 + 9_000 + 6_000 - 15_500,
        "in_payout": 0,
        "paid_out": 15_500,
    }
    assert system.broken_promises() == []
    assert report(system) == (True, {})
    narrate(
        "payouts go on: the bank was asked under the ids that it knows, and paid nothing twice; audit passed"
    )
