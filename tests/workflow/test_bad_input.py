"""Everything that is not right, sent to the real intake: nothing stops, and each ends where it belongs."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from workflow_support.outsider import (
    BATCH,
    SINGLE,
    Amqp,
    Ed25519Key,
    Message,
    Shop,
    fresh,
    order_data,
    signed,
)
from workflow_support.system import System

Spoil = Callable[[Shop], Message]
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def shop(system: System) -> Shop:
    return system.a_shop()


@pytest.fixture(autouse=True)
def _every_worker_lives_on(system: System, shop: Shop) -> Iterator[None]:
    """The same processes as before, and the next good order is held."""
    before = {name: process.pid for name, process in system.processes.items()}
    yield
    order = order_data()
    shop.says("order.paid", order)
    shop.hears("order.held", order_id=order["order_id"])
    assert all(process.is_running for process in system.processes.values())
    assert {name: process.pid for name, process in system.processes.items()} == before


def recorded(system: System, body: bytes) -> tuple[str, str]:
    """Wait until a message with this very body is recorded; return (kind, reason)."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(system.environment["HOLDFAST_DATABASE_URL"], autocommit=True) as connection:
        while True:
            row = connection.execute(
                "SELECT kind, reason FROM recorded_messages WHERE body = %s", (body,)
            ).fetchone()
            if row is not None:
                return row[0], row[1]
            assert time.monotonic() < deadline, "it was not recorded"
            time.sleep(0.02)


def an_order(shop: Shop, **attributes: Any) -> Message:
    return shop.message(shop.event("order.paid", order_data(), **attributes))


def raw(shop: Shop, body: bytes, *, content_type: str | None = SINGLE, key: str = "order.paid") -> Message:
    """Whatever bytes, truly signed by the shop."""
    return Message(body, key, signed(shop.key, fresh("e"), body), content_type)


def unique(text: str) -> bytes:
    return text.replace("?", fresh("x")).encode()


