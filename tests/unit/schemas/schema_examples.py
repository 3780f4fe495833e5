"""One valid message of each inbound type, and how to write it as bytes."""

import copy
import json
from typing import Any

from schemas.envelope import BATCH_CONTENT_TYPE, SINGLE_CONTENT_TYPE, Envelope, parse_message
from schemas.event_data import EventData
from schemas.inbound import INBOUND, InvalidData, validate_data

SEALED = "eyJhbGciOiJFQ0RILUVTIn0..aXY.Y2lwaGVydGV4dA.dGFn"

VALID_DATA: dict[str, dict[str, Any]] = {
    "order.paid": {
        "order_id": "o-1",
        "buyer_id": "b-1",
        "amount": 12_000,
        "currency": "EUR",
        "paid_at": "2026-11-23T09:00:00+01:00",
        "bank_reference": "RF18 5390",
        "splits": [{"seller_id": "s-1", "amount": 7_000}, {"seller_id": "s-2", "amount": 5_000}],
        "protection_days": 3,
    },
    "bank.credited": {
        "bank_reference": "RF18 5390",
        "amount": 12_000,
        "currency": "EUR",
        "booked_at": "2026-11-23T08:00:00Z",
        "statement_line": "2026-11-23/1",
    },
    "bank.debited": {
        "bank_reference": "RF18 5390",
        "amount": 12_000,
        "currency": "EUR",
        "booked_at": "2026-11-23T08:00:00Z",
        "statement_line": "2026-11-23/2",
        "reason": "taken back by the buyer's bank",
    },
    "seller.enrolled": {"seller_id": "s-1", "destination_id": "d-1", "sealed": SEALED},
    "seller.password_changed": {"seller_id": "s-1", "sealed": SEALED},
    "withdrawal.requested": {
        "withdrawal_id": "w-1",
        "seller_id": "s-1",
        "amount": 500,
        "currency": "EUR",
        "destination_id": "d-1",
        "sealed": SEALED,
    },
    "dispute.opened": {
        "dispute_id": "x-1",
        "order_id": "o-1",
        "reason": "never arrived",
        "seller_ids": ["s-1", "s-2"],
    },
    "dispute.resolved": {"dispute_id": "x-1", "refunds": [{"seller_id": "s-1", "amount": 1}]},
    "refund.requested": {
        "refund_id": "r-1",
        "order_id": "o-1",
        "refunds": [{"seller_id": "s-1", "amount": 1}],
    },
}


def valid_data(type_: str) -> dict[str, Any]:
    return copy.deepcopy(VALID_DATA[type_])


def an_event(type_: str = "order.paid", /, **attributes: object) -> dict[str, Any]:
    """Return a valid event of that type with some attributes replaced or added."""
    sender = "/shops/acme" if INBOUND[type_].SCOPE is not None else "/banks/sim"
    return {
        "specversion": "1.0",
        "id": "e-1",
        "source": sender,
        "type": type_,
        "time": "2026-11-23T08:00:00Z",
        "datacontenttype": "application/json",
        "data": valid_data(type_),
    } | attributes


def as_json(value: object) -> bytes:
    """Write JSON; an infinite float becomes a number that only looks finite, as a hostile sender would."""
    return json.dumps(value).replace("Infinity", "1e400").encode()


def parse_one(event: object) -> Envelope:
    (envelope,) = parse_message(as_json(event), SINGLE_CONTENT_TYPE)
    return envelope


def parse_batch(events: object) -> list[Envelope]:
    return parse_message(as_json(events), BATCH_CONTENT_TYPE)


def judge(type_: str, data: object) -> EventData | InvalidData:
    """Send data the whole way: written as JSON, read as a message, judged by its schema."""
    return validate_data(type_, parse_one(an_event(type_, data=data)).data)


def with_value(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return the data with the value at a path such as `splits.0.amount` replaced."""
    changed = copy.deepcopy(data)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = changed
    for part in parents:
        target = target[part]
    target[last] = value
    return changed
