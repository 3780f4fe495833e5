"""What shops, sellers and buyers do meanwhile, over plain AMQP and HTTP, each line of which may break."""

import contextlib
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import amqp
import httpx
from workflow_support.outsider import (
    BATCH,
    PASSWORD,
    SINGLE,
    Amqp,
    Ed25519Key,
    Message,
    Received,
    Shop,
    fresh,
    order_data,
    signed,
)

from chaos.accounting import Fate, Said

SELLERS = 12
_ATTEMPT_SECONDS = 5
_PAUSE_SECONDS = 0.2
_GIVES_UP = 0.05
_REMEMBERED = 400
_BATCH = (2, 20)
_CREDITS_AT_ONCE = 200

_APPLIED = frozenset({Fate.APPLIED})
_REJECTED = frozenset({Fate.REJECTED})
_QUARANTINED = frozenset({Fate.QUARANTINED})
_JUDGED = _APPLIED | _REJECTED

# How often what is said, of a hundred.
_WEIGHTS = {
    "order": 34,
    "batch": 22,
    "repeat": 12,
    "conflict": 8,
    "withdrawal": 14,
    "forgery": 4,
    "torn": 2,
    "invalid": 4,
}

# A line that breaks looks like any of these to py-amqp; a nack is the broker's own word for not now.
_BROKEN = (OSError, ValueError, amqp.exceptions.AMQPError, amqp.exceptions.MessageNacked)


@dataclass(slots=True)
class _Order:
    data: dict[str, Any]
    days: int
    said_at: datetime


@dataclass(slots=True)
class Diary:
    """All that a shop has said and heard; the only witness besides Holdfast's own books."""

    said: dict[str, Said] = field(default_factory=dict)
    orders: dict[str, _Order] = field(default_factory=dict)
    heard: dict[str, Received] = field(default_factory=dict)
    unsigned: int = 0


