"""
The usual `order.paid` message, read in one pass from its bytes to the model.

The long way (`envelope.parse_message`, then `inbound.validate_data`) says of every message what is wrong
with it. Here only what is certainly right comes through, in half the time; for all else, valid or not, the
answer is None, and the long way judges. A test holds the two together on whatever it can think of.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from annotated_types import Len
from pydantic import Field, TypeAdapter, ValidationError

from schemas.envelope import (
    BATCH_CONTENT_TYPE,
    MAX_BATCH_EVENTS,
    MAX_BODY_BYTES,
    MAX_EVENT_BYTES,
    SINGLE_CONTENT_TYPE,
    Envelope,
)
from schemas.event_data import Strict
from schemas.fields import ExternalId, Instant
from schemas.order_paid import OrderPaid

# Strings of an event that has every attribute and field that it must have: names, and values that are text.
_STRINGS: Final = 9 + 12
_SPLIT_STRINGS: Final = 3
# A valid event whose white space stays below this a gap is far smaller than the bound on one event.
_LONG_GAP = re.compile(rb"[ \t\n\r]{16}")


class _OrderPaidEvent(Strict):
    specversion: Literal["1.0"]
    id: ExternalId
    source: Annotated[str, Field(strict=True, pattern=r"^/shops/[a-z0-9-]{1,64}$")]
    type: Literal["order.paid"]
    data: OrderPaid
    time: Instant | None = None
    datacontenttype: Literal["application/json"] | None = None


_SINGLE: TypeAdapter[_OrderPaidEvent] = TypeAdapter(_OrderPaidEvent)
_BATCH: TypeAdapter[list[_OrderPaidEvent]] = TypeAdapter(
    Annotated[list[_OrderPaidEvent], Len(1, MAX_BATCH_EVENTS)]
)


def read_orders_paid(
    body: bytes, content_type: str | None
) -> tuple[Sequence[Envelope], Sequence[OrderPaid]] | None:
    """
    Return the events of a message that is beyond doubt one of `order.paid`, one or a batch; else None.

    The envelopes' `data` is None: the models stand beside them.
    """
    events: Sequence[_OrderPaidEvent]
    try:
        if content_type == SINGLE_CONTENT_TYPE and len(body) <= MAX_EVENT_BYTES:
            events = [_SINGLE.validate_json(body)]
        elif content_type == BATCH_CONTENT_TYPE and len(body) <= MAX_BODY_BYTES:
            if len(body) > MAX_EVENT_BYTES and _LONG_GAP.search(body):
                return None
            events = _BATCH.validate_json(body)
            if any(event.source != events[0].source for event in events):
                return None
        else:
            return None
    except (ValidationError, ValueError, RecursionError):
        return None
    # A name that stands twice adds a string to those that the models account for, and so does whatever
    # else was not looked at; nothing takes one away. Escaped quotes only send a message the long way.
    strings = 0
    envelopes: list[Envelope] = []
    orders: list[OrderPaid] = []
    for event in events:
        time, order = event.time, event.data
        strings += _STRINGS + _SPLIT_STRINGS * len(order.splits)
        # One that is null has a name that nothing accounts for: it must make no room for another name.
        if time is not None:
            strings += 2
        if event.datacontenttype is not None:
            strings += 2
        if order.protection_days is not None:
            strings += 1
        envelopes.append(Envelope(event.id, event.source, event.type, time, None))
        orders.append(order)
    return (envelopes, orders) if body.count(b'"') == 2 * strings else None
