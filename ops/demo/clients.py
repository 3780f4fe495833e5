"""
A shop and its sellers, as any AMQP client would be written: pika, an HMAC or Ed25519 key, and a JWE.

Nothing of Holdfast's own code is used here, only what the contract says about messages.
"""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
import pika
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jwe
from joserfc.jwk import OKPKey
from pika.exceptions import AMQPError

from ops.demo.errors import DemoFailed
from ops.demo.scenario import BankBehaviour, Order, Seller, Withdrawal

INBOUND = "holdfast.inbound"
SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

_PERSISTENT = 2
_READ_SECONDS = 0.2
_WAIT_SECONDS = 0.5

# Makes the value of `webhook-signature` for the signed content.
Sign = Callable[[bytes], str]


def sign_with_hmac(secret: bytes) -> Sign:
    return lambda content: "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()


def sign_with_ed25519(key: Ed25519PrivateKey) -> Sign:
    return lambda content: "v1a," + base64.b64encode(key.sign(content)).decode()


# --- what a shop says -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One AMQP message to Holdfast, not signed yet."""

    type: str
    message_id: str
    body: bytes
    content_type: str = SINGLE


def event(shop_id: str, event_id: str, type_: str, data: Mapping[str, object]) -> dict[str, object]:
    """Build a CloudEvent."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/shops/{shop_id}",
        "type": type_,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }


def order_paid(order: Order, *, event_id: str | None = None, amount: int | None = None) -> dict[str, object]:
    """Announce an order; another `amount` than its splits make is a mistake that the demo makes once."""
    data: dict[str, object] = {
        "order_id": order.order_id,
        "buyer_id": order.buyer_id,
        "amount": order.amount if amount is None else amount,
        "currency": order.currency,
        "paid_at": "2026-11-23T08:00:00Z",
        "bank_reference": order.bank_reference,
        "splits": [{"seller_id": split.seller_id, "amount": split.amount} for split in order.splits],
    }
    if order.protection_days is not None:
        data["protection_days"] = order.protection_days
    return event(order.shop_id, event_id or order.event_id, "order.paid", data)


def single(content: Mapping[str, object]) -> Message:
    return Message(str(content["type"]), str(content["id"]), json.dumps(content).encode())


def batch(contents: list[dict[str, object]]) -> Message:
    body = json.dumps(contents).encode()
    return Message(str(contents[0]["type"]), f"batch-{contents[0]['id']}", body, BATCH)


def seal(secrets: Mapping[str, object], jwk: Mapping[str, str]) -> str:
    """Seal a password or an account for Holdfast alone: a compact JWE to its X25519 key."""
    header = {"alg": "ECDH-ES", "enc": "A256GCM", "kid": jwk["kid"]}
    key = OKPKey.import_key({"kty": jwk["kty"], "crv": jwk["crv"], "x": jwk["x"]})
    plaintext = json.dumps(secrets).encode()
    return jwe.encrypt_compact(header, plaintext, key, algorithms=["ECDH-ES", "A256GCM"])


def seller_enrolled(seller: Seller, jwk: Mapping[str, str]) -> Message:
    event_id = f"enrol-{seller.seller_id}"
    named = {"seller_id": seller.seller_id, "destination_id": seller.destination_id}
    sealed = seal(
        {
            "shop_id": seller.shop_id,
            "event_id": event_id,
            **named,
            "password": seller.password,
            "destination": dict(seller.destination),
        },
        jwk,
    )
    return single(event(seller.shop_id, event_id, "seller.enrolled", {**named, "sealed": sealed}))


def withdrawal_requested(withdrawal: Withdrawal, jwk: Mapping[str, str]) -> Message:
    seller = withdrawal.seller
    event_id = f"ask-{withdrawal.withdrawal_id}"
    named: dict[str, object] = {
        "withdrawal_id": withdrawal.withdrawal_id,
        "seller_id": seller.seller_id,
        "amount": withdrawal.amount,
        "currency": withdrawal.currency,
        "destination_id": seller.destination_id,
    }
    sealed = seal(
        {"shop_id": seller.shop_id, "event_id": event_id, **named, "password": withdrawal.password}, jwk
    )
    return single(event(seller.shop_id, event_id, "withdrawal.requested", {**named, "sealed": sealed}))


class Publisher:
    """One connection that publishes signed messages, each persistent and confirmed by the broker."""

    def __init__(self, broker_url: str, sign: Sign) -> None:
        self._broker_url = broker_url
        self._sign = sign

    def __enter__(self) -> Self:
        self._connection: Any = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        self._channel: Any = self._connection.channel()
        self._channel.confirm_delivery()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._connection.is_open:
            self._connection.close()

    def send(self, message: Message) -> None:
        """Publish and wait for the confirm; pika raises if the broker refuses or can't route it."""
        timestamp = str(int(time.time()))
        content = f"{message.message_id}.{timestamp}.".encode() + message.body
        self._channel.basic_publish(
            exchange=INBOUND,
            routing_key=message.type,
            body=message.body,
            properties=pika.BasicProperties(
                content_type=message.content_type,
                delivery_mode=_PERSISTENT,
                message_id=message.message_id,
                headers={
                    "webhook-id": message.message_id,
                    "webhook-timestamp": timestamp,
                    "webhook-signature": self._sign(content),
                },
            ),
            mandatory=True,
        )


