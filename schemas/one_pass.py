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

# Strings of an event that has every attribute or field that it must have: names, and values that are text.
_ENVELOPE_STRINGS: Final = 9
_DATA_STRINGS: Final = 12
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


def read_orders_paid(body: bytes, content_type: str | None) -> list[tuple[Envelope, OrderPaid]] | None:
    """
    Return the orders of a message that is beyond doubt one of `order.paid`, one or a batch; else None.

    The envelopes' `data` is None: the model stands beside it.
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
    if body.count(b'"') != 2 * sum(map(_strings_of, events)):
        return None
    return [
        (Envelope(id=event.id, source=event.source, type=event.type, time=event.time, data=None), event.data)
        for event in events
    ]


def _strings_of(event: _OrderPaidEvent) -> int:
    return (
        _ENVELOPE_STRINGS
        # One that is null has a name that nothing accounts for: it must make no room for another name.
        + 2 * (event.time is not None)
        + 2 * (event.datacontenttype is not None)
        + _DATA_STRINGS
        + ("protection_days" in event.data.model_fields_set)
        + _SPLIT_STRINGS * len(event.data.splits)
    )