def with_headers(message: Message, **headers: object) -> Message:
    changed = message.headers | {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(message, headers={name: value for name, value in changed.items() if value is not None})


def re_signed(shop: Shop, *, at: int) -> Message:
    message = an_order(shop)
    return replace(message, headers=signed(shop.key, message.headers["webhook-id"], message.body, at=at))


def dramatiq_envelope(shop: Shop) -> Message:
    """What stock Dramatiq would run: an actor of ours, named by whoever can publish."""
    envelope = {
        "queue_name": "escrow.release",
        "actor_name": "release_hold",
        "args": [],
        "kwargs": {"hold_ids": [fresh("h")]},
        "options": {"retries": 0},
        "message_id": fresh("m"),
        "message_timestamp": 0,
    }
    return raw(shop, json.dumps(envelope).encode(), content_type="application/json")


QUARANTINED: dict[str, tuple[str, Spoil]] = {
    # Nobody proven.
    "no headers": ("bad_signature", lambda s: replace(an_order(s), headers={})),
    "no signature": ("bad_signature", lambda s: with_headers(an_order(s), webhook_signature=None)),
    "signature of a stranger": (
        "bad_signature",
        lambda s: replace(m := an_order(s), headers=signed(Ed25519Key(), m.headers["webhook-id"], m.body)),
    ),
    "signature of other bytes": ("bad_signature", lambda s: replace(m := an_order(s), body=m.body + b" ")),
    "signature of another id": ("bad_signature", lambda s: with_headers(an_order(s), webhook_id="e-other")),
    "signature that is a table": (
        "bad_signature",
        lambda s: with_headers(an_order(s), webhook_signature={"v1": "x"}),
    ),
    "signature of 1 MiB": (
        "bad_signature",
        lambda s: with_headers(an_order(s), webhook_signature="v1," * 20_000),
    ),
    "time-stamp no number": ("bad_signature", lambda s: with_headers(an_order(s), webhook_timestamp="soon")),
    "time-stamp 31 days old": ("stale_timestamp", lambda s: re_signed(s, at=int(time.time()) - 31 * 86_400)),
    "time-stamp 10 minutes ahead": ("stale_timestamp", lambda s: re_signed(s, at=int(time.time()) + 600)),
    "unknown shop": ("unknown_sender", lambda s: an_order(s, source="/shops/nobody")),
    "a bank's event from a shop": (
        "unknown_sender",
        lambda s: s.message(s.event("bank.credited", {"statement_line": fresh("l")})),
    ),
    "an order from a bank": ("unknown_sender", lambda s: an_order(s, source="/banks/sim")),
    # No valid message.
    "nothing": ("not_json", lambda s: raw(s, b"")),
    "not JSON": ("not_json", lambda s: raw(s, unique("order ? please"))),
    "half a JSON": ("not_json", lambda s: raw(s, unique('{"specversion": "1.0", "id": "?"'))),
    "NaN": ("not_json", lambda s: raw(s, an_order(s).body.replace(b"10000", b"NaN"))),
    "not UTF-8": ("not_utf8", lambda s: raw(s, unique('{"id": "?') + b"\xff\xfe" + b'"}')),
    "a string": ("bad_envelope", lambda s: raw(s, unique('"?"'))),
    "an array as one event": ("bad_envelope", lambda s: raw(s, b"[" + an_order(s).body + b"]")),
    "deep nesting": ("not_json", lambda s: raw(s, b"[" * 30_000 + b"]" * 30_000)),
    "2 MiB": ("body_too_large", lambda s: raw(s, b'"' + b"x" * 2 * 1024 * 1024 + b'"')),
    "an event over 64 KiB": ("event_too_large", lambda s: an_order(s, extension="x" * 65_536)),
    "no content type": ("wrong_form", lambda s: replace(an_order(s), content_type=None)),
    "content type of plain JSON": (
        "wrong_form",
        lambda s: replace(an_order(s), content_type="application/json"),
    ),
    "a Dramatiq envelope": ("wrong_form", dramatiq_envelope),
    "a Dramatiq envelope as an event": (
        "bad_envelope",
        lambda s: replace(dramatiq_envelope(s), content_type=SINGLE),
    ),
    "specversion 0.3": ("bad_envelope", lambda s: an_order(s, specversion="0.3")),
    "no id": ("bad_envelope", lambda s: raw(s, an_order(s).body.replace(b'"id"', b'"ib"', 1))),
    "an id with a control character": (
        "bad_envelope",
        lambda s: raw(
            s, json.dumps(s.event("order.paid", order_data(), event_id="e\n1" + fresh("e"))).encode()
        ),
    ),
    "an id of 65 characters": ("bad_envelope", lambda s: an_order(s, id="e" * 65)),
    "a source with a path": ("bad_envelope", lambda s: an_order(s, source=f"/shops/{s.id}/../other")),
    "a key twice in the envelope": (
        "bad_envelope",
        lambda s: raw(s, an_order(s).body.replace(b"{", b'{"source": "/shops/other", ', 1)),
    ),
    "an unknown type": (
        "unknown_type",
        lambda s: replace(s.message(s.event("order.shipped", {"x": fresh("x")})), routing_key="order.paid"),
    ),
    "routing key of another type": (
        "routing_key_mismatch",
        lambda s: replace(an_order(s), routing_key="withdrawal.requested"),
    ),
    "webhook-id of another event": (
        "webhook_id_mismatch",
        lambda s: replace(m := an_order(s), headers=signed(s.key, fresh("e"), m.body)),
    ),
    "routing key that leads nowhere": (
        "unrouted",
        lambda s: replace(an_order(s), routing_key="no.such.type"),
    ),
    # No valid batch.
    "an empty batch": ("wrong_form", lambda s: raw(s, b"[]", content_type=BATCH)),
    "257 events": (
        "batch_too_large",
        lambda s: s.message(*[s.event("order.paid", order_data()) for _ in range(257)], batch=True),
    ),
    "two types": (
        "mixed_batch",
        lambda s: s.message(s.event("order.paid", {}), s.event("seller.enrolled", {}), batch=True),
    ),
    "two sources": (
        "mixed_batch",
        lambda s: s.message(
            s.event("order.paid", {}), s.event("order.paid", {}, source="/shops/x"), batch=True
        ),
    ),
    # Authentic, but there is no id to reply to.
    "data without its order id": (
        "unreadable_id",
        lambda s: s.message(s.event("order.paid", {"x": fresh("x")})),
    ),
    "data that is a number": ("unreadable_id", lambda s: s.message(s.event("order.paid", int(time.time())))),
    "an order id that is a number": (
        "unreadable_id",
        lambda s: s.message(s.event("order.paid", order_data(order_id=5))),
    ),
}


@pytest.mark.parametrize("name", QUARANTINED)
def test_what_is_no_authentic_event_is_quarantined_whole_with_the_reason(
    system: System, shop: Shop, name: str
) -> None:
    reason, spoil = QUARANTINED[name]
    message = spoil(shop)
    heard = len(shop.received)
    shop.publish(message)
    assert recorded(system, message.body) == ("quarantine", reason)
    shop.listen()
    assert len(shop.received) == heard, "there is nobody proven to reply to"


def test_a_key_without_the_scope_signs_nothing_of_that_kind(system: System) -> None:
    shop = system.a_shop()
    narrow = Ed25519Key()
    system.holdfast("shop", "key", "add", shop.id, "--scope", "sellers", "--ed25519", narrow.public)
    shop.key = narrow
    message = an_order(shop)
    shop.publish(message)
    assert recorded(system, message.body) == ("quarantine", "wrong_scope")


def order_with(**changes: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        changed = order_data() | changes
        return {name: value for name, value in changed.items() if value is not ...}

    return make


def splits(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"seller_id": seller, "amount": amount} for seller, amount in parts]


REJECTED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "a float amount": ("amount", order_with(amount=10_000.0)),
    "a boolean amount": ("amount", order_with(amount=True)),
    "a text amount": ("amount", order_with(amount="10000")),
    "an amount of nothing": ("amount", order_with(amount=0)),
    "a negative amount": ("amount", order_with(amount=-1)),
    "an amount beyond 10^15": ("amount", order_with(amount=10**15 + 1)),
    "an amount of 300 digits": ("amount", order_with(amount=10**300)),
    "no amount": ("amount", order_with(amount=...)),
    "an unknown currency": ("currency", order_with(currency="ABC")),
    "a currency in small letters": ("currency", order_with(currency="cny")),
    "splits that do not add up": ("splits", order_with(splits=splits(("s-1", 9_999)))),
    "a seller twice": ("splits", order_with(splits=splits(("s-1", 5_000), ("s-1", 5_000)))),
    "no splits": ("splits", order_with(splits=[])),
    "65 splits": ("splits", order_with(amount=65, splits=splits(*[(f"s-{n}", 1) for n in range(65)]))),
    "a split of a float": ("splits", order_with(splits=splits(("s-1", 10_000.0)))),
    "2 days": ("protection_days", order_with(protection_days=2)),
    "8 days": ("protection_days", order_with(protection_days=8)),
    "3.0 days": ("protection_days", order_with(protection_days=3.0)),
    "true days": ("protection_days", order_with(protection_days=True)),
    "null days": ("protection_days", order_with(protection_days=None)),
    "a naive time": ("paid_at", order_with(paid_at="2026-11-23T08:00:00")),
    "a time as a number": ("paid_at", order_with(paid_at=1_795_420_800)),
    "the 30th of February": ("paid_at", order_with(paid_at="2026-02-30T08:00:00Z")),
    "a control character": ("buyer_id", order_with(buyer_id="b\u0000")),
    "an empty id": ("buyer_id", order_with(buyer_id="")),
    "an id of 65 characters": ("buyer_id", order_with(buyer_id="b" * 65)),
    "an id beyond ASCII": ("buyer_id", order_with(buyer_id="müller")),
    "a lone surrogate": ("buyer_id", order_with(buyer_id="\ud800")),
    "SQL": ("bank_reference", order_with(bank_reference="x'; DROP TABLE postings; --")),
    "a reference of 36 characters": ("bank_reference", order_with(bank_reference="R" * 36)),
    "an extra field": ("discount", order_with(discount=1)),
    "nesting in a field": ("buyer_id", order_with(buyer_id=[[[[[]]]]])),
}


