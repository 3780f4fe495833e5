"""
Shops and sellers' platforms as they are outside: nothing of Holdfast is imported here.

py-amqp to publish and read, `cryptography` and `hmac` to sign and verify, `joserfc` to seal; everything
else is what CONTRACT.md says.
"""

import base64
import hashlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import amqp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jwe
from joserfc.jwk import OKPKey

SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PATIENCE_SECONDS = 30.0
PASSWORD = "correct horse battery"

_run = secrets.token_hex(3)
_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    return f"{prefix}-{_run}-{next(_numbers)}"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def order_data(**changes: Any) -> dict[str, Any]:
    """`order.paid`; `splits` as {seller: amount} also sets the amount."""
    splits: dict[str, int] = changes.pop("splits", {"s-1": 10_000})
    data: dict[str, Any] = {
        "order_id": fresh("o"),
        "buyer_id": "b-1",
        "amount": sum(splits.values()),
        "currency": "CNY",
        "paid_at": now(),
        "bank_reference": fresh("REF"),
        "splits": [{"seller_id": seller, "amount": amount} for seller, amount in splits.items()],
    }
    return data | changes


class Key(Protocol):
    """What a sender signs with."""

    def sign(self, content: bytes) -> str: ...


class Ed25519Key:
    """Scheme v1a."""

    def __init__(self, private: Ed25519PrivateKey | None = None) -> None:
        self._private = private or Ed25519PrivateKey.generate()

    @property
    def public(self) -> str:
        return base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, content: bytes) -> str:
        return "v1a," + base64.b64encode(self._private.sign(content)).decode()


class HmacKey:
    """Scheme v1."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    @property
    def secret(self) -> str:
        return "whsec_" + base64.b64encode(self._secret).decode()

    def sign(self, content: bytes) -> str:
        return "v1," + base64.b64encode(hmac.digest(self._secret, content, hashlib.sha256)).decode()


@dataclass(slots=True)
class Message:
    """One AMQP message, every part of which a test can spoil before it goes out."""

    body: bytes
    routing_key: str
    headers: dict[str, Any]
    content_type: str | None = SINGLE
    properties: dict[str, Any] = field(default_factory=dict)


def signed(key: Key, message_id: str, body: bytes, *, at: int | None = None) -> dict[str, Any]:
    """Return the three headers of Standard Webhooks."""
    timestamp = int(time.time()) if at is None else at
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": key.sign(content),
    }


@dataclass(frozen=True, slots=True)
class Received:
    """One event of Holdfast's, its signature proven."""

    id: str
    type: str
    data: dict[str, Any]
    traceparent: str | None = None


class Amqp:
    """A connection by py-amqp, publishing with confirms."""

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url)
        self._connection = amqp.Connection(
            host=f"{parts.hostname}:{parts.port or 5672}",
            userid=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            virtual_host=unquote(parts.path[1:]) or "/",
            confirm_publish=True,
            connect_timeout=10,
        )
        self._connection.connect()
        self.channel = self._connection.channel()

    def publish(self, *messages: Message, exchange: str = "holdfast.inbound") -> None:
        for message in messages:
            properties = {"content_type": message.content_type} if message.content_type else {}
            self.channel.basic_publish(
                amqp.Message(
                    message.body,
                    application_headers=message.headers,
                    delivery_mode=2,
                    **properties,
                    **message.properties,
                ),
                exchange=exchange,
                routing_key=message.routing_key,
                timeout=PATIENCE_SECONDS,
            )

    def close(self) -> None:
        self._connection.close()


