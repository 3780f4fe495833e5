"""Events as shops, sellers' platforms and banks write them, already proven authentic."""

import itertools
import secrets
from datetime import UTC, datetime
from typing import Any

from infra.rabbitmq.ingress import InboundEvent
from infra.security.sealed import seal
from schemas.envelope import Envelope
from schemas.inbound import InvalidData, hash_of_raw, validate_data

PAID_AT = "2026-11-23T08:00:00Z"
PASSWORD = "correct horse battery"
WRONG_PASSWORD = "incorrect horse"
# A valid IBAN that belongs to nobody.
DESTINATION = {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Ada Seller"}

_run = secrets.token_hex(3)
_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """Return an id that no other test has."""
    return f"{prefix}-{_run}-{next(_numbers)}"


def order_data(**changes: Any) -> dict[str, Any]:
    """`order.paid` of 100.00 CNY for one seller; `splits` as {seller: amount} also sets the amount."""
    splits: dict[str, int] = changes.pop("splits", {"s-1": 10_000})
    data: dict[str, Any] = {
        "order_id": fresh("o"),
        "buyer_id": "b-1",
        "amount": sum(splits.values()),
        "currency": "CNY",
        "paid_at": PAID_AT,
        "bank_reference": fresh("REF"),
        "splits": [{"seller_id": seller, "amount": amount} for seller, amount in splits.items()],
    }
    return data | changes


def credit_data(order: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the bank's `bank.credited` that confirms this order."""
    data = {name: order[name] for name in ("bank_reference", "amount", "currency")}
    return data | {"booked_at": PAID_AT, "statement_line": fresh("line")} | changes


def an_event(
    source: str, type_: str, data: object, *, event_id: str | None = None, active: bool = True
) -> InboundEvent:
    """Build an authentic event as the ingress hands it to a handler."""
    judged = validate_data(type_, data)
    envelope = Envelope(event_id or fresh("e"), source, type_, datetime.now(UTC), data)
    kind, sender_id = envelope.sender
    content = hash_of_raw(type_, data) if isinstance(judged, InvalidData) else judged.content_hash()
    return InboundEvent(kind, sender_id, active, envelope, judged, content)


def order_paid(shop: str, data: dict[str, Any] | None = None, **event: Any) -> InboundEvent:
    return an_event(f"/shops/{shop}", "order.paid", data if data is not None else order_data(), **event)


def bank_credited(data: dict[str, Any], *, bank: str = "sim", **event: Any) -> InboundEvent:
    return an_event(f"/banks/{bank}", "bank.credited", data, **event)


def bank_debited(data: dict[str, Any], *, bank: str = "sim", **event: Any) -> InboundEvent:
    return an_event(f"/banks/{bank}", "bank.debited", data, **event)


def debit_data(order: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the bank's `bank.debited` that takes this order's credit back."""
    return credit_data(order, reason="MD06") | changes


def dispute_opened(
    shop: str, order: dict[str, Any], *, dispute_id: str, reason: str = "it never came", **event: Any
) -> InboundEvent:
    """The buyer complains; `seller_ids` may name some of the order's sellers."""
    data = {"dispute_id": dispute_id, "order_id": order["order_id"], "reason": reason}
    if (seller_ids := event.pop("seller_ids", None)) is not None:
        data["seller_ids"] = seller_ids
    return an_event(f"/shops/{shop}", "dispute.opened", data, **event)


def dispute_resolved(
    shop: str, dispute_id: str, refunds: dict[str, int] | None = None, **event: Any
) -> InboundEvent:
    """The marketplace decides: `refunds` as {seller: amount} go back to the buyer."""
    data = {"dispute_id": dispute_id, "refunds": _parts(refunds or {})}
    return an_event(f"/shops/{shop}", "dispute.resolved", data, **event)


def refund_requested(
    shop: str,
    order: dict[str, Any],
    refunds: dict[str, int],
    *,
    refund_id: str | None = None,
    **event: Any,
) -> InboundEvent:
    data = {
        "refund_id": refund_id or fresh("r"),
        "order_id": order["order_id"],
        "refunds": _parts(refunds),
    }
    return an_event(f"/shops/{shop}", "refund.requested", data, **event)


def _parts(refunds: dict[str, int]) -> list[dict[str, Any]]:
    return [{"seller_id": seller, "amount": amount} for seller, amount in refunds.items()]


class SellersPlatform:
    """What acts for one shop's sellers; it knows Holdfast's public key and seals to it."""

    def __init__(self, shop: str, public_jwk: dict[str, str]) -> None:
        self.shop = shop
        self._public_jwk = public_jwk

    def enrols(
        self,
        seller: str,
        *,
        password: str = PASSWORD,
        destination_id: str = "d-1",
        destination: dict[str, str] | None = None,
        **event: Any,
    ) -> InboundEvent:
        return self._asks(
            "seller.enrolled",
            {"seller_id": seller, "destination_id": destination_id},
            {"password": password, "destination": destination or DESTINATION},
            **event,
        )

    def changes_password(self, seller: str, *, old: str, new: str, **event: Any) -> InboundEvent:
        return self._asks(
            "seller.password_changed",
            {"seller_id": seller},
            {"old_password": old, "new_password": new},
            **event,
        )

    def withdraws(
        self,
        seller: str,
        amount: int,
        *,
        password: str = PASSWORD,
        withdrawal_id: str | None = None,
        currency: str = "CNY",
        destination_id: str = "d-1",
        **event: Any,
    ) -> InboundEvent:
        return self._asks(
            "withdrawal.requested",
            {
                "withdrawal_id": withdrawal_id or fresh("w"),
                "seller_id": seller,
                "amount": amount,
                "currency": currency,
                "destination_id": destination_id,
            },
            {"password": password},
            **event,
        )

    def _asks(
        self,
        type_: str,
        outside: dict[str, Any],
        secret: dict[str, Any],
        *,
        event_id: str | None = None,
        sealed: dict[str, Any] | str | None = None,
        **event: Any,
    ) -> InboundEvent:
        """Seal what stands outside and the secret; `sealed` changes the inside, or replaces the token."""
        event_id = event_id or fresh("e")
        inside = {"shop_id": self.shop, "event_id": event_id, **outside, **secret}
        token = sealed if isinstance(sealed, str) else seal(inside | (sealed or {}), self._public_jwk)
        data = {**outside, "sealed": token}
        return an_event(f"/shops/{self.shop}", type_, data, event_id=event_id, **event)