# --- what a shop hears ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One event from Holdfast whose signature was right."""

    id: str
    type: str
    data: Mapping[str, Any]


@dataclass(slots=True)
class Inbox:
    """
    All that a shop has heard, told apart by event id, since each is delivered at least once.

    Filled by one thread, read by others; whoever waits is woken by every delivery.
    """

    by_type: dict[str, dict[str, Event]] = field(default_factory=dict)
    deliveries: Counter[str] = field(default_factory=Counter)
    forged: int = 0
    failure: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, events: Iterable[Event]) -> None:
        with self.changed:
            for heard in events:
                self.by_type.setdefault(heard.type, {})[heard.id] = heard
                self.deliveries[heard.id] += 1
            self.changed.notify_all()

    def of(self, type_: str) -> list[Event]:
        with self.changed:
            return list(self.by_type.get(type_, {}).values())

    def count(self, type_: str) -> int:
        with self.changed:
            return len(self.by_type.get(type_, {}))

    def wait_for(self, arrived: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """
        Return when it has arrived.

        Raises:
            DemoFailed: it did not come in time, or the connection broke.
        """
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while not arrived():
                if self.failure is not None:
                    raise DemoFailed(f"reading events ended with {self.failure!r}")
                if time.monotonic() > deadline:
                    raise DemoFailed(f"after {timeout_s:.0f} s still waiting for {what}; {self._heard()}")
                # A condition's own lock is reentrant, so `arrived` may ask the methods above.
                self.changed.wait(_WAIT_SECONDS)

    def _heard(self) -> str:
        counts = ", ".join(f"{len(events):,} {type_}" for type_, events in self.by_type.items())
        refusals = {
            f"{type_} for {one.data['reason']}: {one.data['detail']}"
            for type_, events in self.by_type.items()
            if type_.endswith(".rejected")
            for one in events.values()
        }
        return "; ".join([f"heard were {counts or 'no events'}", *sorted(refusals)])


class EventReader(threading.Thread):
    """Reads one shop's event queue, believes only what Holdfast has signed, and acknowledges it."""

    def __init__(
        self, broker_url: str, shop_id: str, jwks: Iterable[Mapping[str, str]], inbox: Inbox
    ) -> None:
        super().__init__(name=f"events-{shop_id}", daemon=True)
        self._broker_url = broker_url
        self._queue = f"events.{shop_id}"
        self._keys = [Ed25519PublicKey.from_public_bytes(_raw(jwk["x"])) for jwk in jwks]
        self._inbox = inbox
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            self._read()
        except AMQPError as error:
            with self._inbox.changed:
                self._inbox.failure = error
                self._inbox.changed.notify_all()

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=5)

    def _read(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=200)
        for method, properties, body in channel.consume(self._queue, inactivity_timeout=_READ_SECONDS):
            if method is not None:
                self._take(properties, body)
                channel.basic_ack(method.delivery_tag)
            if self._stopping.is_set():
                break
        connection.close()

    def _take(self, properties: Any, body: bytes) -> None:  # noqa: ANN401 - pika is untyped
        if not self._is_authentic(properties.headers or {}, body):
            self._inbox.forged += 1
            return
        content = json.loads(body)
        events = content if properties.content_type == BATCH else [content]
        self._inbox.note(Event(one["id"], one["type"], one["data"]) for one in events)

    def _is_authentic(self, headers: Mapping[str, Any], body: bytes) -> bool:
        content = f"{headers.get('webhook-id')}.{headers.get('webhook-timestamp')}.".encode() + body
        for part in str(headers.get("webhook-signature", "")).split():
            scheme, _, signature = part.partition(",")
            for key in self._keys if scheme == "v1a" else ():
                try:
                    key.verify(base64.b64decode(signature), content)
                except (InvalidSignature, ValueError):
                    continue
                return True
        return False


def _raw(base64url: str) -> bytes:
    return base64.urlsafe_b64decode(base64url + "=" * (-len(base64url) % 4))


# --- what happens at the bank ---------------------------------------------------------------------


class BankClient:
    """Tells the simulated bank what buyers transfer and how it shall treat payouts."""

    def __init__(self, bank_url: str) -> None:
        self._client = httpx.Client(base_url=bank_url, timeout=20, trust_env=False)

    def credit(self, orders: Iterable[Order]) -> None:
        """Have buyers transfer the money of these orders."""
        lines = [
            {"bank_reference": order.bank_reference, "amount": order.amount, "currency": order.currency}
            for order in orders
        ]
        if lines:
            self._client.post("/credits", json=lines).raise_for_status()

    def behave(self, seller: Seller) -> None:
        """Have transfers to this seller end as the scenario wants it."""
        if seller.behaviour is not BankBehaviour.SETTLE:
            rule = {"behaviour": seller.behaviour.value, "destination": seller.destination_id}
            self._client.put("/behaviour", json=rule).raise_for_status()

    def journal(self) -> list[dict[str, Any]]:
        """Return everything that the bank did."""
        answer = self._client.get("/journal").raise_for_status().json()
        return [dict(entry) for entry in answer]

    def close(self) -> None:
        self._client.close()
