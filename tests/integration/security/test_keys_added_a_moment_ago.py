"""A message that is refused for its signature is refused for good: by the keys there were when it came."""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine, create_engine, event, text

from infra.postgres.key_store import KeyStore, add_sender_key
from infra.rabbitmq import ingress as ingress_module
from infra.rabbitmq import topology
from infra.rabbitmq.ingress import Ingress
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.publisher import Publisher
from infra.security.encryption import Vault
from infra.security.signatures import Scheme, sign_v1a

VAULT = Vault(base64.b64encode(bytes(range(32))).decode())
LONG_SECONDS = 3_600.0


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    yield engine
    engine.dispose()


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


@pytest.fixture
def gate(engine: Engine, broker_url: str) -> Iterator[Gate]:
    topology.apply(broker_url, 1)
    publisher = Publisher(broker_url)
    ingress = Ingress(
        KeyStore(engine, VAULT, cache_seconds=LONG_SECONDS),
        publisher,
        max_age_seconds=3_600,
        max_ahead_seconds=300,
        publish_timeout_seconds=30,
    )
    gate = Gate(ingress, engine)

    def count(*_: object) -> None:
        gate.queries += 1

    event.listen(engine, "before_cursor_execute", count)
    yield gate
    event.remove(engine, "before_cursor_execute", count)
    publisher.close()


def order_from(shop: str, key: Ed25519PrivateKey) -> Delivery:
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
        headers=dict(sign_v1a(key, event_id, int(time.time()), body)),
    )


@pytest.mark.parametrize("known_before", ["no key", "another key", "the key without the scope"])
def test_a_key_is_good_from_the_moment_that_it_is_added(gate: Gate, known_before: str) -> None:
    shop, key = gate.a_shop(), Ed25519PrivateKey.generate()
    if known_before == "another key":
        gate.add_key(shop, Ed25519PrivateKey.generate())
    elif known_before == "the key without the scope":
        gate.add_key(shop, key, scope="sellers")
    assert gate.admits(order_from(shop, key)) == 0
    gate.add_key(shop, key)
    assert gate.admits(order_from(shop, key)) == 1


def test_a_batch_of_forgeries_is_one_question_and_no_signature_is_tried_twice(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    real = ingress_module.verify

    def counted(**asked: object) -> object:
        nonlocal tried
        tried += 1
        return real(**asked)  # type: ignore[arg-type]

    monkeypatch.setattr(ingress_module, "verify", counted)
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    shops = [gate.a_shop() for _ in range(5)]
    for shop in shops:
        gate.add_key(shop, key)
    honest = [order_from(shop, key) for shop in shops]
    assert gate.admits(*honest) == len(honest)
    forged = [order_from(shop, stranger) for shop in shops for _ in range(20)]
    asked, tried = gate.queries, 0
    assert gate.admits(*honest, *forged) == len(honest)
    assert gate.queries - asked == 1
    assert tried == len(honest) + len(forged)
