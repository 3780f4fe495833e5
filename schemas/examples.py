"""One example of the `data` of every event, as the documentation and the AsyncAPI document show it."""

from typing import Any, Final

from schemas.envelope import OUR_SOURCE
from schemas.inbound import INBOUND

# No real token: what a JWE looks like, cut short.
_SEALED: Final = "eyJhbGciOiJFQ0RILUVTIiwiZW5jIjoiQTI1NkdDTSJ9..aXY.Y2lwaGVydGV4dA.dGFn"
_HOLD_ID: Final = "019d3f6a-1d2e-8a54-9a3b-5be0c0c9f2aa"
_MONEY: Final = {"amount": 1250, "currency": "EUR"}
_OF_HOLD: Final = {"hold_id": _HOLD_ID, "order_id": "o-1", "seller_id": "s-1"}
_PAYOUT: Final = {
    "withdrawal_id": "w-1",
    "seller_id": "s-1",
    "amount": 1000,
    "currency": "EUR",
    "end_to_end_id": "019d3f6b52c1788e9d2f31a4c5d6e7f8",
}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "order.paid": {
        "order_id": "o-1",
        "buyer_id": "b-7",
        **_MONEY,
        "paid_at": "2026-11-23T08:00:00Z",
        "bank_reference": "ACME o-1",
        "splits": [{"seller_id": "s-1", "amount": 1000}, {"seller_id": "s-2", "amount": 250}],
        "protection_days": 5,
    },
    "dispute.opened": {
        "dispute_id": "x-1",
        "order_id": "o-1",
        "reason": "the parcel never arrived",
        "seller_ids": ["s-1"],
    },
    "dispute.resolved": {"dispute_id": "x-1", "refunds": [{"seller_id": "s-1", "amount": 400}]},
    "refund.requested": {
        "refund_id": "r-1",
        "order_id": "o-1",
        "refunds": [{"seller_id": "s-2", "amount": 250}],
    },
    "seller.enrolled": {"seller_id": "s-1", "destination_id": "d-1", "sealed": _SEALED},
    "seller.password_changed": {"seller_id": "s-1", "sealed": _SEALED},
    "withdrawal.requested": {
        "withdrawal_id": "w-1",
        "seller_id": "s-1",
        "amount": 1000,
        "currency": "EUR",
        "destination_id": "d-1",
        "sealed": _SEALED,
    },
    "bank.credited": {
        "bank_reference": "ACME o-1",
        **_MONEY,
        "booked_at": "2026-11-23T09:30:00Z",
        "statement_line": "2026-11-23/17",
    },
    "bank.debited": {
        "bank_reference": "ACME o-1",
        **_MONEY,
        "booked_at": "2026-11-24T09:30:00Z",
        "statement_line": "2026-11-24/3",
        "reason": "recalled by the buyer's bank",
    },
    "order.held": {
        "order_id": "o-1",
        "event_id": "e-1",
        "protection_days": 5,
        "release_at": "2026-11-28T08:00:01.204Z",
        "funded": False,
        "holds": [{"hold_id": _HOLD_ID, "seller_id": "s-1", "amount": 1000, "currency": "EUR"}],
    },
    "order.funded": {"order_id": "o-1", **_MONEY, "booked_at": "2026-11-23T09:30:00Z"},
    "order.rejected": {
        "order_id": "o-1",
        "event_id": "e-1",
        "reason": "invalid_data",
        "detail": "splits: they add up to 1249, not to the amount 1250",
    },
    "hold.released": {
        **_OF_HOLD,
        "amount": 975,
        "fee": 25,
        "currency": "EUR",
        "released_at": "2026-11-28T08:00:01.311Z",
    },
    "hold.frozen": {**_OF_HOLD, "amount": 1000, "currency": "EUR", "dispute_id": "x-1"},
    "hold.unfrozen": {**_OF_HOLD, "amount": 600, "currency": "EUR", "dispute_id": "x-1"},
    "hold.refunded": {**_OF_HOLD, "amount": 400, "currency": "EUR", "dispute_id": "x-1"},
    "dispute.accepted": {"dispute_id": "x-1", "order_id": "o-1", "event_id": "e-2"},
    "dispute.rejected": {
        "dispute_id": "x-2",
        "order_id": "o-9",
        "event_id": "e-3",
        "reason": "unknown_order",
        "detail": "the shop has no such order",
    },
    "refund.accepted": {"refund_id": "r-1", "order_id": "o-1", "event_id": "e-4"},
    "refund.rejected": {
        "refund_id": "r-2",
        "order_id": "o-1",
        "event_id": "e-5",
        "reason": "not_refundable",
        "detail": "more than is held for the seller",
    },
    "refund.settled": {"refund_id": "r-1", "order_id": "o-1", "event_id": "e-4"},
    "refund.failed": {"refund_id": "r-1", "order_id": "o-1", "event_id": "e-4", "reason": "AC04"},
    "seller.accepted": {"seller_id": "s-1", "event_id": "e-6"},
    "seller.rejected": {
        "seller_id": "s-1",
        "event_id": "e-7",
        "reason": "wrong_password",
        "detail": "the password is not the right one",
    },
    "withdrawal.accepted": {
        "withdrawal_id": "w-1",
        "event_id": "e-8",
        "seller_id": "s-1",
        "amount": 1000,
        "currency": "EUR",
    },
    "withdrawal.pending": {
        "withdrawal_id": "w-3",
        "event_id": "e-10",
        "seller_id": "s-1",
        "amount": 1000,
        "currency": "EUR",
        "reason": "cooling_off",
        "detail": "the password or the destination was changed; it goes on by itself",
        "until": "2026-11-24T08:00:00Z",
    },
    "withdrawal.rejected": {
        "withdrawal_id": "w-2",
        "event_id": "e-9",
        "seller_id": "s-1",
        "amount": 1000,
        "currency": "EUR",
        "reason": "insufficient_funds",
        "detail": "more than is withdrawable",
    },
    "payout.submitted": _PAYOUT,
    "payout.settled": _PAYOUT,
    "payout.failed": {**_PAYOUT, "reason": "AC04"},
    "payout.returned": {**_PAYOUT, "reason": "AC06"},
}

