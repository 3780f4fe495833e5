"""The quick way of reading `order.paid` and the long way say the same, or the quick way says nothing."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from schema_examples import VALID_DATA

from schemas.envelope import (
    BATCH_CONTENT_TYPE,
    MAX_EVENT_BYTES,
    SINGLE_CONTENT_TYPE,
    Envelope,
    parse_message,
)
from schemas.inbound import InvalidData, validate_data
from schemas.one_pass import UsualOrder, UsualSplit, read_orders_paid
from schemas.order_paid import OrderPaid, Split


def an_event(**changes: Any) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shops/acme",
        "type": "order.paid",
        "time": "2026-11-23T08:00:00Z",
        "datacontenttype": "application/json",
        "data": copy.deepcopy(VALID_DATA["order.paid"]),
    }
    return event | changes


def values_of(order: UsualOrder | OrderPaid) -> list[object]:
    splits = [(split.seller_id, split.amount) for split in order.splits]
    return [splits if name == "splits" else getattr(order, name) for name in OrderPaid.model_fields]


def the_long_way(body: bytes, content_type: str) -> list[tuple[Envelope, OrderPaid]]:
    read = []
    for envelope in parse_message(body, content_type):
        assert envelope.type == "order.paid"
        data = validate_data(envelope.type, envelope.data)
        assert isinstance(data, OrderPaid), data
        read.append((envelope, data))
    return read


def assert_same(body: bytes, content_type: str) -> bool:
    """Whatever the quick way lets through, the long way reads alike; return whether it let it through."""
    quick = read_orders_paid(body, content_type)
    if quick is None:
        return False
    slow = the_long_way(body, content_type)
    assert list(quick.envelopes) == [replace(envelope, data=None) for envelope, _ in slow]
    assert {quick.sender} == {envelope.sender for envelope, _ in slow}
    assert [values_of(order) for order in quick.orders] == [values_of(order) for _, order in slow]
    assert [one.content_hash() for one in quick.orders] == [other.content_hash() for _, other in slow]
    assert [one.splits_json() for one in quick.orders] == [order.splits_json() for _, order in slow]
    return True


def test_both_ways_know_the_same_fields_in_the_same_order() -> None:
    """The order is that of the canonical form which is hashed; a repeat is told by its hash for ever."""
    assert list(UsualOrder.__struct_fields__) == list(OrderPaid.model_fields)
    assert list(UsualSplit.__struct_fields__) == list(Split.model_fields)


@pytest.mark.parametrize(
    ("paid_at", "quickly"),
    [
        ("2026-11-23T08:00:00Z", True),
        ("2026-11-23t08:00:00.5z", True),
        ("2026-11-23T08:00:00.000000Z", True),
        ("2026-11-23T08:00:00.123456789Z", True),
        ("2026-11-23T23:30:00.25-00:45", True),
        ("0001-01-01T00:00:00Z", True),
        ("0001-01-01T00:00:00+00:01", False),
        ("9999-12-31T23:59:59-00:01", False),
        ("2026-11-23T08:00:60Z", False),
        ("2026-11-23 08:00:00Z", False),
        ("2026-11-23T08:00:00", False),
    ],
)
def test_every_form_of_time_is_read_and_hashed_alike(paid_at: str, *, quickly: bool) -> None:
    event = an_event(time=paid_at)
    event["data"]["paid_at"] = paid_at
    assert assert_same(json.dumps(event).encode(), SINGLE_CONTENT_TYPE) is quickly


def test_a_line_feed_in_a_text_takes_no_other_texts_place() -> None:
    """Texts are checked together, one a line: a text of two lines must not make two of one."""
    event = an_event()
    event["data"] |= {
        "order_id": "o-1\nb-1",
        "buyer_id": "REF",
        "bank_reference": "2026-11-23T08:00:00Z",
        "splits": [{"seller_id": "s-1", "amount": 12000}],
    }
    assert read_orders_paid(json.dumps(event).encode(), SINGLE_CONTENT_TYPE) is None
    event = an_event()
    event["data"]["splits"] = [{"seller_id": "s-1\ns-2", "amount": 12000}]
    assert read_orders_paid(json.dumps(event).encode(), SINGLE_CONTENT_TYPE) is None


def test_usual_messages_take_the_quick_way() -> None:
    single = json.dumps(an_event()).encode()
    compact = json.dumps(an_event(), separators=(",", ":")).encode()
    batch = json.dumps([an_event(id=f"e-{number}") for number in range(256)]).encode()
    least = an_event()
    del least["time"], least["datacontenttype"], least["data"]["protection_days"]
    assert assert_same(single, SINGLE_CONTENT_TYPE)
    assert assert_same(compact, SINGLE_CONTENT_TYPE)
    assert assert_same(json.dumps(least).encode(), SINGLE_CONTENT_TYPE)
    assert len(batch) > MAX_EVENT_BYTES
    assert assert_same(batch, BATCH_CONTENT_TYPE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"amount": 12000', b'"amount": 12000, "amount": 12000'),
        (b'"amount": 12000', b'"amount" : 1, "amount": 12000'),
        (b'"amount": 12000', b'"amo\\u0075nt": 1, "amount": 12000'),
        (b'"order_id": "o-1"', b'"order_id": "\\"", "order_id": "o-1"'),
        (b'"seller_id": "s-1"', b'"seller_id": "s-9", "seller_id": "s-1"'),
        (b'"type": "order.paid"', b'"type": "order.lost", "type": "order.paid"'),
        (b'"time": "2026-11-23T08:00:00Z"', b'"time": null'),
        (
            b'"time": "2026-11-23T08:00:00Z", "datacontenttype": "application/json"',
            b'"time": null, "datacontenttype": null, "specversion": "1.0"',
        ),
        (
            b'"id": "e-1", "source": "/shops/acme", "type": "order.paid", "time": "2026-11-23T08:00:00Z"',
            b'"id": 7, "id": "e-1", "source": "/shops/acme", "type": "order.paid", "time": null',
        ),
        (b'"time": "2026-11-23T08:00:00Z"', b'"time": "2026-02-30T08:00:00Z"'),
        (b'"time": "2026-11-23T08:00:00Z"', b'"time": "2026-11-23T08:00:00Z", "traceparent": "00-1"'),
        (b'"protection_days": 3', b'"protection_days": null'),
        (b'"amount": 12000', b'"amount": 12000.0'),
        (b'"amount": 12000', b'"amount": true'),
        (b'"amount": 12000', b'"amount": 12001'),
        (b'"source": "/shops/acme"', b'"source": "/banks/acme"'),
        (b'"currency": "EUR"', b'"currency": "XXX"'),
        (b'"id": "e-1"', b'"id": "e-\xff"'),
        (b"}}", b"}} x"),
        (b"}}", b"}"),
    ],
)
def test_what_is_doubtful_takes_the_long_way(old: bytes, new: bytes) -> None:
    body = json.dumps(an_event()).encode()
    assert old in body
    assert read_orders_paid(body.replace(old, new), SINGLE_CONTENT_TYPE) is None


def test_event_padded_above_its_bound_is_never_let_through() -> None:
    """Both ways refuse an event above 64 KiB, also one that is white space for the most part."""
    event = json.dumps(an_event()).encode()
    for gap in (b" " * MAX_EVENT_BYTES, b"\t" * MAX_EVENT_BYTES):
        padded = event.replace(b'"data": ', b'"data": ' + gap)
        assert read_orders_paid(padded, SINGLE_CONTENT_TYPE) is None
        assert read_orders_paid(b"[" + padded + b"," + event + b"]", BATCH_CONTENT_TYPE) is None


def test_largest_valid_event_is_far_below_the_bound() -> None:
    """Why the quick way need not measure each event of a batch: only white space could make one too large."""
    event = an_event(id="~" * 64, source="/shops/" + "a" * 64)
    event["data"] |= {
        "order_id": "~" * 64,
        "buyer_id": "~" * 64,
        "bank_reference": "A" * 35,
        "amount": 10**15,
        "splits": [{"seller_id": f"{number:~>64}", "amount": 10**15} for number in range(64)],
    }
    longest = json.dumps(event).encode()
    # Every character may be spelled as an escape of six, and every token may have fifteen spaces around it.
    assert 6 * sum(len(part) for part in longest.split(b'"')[1::2]) + 16 * 2 * 64 * 8 < MAX_EVENT_BYTES


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**16), 10**16),
    st.floats(),
    st.text(max_size=70),
    st.sampled_from(["EUR", "order.paid", "2026-11-23T08:00:00Z", "1.0", "/shops/acme", "s-1"]),
    st.lists(st.integers(), max_size=2),
)


@given(st.data())
def test_changed_messages_are_read_alike_or_left_to_the_long_way(data: st.DataObject) -> None:
    event = an_event()
    places = [event, event["data"], event["data"]["splits"][0]]
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.sampled_from(places))
        name = data.draw(st.sampled_from([*place, "extra"]))
        if data.draw(st.booleans()):
            place[name] = data.draw(_VALUES)
        else:
            place.pop(name, None)
    body = json.dumps(event, indent=data.draw(st.sampled_from([None, 1]))).encode()
    assert_same(body, SINGLE_CONTENT_TYPE)
    assert_same(b"[" + body + b"]", BATCH_CONTENT_TYPE)


@given(st.data())
def test_bytes_put_in_or_cut_out_anywhere_are_read_alike_or_left_to_the_long_way(data: st.DataObject) -> None:
    body = json.dumps(an_event()).encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 40)))
    put = data.draw(
        st.one_of(
            st.binary(max_size=4), st.sampled_from([b'"a":1,', b'"amount":1,', b'"id":"x",', b" ", b'\\"'])
        )
    )
    assert_same(body[:start] + put + body[end:], SINGLE_CONTENT_TYPE)


def test_data_that_the_long_way_refuses_is_never_let_through() -> None:
    event = an_event()
    event["data"]["splits"][1]["seller_id"] = "s-1"
    body = json.dumps(event).encode()
    (envelope,) = parse_message(body, SINGLE_CONTENT_TYPE)
    assert isinstance(validate_data("order.paid", envelope.data), InvalidData)
    assert read_orders_paid(body, SINGLE_CONTENT_TYPE) is None