@pytest.mark.parametrize("name", REJECTED)
def test_authentic_data_that_breaks_the_schema_is_rejected_with_the_field(shop: Shop, name: str) -> None:
    where, make = REJECTED[name]
    data = make()
    event = shop.event("order.paid", data)
    # ensure_ascii, so that a lone surrogate can be spelt at all.
    body = json.dumps(event).encode()
    shop.publish(Message(body, "order.paid", signed(shop.key, event["id"], body)))
    told = shop.hears("order.rejected", order_id=data["order_id"], event_id=event["id"])
    assert told.data["reason"] == "invalid_data"
    assert where in told.data["detail"]


def test_a_key_twice_within_data_is_rejected(shop: Shop) -> None:
    order = order_data()
    event = shop.event("order.paid", order)
    body = json.dumps(event).replace('"buyer_id": "b-1"', '"buyer_id": "b-1", "buyer_id": "b-2"').encode()
    shop.publish(Message(body, "order.paid", signed(shop.key, event["id"], body)))
    told = shop.hears("order.rejected", order_id=order["order_id"], reason="invalid_data")
    assert "buyer_id" in told.data["detail"]


SELLER_EVENTS = {
    "seller.enrolled": ("seller.rejected", {"seller_id": "s-9", "destination_id": "d-1"}),
    "seller.password_changed": ("seller.rejected", {"seller_id": "s-9"}),
    "withdrawal.requested": (
        "withdrawal.rejected",
        {"withdrawal_id": "w-9", "seller_id": "s-9", "amount": 1, "currency": "CNY", "destination_id": "d-1"},
    ),
}