class Shop:
    """A shop: signs what it says, reads its own queue, and believes only what Holdfast has signed."""

    def __init__(
        self, broker_url: str, shop_id: str, key: Key, holdfast_keys: Sequence[Mapping[str, str]]
    ) -> None:
        self.id = shop_id
        self.key = key
        self._broker_url = broker_url
        self._verifying = [_public_key(jwk) for jwk in holdfast_keys if jwk["use"] == "sig"]
        [self._sealing_jwk] = [jwk for jwk in holdfast_keys if jwk["use"] == "enc"]
        self._amqp = Amqp(broker_url)
        self.received: list[Received] = []

    def close(self) -> None:
        self._amqp.close()

    def reconnect(self) -> None:
        self._amqp = Amqp(self._broker_url)

    # Speaking.

    def event(
        self, type_: str, data: object, *, event_id: str | None = None, **attributes: Any
    ) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "id": event_id or fresh("e"),
            "source": f"/shops/{self.id}",
            "type": type_,
            "time": now(),
            "datacontenttype": "application/json",
            "data": data,
        } | attributes

    def message(self, *events: dict[str, Any], batch: bool = False) -> Message:
        """Sign one event, or several of one type as a batch."""
        first = events[0]
        body = json.dumps(list(events) if batch else first, ensure_ascii=False).encode()
        message_id = fresh("batch") if batch else first["id"]
        return Message(body, first["type"], signed(self.key, message_id, body), BATCH if batch else SINGLE)

    def publish(self, *messages: Message) -> None:
        self._amqp.publish(*messages)

    def says(self, type_: str, data: object, **event: Any) -> str:
        """Publish one signed event; return its id."""
        made = self.event(type_, data, **event)
        self.publish(self.message(made))
        return str(made["id"])

    def seals(self, outside: Mapping[str, Any], **secret: Any) -> tuple[str, dict[str, Any]]:
        """Return an event id and data whose secret only Holdfast can read."""
        event_id = fresh("e")
        inside = {"shop_id": self.id, "event_id": event_id, **outside, **secret}
        header = {"alg": "ECDH-ES", "enc": "A256GCM", "kid": self._sealing_jwk["kid"]}
        key = OKPKey.import_key({name: self._sealing_jwk[name] for name in ("kty", "crv", "x")})
        token = jwe.encrypt_compact(
            header, json.dumps(inside).encode(), key, algorithms=["ECDH-ES", "A256GCM"]
        )
        return event_id, {**outside, "sealed": token}

    def enrols(self, seller: str, *, destination_id: str = "d-1", password: str = PASSWORD) -> str:
        event_id, data = self.seals(
            {"seller_id": seller, "destination_id": destination_id},
            password=password,
            destination={"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Ada Seller"},
        )
        return self.says("seller.enrolled", data, event_id=event_id)

    def withdraws(
        self, seller: str, amount: int, *, password: str = PASSWORD, destination_id: str = "d-1"
    ) -> str:
        """Ask for a withdrawal; return its id."""
        outside = {
            "withdrawal_id": fresh("w"),
            "seller_id": seller,
            "amount": amount,
            "currency": "CNY",
            "destination_id": destination_id,
        }
        event_id, data = self.seals(outside, password=password)
        self.says("withdrawal.requested", data, event_id=event_id)
        return str(outside["withdrawal_id"])

    # Listening.

    def hears(self, type_: str, *, patience: float = PATIENCE_SECONDS, **data: Any) -> Received:
        """Wait for an event whose data has these values; leave what else comes for later questions."""
        return self.hears_all(
            lambda event: event.type == type_ and _has(event.data, data), 1, patience=patience
        )[0]

    def hears_all(
        self, wanted: Callable[[Received], bool], count: int, *, patience: float = PATIENCE_SECONDS
    ) -> list[Received]:
        """Wait until so many different events of that kind have come."""
        deadline = time.monotonic() + patience
        while True:
            found = {event.id: event for event in self.received if wanted(event)}
            if len(found) >= count:
                return list(found.values())
            assert time.monotonic() < deadline, (
                f"{len(found)} of {count} came; last: {[(e.type, e.data) for e in self.received[-3:]]}"
            )
            if not self.listen():
                time.sleep(0.02)

    def hears_copies(self, count: int, type_: str, **data: Any) -> None:
        """Wait until such an event has come so often, repeats included."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (heard := self.has_heard(type_, **data)) < count:
            assert time.monotonic() < deadline, f"{heard} of {count} copies of {type_} came"
            time.sleep(0.02)

    def has_heard(self, type_: str, **data: Any) -> int:
        """Return how often such an event has come so far, repeats included."""
        while self.listen():
            pass
        return sum(event.type == type_ and _has(event.data, data) for event in self.received)

    def listen(self) -> bool:
        """Take one message from the shop's queue; False if there is none."""
        message = self._amqp.channel.basic_get(f"events.{self.id}", no_ack=True)
        if message is None:
            return False
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        headers = message.headers
        self._prove(headers, body)
        told = json.loads(body)
        events = told if message.properties["content_type"] == BATCH else [told]
        for event in events:
            assert (event["specversion"], event["source"]) == ("1.0", "/holdfast")
            assert message.delivery_info["routing_key"] == f"{self.id}.{event['type']}"
            self.received.append(
                Received(event["id"], event["type"], event["data"], event.get("traceparent"))
            )
        if message.properties["content_type"] == SINGLE:
            assert headers["webhook-id"] == told["id"]
        return True

    def believes(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Tell whether Holdfast has signed this."""
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        # While Holdfast's key is being changed, one of several that is right is enough.
        return any(
            _is_right(key, signature, content)
            for key in self._verifying
            for signature in headers["webhook-signature"].split(" ")
        )

    def _prove(self, headers: Mapping[str, str], body: bytes) -> None:
        assert self.believes(headers, body)
        assert abs(time.time() - int(headers["webhook-timestamp"])) < 60


def _is_right(key: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    scheme, _, encoded = signature.partition(",")
    assert scheme == "v1a"
    try:
        key.verify(base64.b64decode(encoded), content)
    except InvalidSignature:
        return False
    return True


def _public_key(jwk: Mapping[str, str]) -> Ed25519PublicKey:
    assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))


def _has(data: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(data.get(name) == value for name, value in wanted.items())