class Speaker:
    """One shop's side: a thread that speaks, a thread that listens, and a seller's platform beside it."""

    def __init__(self, shop: Shop, broker_url: str, draw: random.Random, *, default_days: int) -> None:
        self.shop = shop
        self.diary = Diary()
        self.to_credit: deque[dict[str, Any]] = deque()
        self._url = broker_url
        self._draw = draw
        self._default_days = default_days
        self._line: Amqp | None = None
        self._sent: deque[tuple[Message, list[str]]] = deque(maxlen=_REMEMBERED)
        self._acts: dict[str, Callable[[], None]] = {
            "order": self._say_order,
            "batch": self._say_batch,
            "repeat": self._say_again,
            "conflict": self._contradict,
            "withdrawal": self._withdraw,
            "forgery": self._forge,
            "torn": self._tear,
            "invalid": self._say_nonsense,
        }

    @property
    def sellers(self) -> list[str]:
        return [f"s-{number}" for number in range(SELLERS)]

    def enrol_sellers(self) -> None:
        for seller in self.sellers:
            destination = {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Ada Seller"}
            event_id, data = self.shop.seals(
                {"seller_id": seller, "destination_id": f"d-{seller}"},
                password=PASSWORD,
                destination=destination,
            )
            self._say(self.shop.event("seller.enrolled", data, event_id=event_id), may_become=_APPLIED)

    def speak(self, rate: float, stopping: threading.Event) -> None:
        """Say something so many times a second until told to stop."""
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        due = time.monotonic()
        while not stopping.is_set():
            [name] = self._draw.choices(names, weights)
            self._acts[name]()
            # An outage is not made up for: the rate is an upper bound.
            due = max(due + self._draw.expovariate(rate), time.monotonic() - 1)
            stopping.wait(max(0.0, due - time.monotonic()))
        self._hang_up()

    def listen(self, stopping: threading.Event) -> None:
        """Read the shop's queue until told to stop, acknowledging what is noted."""
        while not stopping.is_set():
            with contextlib.suppress(*_BROKEN):
                line = Amqp(self._url)
                try:
                    line.channel.basic_qos(0, 100, a_global=False)
                    line.channel.basic_consume(f"events.{self.shop.id}", callback=self._note)
                    while not stopping.is_set():
                        with contextlib.suppress(TimeoutError):
                            line.channel.connection.drain_events(timeout=0.5)
                finally:
                    with contextlib.suppress(*_BROKEN):
                        line.close()
            stopping.wait(_PAUSE_SECONDS)

    def _note(self, message: amqp.Message) -> None:
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        if not self.shop.believes(message.headers, body):
            self.diary.unsigned += 1
        told = json.loads(body)
        for event in told if message.properties["content_type"] == BATCH else [told]:
            self.diary.heard[event["id"]] = Received(event["id"], event["type"], event["data"])
        message.channel.basic_ack(message.delivery_tag)

    # What is said.

    def _an_order(self) -> dict[str, Any]:
        paid_to = self._draw.sample(self.sellers, self._draw.choice([1, 1, 1, 2, 3]))
        order = order_data(splits={seller: self._draw.randrange(1_000, 5_000) for seller in paid_to})
        days = self._default_days
        if self._draw.random() < 0.3:
            days = order["protection_days"] = self._draw.randint(3, 7)
        self.diary.orders[order["order_id"]] = _Order(order, days, datetime.now(UTC))
        return order

    def _say_order(self) -> None:
        order = self._an_order()
        self._say(self.shop.event("order.paid", order), may_become=_APPLIED, credit=[order])

    def _say_batch(self) -> None:
        orders = [self._an_order() for _ in range(self._draw.randint(*_BATCH))]
        events = [self.shop.event("order.paid", order) for order in orders]
        self._say(*events, may_become=_APPLIED, batch=True, credit=orders)

    def _say_again(self) -> None:
        if self._sent:
            message, event_ids = self._draw.choice(self._sent)
            self._transmit(message, event_ids)

    def _contradict(self) -> None:
        held = [event for event in list(self.diary.heard.values())[-50:] if event.type == "order.held"]
        if not held:
            return
        order = self.diary.orders[self._draw.choice(held).data["order_id"]].data
        other = {**order, "buyer_id": "somebody-else"}
        self._say(self.shop.event("order.paid", other), may_become=_REJECTED)

    def _withdraw(self) -> None:
        seller = self._draw.choice(self.sellers)
        mistyped = self._draw.random() < 0.08
        outside = {
            "withdrawal_id": fresh("w"),
            "seller_id": seller,
            "amount": self._draw.choice([self._draw.randrange(1, 3_000), 10**12]),
            "currency": "CNY",
            "destination_id": f"d-{seller}",
        }
        event_id, data = self.shop.seals(outside, password="not this one" if mistyped else PASSWORD)
        self._say(
            self.shop.event("withdrawal.requested", data, event_id=event_id),
            may_become=_REJECTED if mistyped or outside["amount"] == 10**12 else _JUDGED,
        )

    def _forge(self) -> None:
        event = self.shop.event("order.paid", order_data())
        body = json.dumps(event).encode()
        message = Message(body, "order.paid", signed(Ed25519Key(), event["id"], body), SINGLE)
        self._note_said([event["id"]], _QUARANTINED)
        self._transmit(message, [event["id"]])

    def _tear(self) -> None:
        event = self.shop.event("order.paid", order_data())
        body = json.dumps(event).encode()
        torn = body[: self._draw.randrange(1, len(body))]
        self._note_said([event["id"]], _QUARANTINED)
        message = Message(torn, "order.paid", signed(self.shop.key, event["id"], torn), SINGLE)
        self._transmit(message, [event["id"]])

    def _say_nonsense(self) -> None:
        order = order_data()
        order["amount"] += 1
        self._say(self.shop.event("order.paid", order), may_become=_REJECTED)

    # How it is said.

    def _say(
        self,
        *events: dict[str, Any],
        may_become: frozenset[Fate],
        batch: bool = False,
        credit: list[dict[str, Any]] | None = None,
    ) -> None:
        message = self.shop.message(*events, batch=batch)
        event_ids = [str(event["id"]) for event in events]
        self._note_said(event_ids, may_become)
        self._transmit(message, event_ids, gives_up=self._draw.random() < _GIVES_UP)
        self._sent.append((message, event_ids))
        # Buyers have paid, whether or not their shop got through to us.
        self.to_credit.extend(credit or ())

    def _note_said(self, event_ids: list[str], may_become: frozenset[Fate]) -> None:
        for event_id in event_ids:
            self.diary.said[event_id] = Said(event_id, may_become)

    def _transmit(self, message: Message, event_ids: list[str], *, gives_up: bool = False) -> None:
        """Publish until the broker has confirmed it, as a shop must; some give up after the first failure."""
        while True:
            for event_id in event_ids:
                self.diary.said[event_id].attempts += 1
            try:
                if self._line is None:
                    self._line = Amqp(self._url)
                self._line.channel.basic_publish(
                    amqp.Message(
                        message.body,
                        application_headers=message.headers,
                        delivery_mode=2,
                        content_type=message.content_type,
                    ),
                    exchange="holdfast.inbound",
                    routing_key=message.routing_key,
                    timeout=_ATTEMPT_SECONDS,
                )
            except _BROKEN:
                self._hang_up()
                if gives_up:
                    return
                time.sleep(_PAUSE_SECONDS)
            else:
                for event_id in event_ids:
                    self.diary.said[event_id].confirmed += 1
                return

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(*_BROKEN):
                line.close()


class Buyers:
    """Pay at the bank, each order once, a moment after it was announced."""

    def __init__(self, speakers: list[Speaker], bank_url: str) -> None:
        self._speakers = speakers
        self._url = f"{bank_url}/credits"

    def pay(self, stopping: threading.Event) -> None:
        while not stopping.wait(_PAUSE_SECONDS):
            self.pay_what_is_due()
        self.pay_what_is_due()

    def pay_what_is_due(self) -> None:
        for speaker in self._speakers:
            while speaker.to_credit:
                orders = [
                    speaker.to_credit.popleft() for _ in range(min(_CREDITS_AT_ONCE, len(speaker.to_credit)))
                ]
                self._credit([{n: o[n] for n in ("bank_reference", "amount", "currency")} for o in orders])

    def _credit(self, lines: list[dict[str, Any]]) -> None:
        # The same key each time: a bank that was killed in the middle makes these credits once.
        headers = {"Idempotency-Key": fresh("credits")}
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(self._url, json=lines, headers=headers, timeout=10).raise_for_status()
                return
            time.sleep(_PAUSE_SECONDS)
