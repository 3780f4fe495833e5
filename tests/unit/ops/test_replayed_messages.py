"""A recorded message goes back to where it came from, as it was."""

import base64
from typing import Any
from uuid import UUID

import pytest

from infra.rabbitmq.messages import delivery_from_wire
from ops.replay import NotReplayable, replayed_message
from ops.store.quarantine import Record

SIGNED: dict[str, Any] = {"webhook-id": "e-1", "webhook-timestamp": "1", "webhook-signature": "v1a,AAAA"}


def a_record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "record_id": UUID(int=1),
        "kind": "quarantine",
        "queue": "payment.intake",
        "exchange": "",
        "routing_key": "order.paid",
        "content_type": "application/cloudevents+json",
        "message_type": None,
        "headers": SIGNED,
        "body": b'{"raw": "\xff"}',
        "reason": "bad_signature",
        "state": "open",
    }
    return Record(**values | changes)


def test_a_quarantined_message_is_judged_anew_by_its_own_routing_key() -> None:
    message = replayed_message(a_record())
    assert (message.exchange, message.routing_key) == ("holdfast.inbound", "order.paid")
    assert message.body == b'{"raw": "\xff"}'
    assert message.content_type == "application/cloudevents+json"
    assert message.headers == SIGNED


def test_headers_that_the_broker_acts_upon_do_not_travel_again() -> None:
    hostile = {"CC": ["escrow.hold"], "BCC": ["x"], "x-death": [], "holdfast-attempt": 7, "other": 1}
    assert replayed_message(a_record(headers=SIGNED | hostile)).headers == SIGNED | {"other": 1}


def test_bytes_in_headers_are_bytes_again() -> None:
    raw = {"base64": base64.b64encode(b"\x00\xff").decode()}
    headers = {"webhook-signature": raw, "table": {"inner": [raw, 1]}, "odd": {"base64": "!"}}
    assert replayed_message(a_record(headers=headers)).headers == {
        "webhook-signature": b"\x00\xff",
        "table": {"inner": [b"\x00\xff", 1]},
        "odd": {"base64": "!"},
    }


def test_a_dead_letter_arrives_as_it_first_did() -> None:
    """Its routing key is judged again: were it the queue's name, it would only be quarantined."""
    record = a_record(
        kind="dead_letter", headers=SIGNED | {"holdfast-exchange": "holdfast.inbound", "holdfast-attempt": 8}
    )
    message = replayed_message(record)
    assert (message.exchange, message.routing_key) == ("holdfast.deliver", "payment.intake")
    arrived = delivery_from_wire(
        "payment.intake",
        message.exchange,
        message.routing_key,
        message.body,
        content_type=message.content_type,
        type_=message.type,
        headers=message.headers,
        message_id=None,
        redelivered=False,
    )
    assert (arrived.exchange, arrived.routing_key) == ("holdfast.inbound", "order.paid")
    assert arrived.attempt == 0


def test_a_command_goes_back_to_its_queue_with_its_name() -> None:
    record = a_record(
        kind="dead_letter",
        queue="escrow.hold",
        routing_key="escrow.hold",
        message_type="hold_funds",
        content_type="application/json",
        headers={"holdfast-exchange": "holdfast.deliver"},
    )
    message = replayed_message(record)
    assert (message.exchange, message.routing_key) == ("holdfast.deliver", "escrow.hold")
    assert message.type == "hold_funds"


def test_what_rabbitmq_itself_dead_lettered_is_traced_back_by_its_own_notes() -> None:
    deaths = [
        {"queue": "delay.rung.1", "exchange": "x", "routing-keys": ["y"]},
        {"queue": "payment.intake", "exchange": "holdfast.inbound", "routing-keys": ["order.paid"]},
    ]
    record = a_record(
        kind="dead_letter", routing_key="payment.intake.XQ", headers=SIGNED | {"x-death": deaths}
    )
    headers = replayed_message(record).headers
    assert headers["holdfast-exchange"] == "holdfast.inbound"
    assert headers["holdfast-routing-key"] == "order.paid"


def test_an_orphan_is_delivered_with_the_key_that_it_had() -> None:
    key = ".".join(["0"] * 14 + ["escrow.release"])
    message = replayed_message(
        a_record(kind="orphan", queue="orphans", routing_key=key, message_type="release_hold", headers={})
    )
    assert (message.exchange, message.routing_key) == ("holdfast.deliver", key)


def test_a_banks_refused_event_has_no_signature_to_replay() -> None:
    with pytest.raises(NotReplayable):
        replayed_message(a_record(queue="", headers={}))