# What is inside `sealed`, before it is encrypted.
SEALED_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "seller.enrolled": {
        "shop_id": "acme",
        "event_id": "e-6",
        "seller_id": "s-1",
        "destination_id": "d-1",
        "password": "correct horse battery",
        "destination": {"type": "iban", "iban": "DE89370400440532013000", "holder_name": "Seller One"},
    },
    "seller.password_changed": {
        "shop_id": "acme",
        "event_id": "e-7",
        "seller_id": "s-1",
        "old_password": "correct horse battery",
        "new_password": "staple pause lamp",
    },
    "withdrawal.requested": {
        "shop_id": "acme",
        "event_id": "e-8",
        "withdrawal_id": "w-1",
        "seller_id": "s-1",
        "amount": 1000,
        "currency": "EUR",
        "destination_id": "d-1",
        "password": "correct horse battery",
    },
}


def example_event(type_: str) -> dict[str, Any]:
    """
    Return an example of a whole event, envelope and data.

    Raises:
        KeyError: no such type, or nobody has written its example.
    """
    source = OUR_SOURCE
    if type_ in INBOUND:
        source = "/shops/acme" if INBOUND[type_].SCOPE is not None else "/banks/first"
    return {
        "specversion": "1.0",
        "id": "e-1" if type_ in INBOUND else "8e724016-4431-8d91-a745-c4ec5d34414f",
        "source": source,
        "type": type_,
        "time": "2026-11-23T08:00:01Z",
        "datacontenttype": "application/json",
        "data": EXAMPLES[type_],
    }