@pytest.mark.parametrize("type_", SELLER_EVENTS)
@pytest.mark.parametrize("sealed", [..., 5, "", "not a token", "a.b.c.d.e", "x" * 20_000])
def test_a_seal_that_can_not_be_opened_is_answered(shop: Shop, type_: str, sealed: object) -> None:
    rejection, data = SELLER_EVENTS[type_]
    event_id = shop.says(type_, data if sealed is ... else {**data, "sealed": sealed})
    told = shop.hears(rejection, event_id=event_id)
    # Of a request that is valid but for its seal, the seller is looked for first.
    assert told.data["reason"] in {"invalid_data", "unknown_seller"}


def test_a_banks_event_with_bad_data_is_quarantined_since_banks_get_no_reply(system: System) -> None:
    bank = system.bank_key
    event = {
        "specversion": "1.0",
        "id": fresh("e"),
        "source": "/banks/sim",
        "type": "bank.credited",
        "data": {"statement_line": fresh("l"), "amount": "1"},
    }
    body = json.dumps(event).encode()
    outside = Amqp(system.broker_url)
    outside.publish(Message(body, "bank.credited", signed(bank, str(event["id"]), body)))
    outside.close()
    assert recorded(system, body) == ("quarantine", "unreadable_id")


@pytest.mark.parametrize("queue", ["escrow.release", "escrow.hold", "payout.bank", "payout.password"])
def test_a_forged_command_can_do_nothing_and_ends_as_a_dead_letter(system: System, queue: str) -> None:
    """A stranger with a broker login, writing straight into a queue of ours."""
    body = json.dumps({"nonsense": fresh("x"), "hold_ids": [base64.b64encode(b"x").decode()]}).encode()
    outside = Amqp(system.broker_url)
    outside.publish(Message(body, queue, {}, "application/json", {"type": "release_hold"}), exchange="")
    outside.close()
    assert recorded(system, body)[0] == "dead_letter"


@pytest.mark.parametrize("queue", ["payment.intake", "payout.withdrawal"])
def test_a_message_written_past_the_exchange_is_judged_like_any_other(system: System, queue: str) -> None:
    body = unique('{"?": 1}')
    outside = Amqp(system.broker_url)
    outside.publish(Message(body, queue, {}, SINGLE), exchange="")
    outside.close()
    assert recorded(system, body)[0] == "quarantine"
