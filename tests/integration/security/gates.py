"""A worker's verification unit on real services, and what a shop puts before it."""

import base64
import json
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine, text

from infra.postgres.key_store import add_sender_key
from infra.rabbitmq import topology
from infra.rabbitmq.ingress import Ingress
from infra.rabbitmq.messages import Delivery
from infra.security.encryption import Vault
from infra.security.signatures import Scheme, sign_v1a

VAULT = Vault(base64.b64encode(bytes(range(32))).decode())


@dataclass
class Gate:
    """A worker's verification unit, whose kept keys never grow too old by themselves."""

    ingress: Ingress
    engine: Engine
    queries: int = 0

    def admits(self, *deliveries: Delivery) -> int:
        return len(self.ingress.admit(deliveries))

    def a_shop(self) -> str:
        shop = f"shop-{secrets.token_hex(6)}"
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO shops (shop_id, protection_days, funding, fee_bps)"
                    " VALUES (:id, 3, 'confirmed', 0)"
                ),
                {"id": shop},
            )
        return shop

    def add_key(self, shop: str, key: Ed25519PrivateKey, scope: str = "orders") -> None:
        with self.engine.begin() as connection:
            add_sender_key(
                connection,
                VAULT,
                kind="shop",
                sender_id=shop,
                scheme=Scheme.ED25519,
                material=key.public_key().public_bytes_raw(),
                scopes=(scope,),
            )


def order_from(
    shop: str, key: Ed25519PrivateKey, *, signed_seconds_ago: int = 0, attempt: int = 0
) -> Delivery:
    """Return an order as it comes out of the intake queue."""
    event_id, now = secrets.token_hex(8), datetime.now(UTC).isoformat()
    order = {
        "order_id": f"o-{event_id}",
        "buyer_id": "b-1",
        "amount": 1_000,
        "currency": "CNY",
        "paid_at": now,
        "bank_reference": f"RF{event_id}",
        "splits": [{"seller_id": "s-1", "amount": 1_000}],
    }
    envelope = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/shops/{shop}",
        "type": "order.paid",
        "time": now,
        "datacontenttype": "application/json",
        "data": order,
    }
    body = json.dumps(envelope).encode()
    return Delivery(
        queue_name=topology.PAYMENT_INTAKE,
        exchange="holdfast.inbound",
        routing_key="order.paid",
        body=body,
        content_type="application/cloudevents+json",
        headers=dict(sign_v1a(key, event_id, int(time.time()) - signed_seconds_ago, body)),
        attempt=attempt,
    )
