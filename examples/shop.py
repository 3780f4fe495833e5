r"""
A shop in one file: signs events, publishes them, reads and checks the answers.

Needs pika, cryptography and joserfc, and nothing of Holdfast's own code; another language does the same
with its own three libraries. What the messages mean is in docs/contract.md. After `make up`:

    . .local/env
    holdfast keys public --json > holdfast-keys.json
    holdfast shop add acme
    holdfast shop key add acme --scope orders --scope sellers \
        --ed25519 "$(python examples/shop.py keygen acme.key)"
    python examples/shop.py pay acme acme.key holdfast-keys.json
    python examples/shop.py enrol acme acme.key holdfast-keys.json
"""
# ruff: noqa: INP001 - a script on its own, no package

import base64
import json
import os
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pika
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jwe
from joserfc.jwk import OKPKey
from pika.adapters.blocking_connection import BlockingChannel

USAGE = "usage: shop.py keygen KEY_FILE | pay SHOP KEY_FILE JWKS_FILE | enrol SHOP KEY_FILE JWKS_FILE"
SINGLE = "application/cloudevents+json"
ANSWER_SECONDS = 30


def keygen(path: Path) -> str:
    """Write a new private key (the raw 32 bytes in base64) and return the public one."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(base64.b64encode(key.private_bytes_raw()).decode() + "\n")
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def order_paid() -> dict[str, object]:
    """A buyer has paid 12.50 EUR, of which two sellers get their part; amounts are cents."""
    order_id = f"o-{uuid.uuid4().hex[:12]}"
    return {
        "order_id": order_id,
        "buyer_id": "b-7",
        "amount": 1250,
        "currency": "EUR",
        "paid_at": datetime.now(UTC).isoformat(),
        "bank_reference": order_id,  # what the buyer's transfer will carry
        "splits": [{"seller_id": "s-1", "amount": 1000}, {"seller_id": "s-2", "amount": 250}],
    }


def seller_enrolled(shop: str, event_id: str, jwk: dict[str, str]) -> dict[str, object]:
    """A seller chooses a withdrawal password and an account; both travel sealed, for this event only."""
    outside = {"seller_id": "s-1", "destination_id": "d-1"}
    inside = {
        **outside,
        "shop_id": shop,
        "event_id": event_id,
        "password": "correct horse battery",
        "destination": {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Seller One"},
    }
    sealed = jwe.encrypt_compact(
        {"alg": "ECDH-ES", "enc": "A256GCM", "kid": jwk["kid"]},
        json.dumps(inside).encode(),
        OKPKey.import_key({name: jwk[name] for name in ("kty", "crv", "x")}),
        algorithms=["ECDH-ES", "A256GCM"],
    )
    return {**outside, "sealed": sealed}


def publish(channel: BlockingChannel, key: Ed25519PrivateKey, event: dict[str, object]) -> None:
    """Sign and publish; returns when the broker has it on disk, raises when it does not take it."""
    body = json.dumps(event).encode()
    now = str(int(time.time()))
    signature = key.sign(f"{event['id']}.{now}.".encode() + body)
    headers = {
        "webhook-id": event["id"],
        "webhook-timestamp": now,
        "webhook-signature": "v1a," + base64.b64encode(signature).decode(),
    }
    properties = pika.BasicProperties(content_type=SINGLE, delivery_mode=2, headers=headers)
    channel.basic_publish("holdfast.inbound", event["type"], body, properties, mandatory=True)


def is_signed(headers: dict[str, str], body: bytes, jwk: dict[str, str]) -> bool:
    """Whether Holdfast's own key has signed this message."""
    key = Ed25519PublicKey.from_public_bytes(OKPKey.import_key(jwk).public_key.public_bytes_raw())
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    for part in headers["webhook-signature"].split():
        scheme, _, signature = part.partition(",")
        try:
            if scheme == "v1a":
                key.verify(base64.b64decode(signature), signed)
                return True
        except InvalidSignature:
            continue
    return False


def answer_to(
    channel: BlockingChannel, shop: str, event_id: str, jwk: dict[str, str]
) -> dict[str, object] | None:
    """
    Read the shop's events until the answer to one of ours.

    A real shop keeps each event, by its id, before it acknowledges it: every event comes at least once.
    """
    queue = f"events.{shop}"
    for method, properties, body in channel.consume(queue, inactivity_timeout=ANSWER_SECONDS):
        if method is None:
            return None
        if not is_signed(properties.headers, body, jwk):
            raise SystemExit(f"a message in {queue} is not signed by Holdfast")
        content = json.loads(body)
        channel.basic_ack(method.delivery_tag)
        for event in content if isinstance(content, list) else [content]:  # one event, or a batch
            if event["data"].get("event_id") == event_id:
                return event
    return None


def main(arguments: list[str]) -> int:
    """Run one command; 0 when the answer came and accepts."""
    match arguments:
        case ["keygen", key_file]:
            sys.stdout.write(keygen(Path(key_file)) + "\n")
            return 0
        case ["pay" | "enrol" as command, shop, key_file, jwks_file]:
            pass
        case _:
            sys.stderr.write(USAGE + "\n")
            return 2
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(Path(key_file).read_text()))
    jwks = {jwk["use"]: jwk for jwk in reversed(json.loads(Path(jwks_file).read_text())["keys"])}
    event_id = str(uuid.uuid4())
    data = order_paid() if command == "pay" else seller_enrolled(shop, event_id, jwks["enc"])
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/shops/{shop}",
        "type": "order.paid" if command == "pay" else "seller.enrolled",
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["HOLDFAST_BROKER_URL"]))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        publish(channel, key, event)
        answer = answer_to(channel, shop, event_id, jwks["sig"])
    finally:
        connection.close()
    if answer is None:
        sys.stderr.write("no answer: see `holdfast quarantine list` and `holdfast doctor`\n")
        return 1
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 1 if str(answer["type"]).endswith(".rejected") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
