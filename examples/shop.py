r"""
A shop and its sellers' platform in one file: signs, seals, publishes, reads and checks the answers.

Needs pika, cryptography and joserfc, and nothing of Holdfast's own code; another language does the same
with its own three libraries. What the messages mean is in docs/contract.md. After `make up`:

    . .local/env
    holdfast keys public --json > holdfast-keys.json
    holdfast shop add acme
    holdfast shop key add acme --scope orders --scope sellers \
        --ed25519 "$(python examples/shop.py keygen acme.key)"
    python examples/shop.py pay acme o-1
    python examples/shop.py enrol acme s-1
    python examples/shop.py withdraw acme s-1 w-1 1000
    python examples/shop.py listen acme
"""
# ruff: noqa: INP001 - a script on its own, no package

import argparse
import base64
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pika
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jwe
from joserfc.jwk import OKPKey
from pika.adapters.blocking_connection import BlockingChannel

ANSWER_SECONDS = 30


def keygen(path: Path) -> str:
    """Write a new private key (the raw 32 bytes in base64) and return the public one."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(base64.b64encode(key.private_bytes_raw()).decode() + "\n")
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def order_paid(order_id: str) -> dict[str, object]:
    """A buyer has paid 12.50 EUR, of which two sellers get their part; amounts are cents."""
    return {
        "order_id": order_id,
        "buyer_id": "b-7",
        "amount": 1250,
        "currency": "EUR",
        "paid_at": datetime.now(UTC).isoformat(),
        "bank_reference": f"ACME {order_id}",  # what the buyer's transfer will carry
        "splits": [{"seller_id": "s-1", "amount": 1000}, {"seller_id": "s-2", "amount": 250}],
    }


def seal(jwk: dict[str, str], inside: dict[str, object]) -> str:
    """Encrypt to Holdfast's key (X25519); only Holdfast can read it."""
    return jwe.encrypt_compact(
        {"alg": "ECDH-ES", "enc": "A256GCM", "kid": jwk["kid"]},
        json.dumps(inside).encode(),
        OKPKey.import_key({name: jwk[name] for name in ("kty", "crv", "x")}),
        algorithms=["ECDH-ES", "A256GCM"],
    )


def seller_enrolled(
    shop: str, event_id: str, jwk: dict[str, str], seller: str, password: str
) -> dict[str, object]:
    """A seller chooses a withdrawal password and an account; both travel sealed, for this event only."""
    outside = {"seller_id": seller, "destination_id": "d-1"}
    destination = {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Seller One"}
    inside = {"shop_id": shop, "event_id": event_id, "password": password, "destination": destination}
    return {**outside, "sealed": seal(jwk, {**outside, **inside})}


def withdrawal_requested(
    shop: str, event_id: str, jwk: dict[str, str], wanted: dict[str, object], password: str
) -> dict[str, object]:
    """The seller takes money out; the whole request is sealed again, beside the password."""
    outside = {**wanted, "currency": "EUR", "destination_id": "d-1"}
    inside = {"shop_id": shop, "event_id": event_id, "password": password}
    return {**outside, "sealed": seal(jwk, {**outside, **inside})}


def envelope(shop: str, event_id: str, type_: str, data: dict[str, object]) -> dict[str, object]:
    """Every event is a CloudEvent; its id makes a repetition harmless."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/shops/{shop}",
        "type": type_,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }


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
    properties = pika.BasicProperties(
        content_type="application/cloudevents+json", delivery_mode=2, headers=headers
    )
    channel.basic_publish("holdfast.inbound", event["type"], body, properties, mandatory=True)


def is_signed(headers: dict[str, str], body: bytes, jwk: dict[str, str]) -> bool:
    """Whether Holdfast's own key has signed this message."""
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))
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


def events_of(
    channel: BlockingChannel, shop: str, jwks: list[dict[str, str]], patience: float | None
) -> Iterator[dict[str, object]]:
    """
    Read the shop's events; ends after `patience` seconds without one.

    A real shop keeps each event, by its id, before it acknowledges it: every event comes at least once.
    """
    queue = f"events.{shop}"
    for method, properties, body in channel.consume(queue, inactivity_timeout=patience):
        if method is None:
            return
        if not any(is_signed(properties.headers, body, jwk) for jwk in jwks if jwk["use"] == "sig"):
            raise SystemExit(f"a message in {queue} is not signed by Holdfast")
        content = json.loads(body)
        yield from content if isinstance(content, list) else [content]  # one event, or a batch
        channel.basic_ack(method.delivery_tag)


def broker_url() -> str:
    """Return the broker's URL with the shop's own user, or that of `. .local/env` for any shop."""
    return os.environ.get("SHOP_BROKER_URL") or os.environ["HOLDFAST_BROKER_URL"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A shop that has never seen Holdfast's code.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("keygen", help="write a new private key, print the public one")
    made.add_argument("key_file", type=Path)
    for command, names in {
        "pay": ("order",),
        "enrol": ("seller",),
        "withdraw": ("seller", "withdrawal", "amount"),
        "listen": (),
    }.items():
        added = commands.add_parser(command)
        for name in ("shop", *names):
            added.add_argument(name, type=int if name == "amount" else str)
        added.add_argument("--key", type=Path, help="default: SHOP.key")
        added.add_argument("--holdfast-keys", type=Path, default=Path("holdfast-keys.json"))
        added.add_argument("--password", default="correct horse battery", help="of an imaginary seller")
    return parser.parse_args()


def asked_for(given: argparse.Namespace, event_id: str, sealing: dict[str, str]) -> dict[str, object]:
    """Make the event that the command line asks for."""
    shop = given.shop
    match given.command:
        case "pay":
            return envelope(shop, event_id, "order.paid", order_paid(given.order))
        case "enrol":
            data = seller_enrolled(shop, event_id, sealing, given.seller, given.password)
            return envelope(shop, event_id, "seller.enrolled", data)
        case _:
            wanted = {
                "withdrawal_id": given.withdrawal,
                "seller_id": given.seller,
                "amount": given.amount,  # cents
            }
            data = withdrawal_requested(shop, event_id, sealing, wanted, given.password)
            return envelope(shop, event_id, "withdrawal.requested", data)


def main() -> int:
    """Run one command; 0 when the answer came and accepts."""
    given = arguments()
    if given.command == "keygen":
        sys.stdout.write(keygen(given.key_file) + "\n")
        return 0
    jwks = json.loads(given.holdfast_keys.read_text())["keys"]
    connection = pika.BlockingConnection(pika.URLParameters(broker_url()))
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        if given.command == "listen":
            for event in events_of(channel, given.shop, jwks, None):
                sys.stdout.write(json.dumps(event) + "\n")
                sys.stdout.flush()
        event_id = str(uuid.uuid4())
        sealing = next(jwk for jwk in jwks if jwk["use"] == "enc")
        key_file = given.key or Path(f"{given.shop}.key")
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(key_file.read_text()))
        publish(channel, key, asked_for(given, event_id, sealing))
        for event in events_of(channel, given.shop, jwks, ANSWER_SECONDS):
            if event["data"].get("event_id") == event_id:
                sys.stdout.write(json.dumps(event, indent=2) + "\n")
                return 1 if str(event["type"]).endswith(".rejected") else 0
    except KeyboardInterrupt:
        return 130
    finally:
        connection.close()
    sys.stderr.write("no answer: see `holdfast quarantine list` and `holdfast doctor`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
