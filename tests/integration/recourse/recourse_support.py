"""What the tests of recourse share: holds brought into each state, and their rows."""

from collections.abc import Iterable
from typing import Any

from workflow_support.desk import Desk, Told
from workflow_support.events import (
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

SELLER = "s-1"


def types(told: Iterable[Told]) -> list[str]:
    return sorted(event.type for event in told)


def the(told: Iterable[Told], type_: str) -> Told:
    """Return the one event of this type."""
    [found] = [event for event in told if event.type == type_]
    return found


def held_order(desk: Desk, shop: str, *, funded: bool = True, **order: Any) -> dict[str, Any]:
    """An order of 100.00 CNY for one seller, held; `splits` names others."""
    data = order_data(**order)
    desk.shop_says(order_paid(shop, data))
    if funded:
        desk.bank_says(bank_credited(credit_data(data)))
    return data


def state_of(desk: Desk, order: dict[str, Any], seller: str = SELLER) -> str:
    return str(_of_hold(desk, order, seller, "state"))


def refunded_of(desk: Desk, order: dict[str, Any], seller: str = SELLER) -> int:
    return int(_of_hold(desk, order, seller, "refunded_minor"))


def refund_state(desk: Desk, refund_id: str) -> str:
    return str(desk.value("SELECT state FROM refunds WHERE refund_id = :id", id=refund_id))


def dispute_state(desk: Desk, dispute_id: str) -> str:
    return str(desk.value("SELECT state FROM disputes WHERE dispute_id = :id", id=dispute_id))


def owed_by(desk: Desk, shop: str, seller: str = SELLER) -> int:
    rows = desk.execute(
        "SELECT owed_minor FROM receivables WHERE (shop_id, seller_id) = (:shop, :seller)",
        shop=shop,
        seller=seller,
    )
    return int(rows[0].owed_minor) if rows else 0


def disputed(desk: Desk, shop: str, order: dict[str, Any], **dispute: Any) -> str:
    """Open a dispute and return its id."""
    dispute_id = fresh("d")
    told = desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute_id, **dispute))
    assert "dispute.accepted" in types(told)
    return dispute_id


def due(desk: Desk, shop: str, order: dict[str, Any]) -> None:
    """Let the protection period pass; no alarm has rung yet."""
    desk.pass_protection(shop, order["order_id"])


def released_now(desk: Desk, shop: str, order: dict[str, Any]) -> list[Told]:
    due(desk, shop, order)
    return desk.ring_alarms("release_hold")


def charged_back(desk: Desk, order: dict[str, Any], **debit: Any) -> list[Told]:
    return desk.bank_says(bank_debited(debit_data(order, **debit)))


def credited_again(desk: Desk, order: dict[str, Any]) -> list[Told]:
    return desk.bank_says(bank_credited(credit_data(order)))


def hold_that_is(desk: Desk, shop: str, state: str, *, funded: bool = True) -> tuple[dict[str, Any], str]:
    """
    Bring a hold into a state; return its order and a dispute of it, if one can be open.

    A refunded hold had a dispute that is open still: it was refunded while it was frozen.
    """
    order = held_order(desk, shop, funded=funded)
    dispute_id = ""
    if state in {"frozen", "refunded"}:
        dispute_id = disputed(desk, shop, order)
    if state == "refunded":
        desk.buyers_ask(refund_requested(shop, order, {SELLER: order["amount"]}))
    if state == "released":
        released_now(desk, shop, order)
    assert state_of(desk, order) == state
    desk.told.clear()
    return order, dispute_id


def resolved(desk: Desk, shop: str, dispute_id: str, refunds: dict[str, int] | None = None) -> list[Told]:
    return desk.buyers_ask(dispute_resolved(shop, dispute_id, refunds))


def _of_hold(desk: Desk, order: dict[str, Any], seller: str, column: str) -> object:
    return desk.value(
        f"SELECT {column} FROM holds WHERE (order_id, seller_id) = (:order, :seller)",
        order=order["order_id"],
        seller=seller,
    )
