"""
Does a flood of forgeries slow an honest shop by more than its own cost?

    python bench/forgeries.py [--orders 2000] [--forgeries 4000]

The verification unit judges an honest shop's orders alone, then among forgeries of one kind after the other:
invented shops, each named once, and bad signatures under the honest shop's own name. Everything is the
real thing (key store on PostgreSQL, quarantine confirmed by RabbitMQ). Printed for each kind: what an order
and a forgery cost alone and how long both took mixed, as a ratio to the sum of both alone. 1.0 is a flood
that costs exactly itself. The shortest of several runs counts: what else a machine does only adds.
Queries for keys are counted: they must not grow with the forgeries.
"""

import argparse
import base64
import json
import random
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers import running_servers
from sqlalchemy import event, text

from infra.observability.logs import configure_logs
from infra.postgres.engine import create_database_engine
from infra.postgres.key_store import KeyStore, add_sender_key
from infra.postgres.migrate import migrate
from infra.rabbitmq.ingress import Ingress
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.topology import PAYMENT_INTAKE, apply
from infra.security.encryption import Vault
from infra.security.signatures import Scheme, sign_v1a
from infra.settings import load_settings

BATCH = 256
REPEATS = 5
MOST = 1.25


def order_from(shop: str, key: Ed25519PrivateKey) -> Delivery:
    """Make one signed order as a worker gets it."""
    event_id = secrets.token_hex(8)
    order = {
        "order_id": f"o-{event_id}",
        "buyer_id": "b-1",
        "amount": 1_000,
        "currency": "CNY",
        "paid_at": datetime.now(UTC).isoformat(),
        "bank_reference": f"RF{event_id}",
        "splits": [{"seller_id": "s-1", "amount": 1_000}],
    }
    body = json.dumps(
        {
            "specversion": "1.0",
            "id": event_id,
            "source": f"/shops/{shop}",
            "type": "order.paid",
            "time": datetime.now(UTC).isoformat(),
            "datacontenttype": "application/json",
            "data": order,
        }
    ).encode()
    return Delivery(
        queue_name=PAYMENT_INTAKE,
        exchange="holdfast.inbound",
        routing_key="order.paid",
        body=body,
        content_type="application/cloudevents+json",
        headers=dict(sign_v1a(key, event_id, int(time.time()), body)),
    )


def seconds(ingress: Ingress, deliveries: Sequence[Delivery], *, honest: int) -> float:
    """Judge all of them in batches, as the consumer does; return how long it took."""
    began = time.perf_counter()
    admitted = sum(
        len(ingress.admit(deliveries[start : start + BATCH])) for start in range(0, len(deliveries), BATCH)
    )
    took = time.perf_counter() - began
    if admitted != honest:
        raise SystemExit(f"{admitted} of {honest} honest orders were admitted")
    return took


def main(arguments: Sequence[str]) -> int:
    """Measure and print; exit 1 if a flood costs more than itself, beyond what measuring varies by."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--orders", type=int, default=2_000)
    parser.add_argument("--forgeries", type=int, default=4_000)
    chosen = parser.parse_args(arguments)
    with ExitStack() as leaving:
        servers = leaving.enter_context(running_servers())
        broker_url = leaving.enter_context(servers.vhost())
        database_url = leaving.enter_context(servers.database())
        configure_logs(process="bench", sample_lines=100)  # as a worker: a flood writes no flood of lines
        migrate(database_url)
        apply(broker_url, 1)
        settings = load_settings(
            broker_url=broker_url,
            database_url=database_url,
            encryption_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        )
        engine = create_database_engine(settings, application_name="bench")
        leaving.callback(engine.dispose)
        vault = Vault(settings.encryption_key.get_secret_value())
        key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO shops (shop_id, protection_days, funding, fee_bps)"
                     " VALUES ('honest', 3, 'confirmed', 0)")
            )  # fmt: skip
            add_sender_key(
                connection,
                vault,
                kind="shop",
                sender_id="honest",
                scheme=Scheme.ED25519,
                material=key.public_key().public_bytes_raw(),
                scopes=("orders",),
            )
        queries = 0

        def count(*_: object) -> None:
            nonlocal queries
            queries += 1

        event.listen(engine, "before_cursor_execute", count)
        publisher = Publisher(broker_url, name="bench")
        leaving.callback(publisher.close)
        keys = KeyStore(engine, vault, cache_seconds=settings.key_cache_seconds)
        ingress = Ingress(
            keys,
            publisher,
            max_age_seconds=settings.signature_max_age_seconds,
            max_ahead_seconds=settings.signature_max_ahead_seconds,
            publish_timeout_seconds=60,
        )
        honest = [order_from("honest", key) for _ in range(chosen.orders)]
        kinds = {
            "invented shops": [
                order_from(f"invented-{secrets.token_hex(6)}", stranger) for _ in range(chosen.forgeries)
            ],
            "bad signatures": [order_from("honest", stranger) for _ in range(chosen.forgeries)],
        }
        seconds(ingress, honest, honest=len(honest))  # warms up
        print("kind             µs an order   µs a forgery   mixed / (orders + forgeries)   key queries/s")
        worst = 0.0
        for kind, forged in kinds.items():
            mixed = [*honest, *forged]
            random.Random(20_261_125).shuffle(mixed)  # noqa: S311 - repeatable on purpose
            alone, flood, both, asked = [], [], [], []
            for _ in range(REPEATS):
                alone.append(seconds(ingress, honest, honest=len(honest)))
                flood.append(seconds(ingress, forged, honest=0))
                before = queries
                both.append(seconds(ingress, mixed, honest=len(honest)))
                asked.append((queries - before) / both[-1])
            ratio = min(both) / (min(alone) + min(flood))
            worst = max(worst, ratio)
            print(
                f"{kind:<16} {min(alone) / len(honest) * 1e6:11.0f}"
                f"   {min(flood) / len(forged) * 1e6:12.0f}   {ratio:28.2f}   {max(asked):13.1f}"
            )
    if worst > MOST:
        print(f"a flood costs more than itself: {worst:.2f}, more than {MOST}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
