"""Orders to measure with, made and signed before the clock runs."""

import base64
import json
import random
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.rabbitmq.messages import Outgoing
from infra.rabbitmq.topology import INBOUND_EXCHANGE
from infra.security.signatures import sign_v1, sign_v1a
from schemas.envelope import BATCH_CONTENT_TYPE, SINGLE_CONTENT_TYPE

SHOP = "bench"
CURRENCY = "CNY"

Order = dict[str, object]


class ShopKeys:
    """The two kinds of key that a shop may sign with."""

    def __init__(self) -> None:
        self.hmac = secrets.token_bytes(32)
        self.ed25519 = Ed25519PrivateKey.generate()

    @property
    def hmac_text(self) -> str:
        return "whsec_" + base64.b64encode(self.hmac).decode()

    @property
    def ed25519_public_text(self) -> str:
        return base64.b64encode(self.ed25519.public_key().public_bytes_raw()).decode()


def seller_names(count: int) -> list[str]:
    return [f"s-{number}" for number in range(count)]


def make_orders(count: int, *, sellers: int) -> list[Order]:
    """Make orders of one seller each, the sellers drawn at random; the same ones for everybody."""
    draw = random.Random(20_261_123)  # noqa: S311 - repeatable on purpose
    paid_at = datetime.now(UTC).isoformat()
    run = secrets.token_hex(4)
    orders = []
    for number in range(count):
        amount = draw.randint(100, 1_000_000)
        orders.append(
            {
                "order_id": f"o-{run}-{number}",
                "buyer_id": f"b-{draw.randrange(100_000)}",
                "amount": amount,
                "currency": CURRENCY,
                "paid_at": paid_at,
                "bank_reference": f"RF{run}{number}",
                "splits": [{"seller_id": f"s-{draw.randrange(sellers)}", "amount": amount}],
            }
        )
    return orders


def single_events(orders: Sequence[Order], keys: ShopKeys) -> list[Outgoing]:
    """One message an order, HMAC."""
    messages = []
    for order in orders:
        event = _event(order)
        webhook_id, body = str(event["id"]), json.dumps(event).encode()
        headers = sign_v1(keys.hmac, webhook_id, int(time.time()), body)
        messages.append(_message(webhook_id, body, headers, SINGLE_CONTENT_TYPE))
    return messages


def batch_events(orders: Sequence[Order], keys: ShopKeys, size: int) -> list[Outgoing]:
    """One message for `size` orders, Ed25519."""
    messages = []
    for start in range(0, len(orders), size):
        webhook_id = secrets.token_hex(16)
        body = json.dumps([_event(order) for order in orders[start : start + size]]).encode()
        headers = sign_v1a(keys.ed25519, webhook_id, int(time.time()), body)
        messages.append(_message(webhook_id, body, headers, BATCH_CONTENT_TYPE))
    return messages


def _event(order: Order) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": f"e-{order['order_id']}",
        "source": f"/shops/{SHOP}",
        "type": "order.paid",
        "time": order["paid_at"],
        "datacontenttype": "application/json",
        "data": order,
    }


def _message(webhook_id: str, body: bytes, headers: dict[str, str], content_type: str) -> Outgoing:
    return Outgoing(
        exchange=INBOUND_EXCHANGE,
        routing_key="order.paid",
        body=body,
        content_type=content_type,
        headers=headers,
        message_id=webhook_id,
    )
