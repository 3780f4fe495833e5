"""
The usual `order.paid` message, read in one pass from its bytes to its values.

The long way (`envelope.parse_message`, then `inbound.validate_data`) says of every message what is wrong
with it. Here only what is certainly right comes through, in a fraction of the time; for all else, valid or
not, the answer is None, and the long way judges. A test holds the two together on whatever it can think of.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal

from msgspec import Meta, MsgspecError, Struct
from msgspec.json import Decoder, Encoder

from schemas.currencies import CURRENCY_DIGITS
from schemas.envelope import (
    BATCH_CONTENT_TYPE,
    MAX_BATCH_EVENTS,
    MAX_BODY_BYTES,
    MAX_EVENT_BYTES,
    SINGLE_CONTENT_TYPE,
    Envelope,
)
from schemas.fields import (
    BANK_REFERENCE_PATTERN,
    EXTERNAL_ID_PATTERN,
    MAX_AMOUNT_MINOR,
    MAX_PROTECTION_DAYS,
    MAX_SPLITS,
    MIN_PROTECTION_DAYS,
    OWNER_ID_PATTERN,
    RFC_3339_PATTERN,
    instant_of,
    unanchored,
)
from schemas.order_paid import OrderPaid

# Strings of an event that has every attribute and field that it must have: names, and values that are text.
_STRINGS: Final = 9 + 12
_SPLIT_STRINGS: Final = 3
# A valid event whose white space stays below this a gap is far smaller than the bound on one event.
_LONG_GAP = re.compile(rb"[ \t\n\r]{16}")

_SHOP_SOURCE: Final = "/shops/"
_HASHED_BEFORE: Final = OrderPaid.TYPE.encode() + b"\n"

_Amount = Annotated[int, Meta(ge=1, le=MAX_AMOUNT_MINOR)]
_Days = Annotated[int, Meta(ge=MIN_PROTECTION_DAYS, le=MAX_PROTECTION_DAYS)]


class UsualSplit(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What `order_paid.Split` says."""

    seller_id: str
    amount: _Amount


class _Order(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`data` as it lies in the message; its texts are checked together, by one pattern."""

    order_id: str
    buyer_id: str
    amount: _Amount
    currency: str
    paid_at: str
    bank_reference: str
    splits: Annotated[tuple[UsualSplit, ...], Meta(min_length=1, max_length=MAX_SPLITS)]
    protection_days: _Days | None = None


class _Event(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    specversion: Literal["1.0"]
    id: str
    source: str
    type: Literal["order.paid"]
    data: _Order
    time: str | None = None
    datacontenttype: Literal["application/json"] | None = None


class UsualOrder(Struct, frozen=True, omit_defaults=True, gc=False):
    """What `OrderPaid` says, of an order that was read in one pass: the same names, values and hash."""

    order_id: str
    buyer_id: str
    amount: int
    currency: str
    paid_at: datetime
    bank_reference: str
    splits: tuple[UsualSplit, ...]
    protection_days: int | None = None

    def content_hash(self) -> bytes:
        """Return what `OrderPaid.content_hash` returns: its canonical form is what this encoder writes."""
        return hashlib.sha256(_HASHED_BEFORE + _CANONICAL.encode(self)).digest()

    def splits_json(self) -> str:
        """Return what `OrderPaid.splits_json` returns."""
        return _CANONICAL.encode(self.splits).decode()


_CANONICAL = Encoder()
_SINGLE = Decoder(_Event)
_BATCH = Decoder(Annotated[list[_Event], Meta(min_length=1, max_length=MAX_BATCH_EVENTS)])


# The texts of an event, one below the other. None of them may hold a line feed: there must be as many as
# stand between them.
_TEXT_LINES: Final = 7
_TEXTS = re.compile(
    "\n".join(
        (
            _SHOP_SOURCE + unanchored(OWNER_ID_PATTERN),
            *[unanchored(EXTERNAL_ID_PATTERN)] * 3,
            unanchored(BANK_REFERENCE_PATTERN),
            *[RFC_3339_PATTERN] * 2,
            f"{unanchored(EXTERNAL_ID_PATTERN)}(?:\n{unanchored(EXTERNAL_ID_PATTERN)})*",
        )
    )
)


class OrdersRead(Struct, frozen=True, gc=False):
    """
    A message's events, all from one shop; `sender` is its kind and id.

    The envelopes' `data` is None: the orders stand beside them.
    """

    sender: tuple[str, str]
    envelopes: Sequence[Envelope]
    orders: Sequence[UsualOrder]


def read_orders_paid(body: bytes, content_type: str | None) -> OrdersRead | None:
    """Return the events of a message that is beyond doubt one of `order.paid`, one or a batch; else None."""
    events: Sequence[_Event]
    try:
        if content_type == SINGLE_CONTENT_TYPE and len(body) <= MAX_EVENT_BYTES:
            events = (_SINGLE.decode(body),)
        elif content_type == BATCH_CONTENT_TYPE and len(body) <= MAX_BODY_BYTES:
            if len(body) > MAX_EVENT_BYTES and _LONG_GAP.search(body):
                return None
            events = _BATCH.decode(body)
            source = events[0].source
            if any([event.source != source for event in events]):  # noqa: C419 - a generator is slower
                return None
        else:
            return None
        return _values_of(events, body)
    except (MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _values_of(events: Sequence[_Event], body: bytes) -> OrdersRead | None:
    """
    Return what valid events say; None where one is not, or says more than is looked at here.

    Raises:
        ValueError: a time that does not exist.
        OverflowError: a time outside the years 1 to 9999 in UTC.
    """
    # A name that stands twice adds a string to those that the events account for, and so does whatever
    # else was not looked at; nothing takes one away. Escaped quotes only send a message the long way.
    strings = 0
    envelopes: list[Envelope] = []
    orders: list[UsualOrder] = []
    for event in events:
        order, time = event.data, event.time
        splits = order.splits
        if len(splits) == 1:
            sellers, total = splits[0].seller_id, splits[0].amount
        else:
            names = [split.seller_id for split in splits]
            sellers, total = "\n".join(names), sum([split.amount for split in splits])
            if len(set(names)) != len(names):
                return None
        texts = (
            f"{event.source}\n{event.id}\n{order.order_id}\n{order.buyer_id}\n{order.bank_reference}\n"
            f"{order.paid_at}\n{order.paid_at if time is None else time}\n{sellers}"
        )
        if (
            total != order.amount
            or order.currency not in CURRENCY_DIGITS
            or texts.count("\n") != _TEXT_LINES + len(splits) - 1
            or _TEXTS.fullmatch(texts) is None
        ):
            return None
        strings += _STRINGS + _SPLIT_STRINGS * len(splits)
        # One that is null has a name that nothing accounts for: it must make no room for another name.
        if time is not None:
            strings += 2
        if event.datacontenttype is not None:
            strings += 2
        if order.protection_days is not None:
            strings += 1
        at = None if time is None else instant_of(time)
        envelopes.append(Envelope(event.id, event.source, OrderPaid.TYPE, at, None))
        orders.append(
            UsualOrder(
                order.order_id,
                order.buyer_id,
                order.amount,
                order.currency,
                instant_of(order.paid_at),
                order.bank_reference,
                splits,
                order.protection_days,
            )
        )
    if body.count(b'"') != 2 * strings:
        return None
    return OrdersRead(("shop", events[0].source[len(_SHOP_SOURCE) :]), envelopes, orders)
