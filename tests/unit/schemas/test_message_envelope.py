"""Both forms of a message: what is read, and which reason each malformed one is quarantined for."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from schema_examples import an_event, as_json, parse_batch, parse_one, valid_data

from schemas.envelope import (
    BATCH_CONTENT_TYPE,
    MAX_BATCH_EVENTS,
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    SINGLE_CONTENT_TYPE,
    MalformedMessage,
    OwnEvent,
    encode_batch,
    encode_event,
    parse_message,
)
from schemas.event_data import EventData
from schemas.inbound import InvalidData, hash_of_raw, validate_data
from schemas.reasons import QuarantineReason

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def reason_of(body: bytes, content_type: str | None = SINGLE_CONTENT_TYPE) -> QuarantineReason:
    with pytest.raises(MalformedMessage) as caught:
        parse_message(body, content_type)
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300
    return caught.value.reason


def event_of_size(size: int, event_id: str = "e-1") -> bytes:
    body = as_json(an_event(id=event_id, pad=""))
    return body.replace(b'"pad": ""', b'"pad": "%s"' % (b"x" * (size - len(body))))


# What is read


def test_a_single_event_is_read_with_its_attributes() -> None:
    envelope = parse_one(an_event(traceparent=TRACEPARENT))
    assert (envelope.id, envelope.source, envelope.type) == ("e-1", "/shops/acme", "order.paid")
    assert envelope.sender == ("shop", "acme")
    assert envelope.time == datetime(2026, 11, 23, 8, tzinfo=UTC)
    assert envelope.data == valid_data("order.paid")
    assert envelope.traceparent == TRACEPARENT


def test_a_bank_is_told_from_a_shop_by_the_source() -> None:
    assert parse_one(an_event("bank.credited")).sender == ("bank", "sim")


def test_a_batch_is_read_in_order() -> None:
    events = [an_event(id=f"e-{number}") for number in range(MAX_BATCH_EVENTS)]
    assert [envelope.id for envelope in parse_batch(events)] == [event["id"] for event in events]


@pytest.mark.parametrize("event_count", [1, 2])
def test_white_space_around_and_between_is_no_matter(event_count: int) -> None:
    body = b" \r\n\t[ " + b" ,\n ".join([as_json(an_event())] * event_count) + b" ]\n "
    assert len(parse_message(body, BATCH_CONTENT_TYPE)) == event_count
    assert len(parse_message(b"\n " + as_json(an_event()) + b" \n", SINGLE_CONTENT_TYPE)) == 1


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
        " application/cloudevents+json ",
    ],
)
def test_the_content_type_may_carry_parameters_and_any_case(content_type: str) -> None:
    assert len(parse_message(as_json(an_event()), content_type)) == 1


@pytest.mark.parametrize("value", ["x", 1, True, None, "\u2028"], ids=repr)
def test_an_unknown_extension_attribute_is_accepted(value: object) -> None:
    assert parse_one(an_event(partitionkey=value, x1=value)).id == "e-1"


@pytest.mark.parametrize("name", ["time", "datacontenttype", "traceparent", "dataschema", "subject"])
def test_an_optional_attribute_may_be_null_or_left_out(name: str) -> None:
    """CloudEvents' JSON format says that null means unset."""
    event = an_event() | {name: None}
    assert parse_one(event).id == "e-1"
    del event[name]
    assert parse_one(event).id == "e-1"


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        7,
        TRACEPARENT.upper(),
        TRACEPARENT + "\n",
        "ff" + TRACEPARENT[2:],
        "x" * 50000,
        ["x"],
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    ],
)
def test_a_traceparent_that_is_none_is_ignored(traceparent: object) -> None:
    assert parse_one(an_event(traceparent=traceparent)).traceparent is None


# The form


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        ";",
        "application/json",
        "text/plain",
        "application/cloudevents",
        "application/cloudevents+xml",
        "application/cloudevents+jsonx",
        "application/cloudevents+json, x",
        "\x00",
        "x" * 255,
    ],
)
def test_another_content_type_is_the_wrong_form(content_type: str | None) -> None:
    assert reason_of(as_json(an_event()), content_type) is QuarantineReason.WRONG_FORM


def test_a_batch_declared_as_one_event_is_refused() -> None:
    assert reason_of(as_json([an_event()]), SINGLE_CONTENT_TYPE) is QuarantineReason.BAD_ENVELOPE


@pytest.mark.parametrize("body", [as_json(an_event()), b"[]", b"[ ]", b"7", b'"x"', b"null"])
def test_a_batch_that_is_no_array_of_events_is_the_wrong_form(body: bytes) -> None:
    assert reason_of(body, BATCH_CONTENT_TYPE) is QuarantineReason.WRONG_FORM


DRAMATIQ_ENVELOPE = {
    "queue_name": "payment.intake",
    "actor_name": "order_paid",
    "args": [valid_data("order.paid")],
    "kwargs": {},
    "options": {"max_retries": 0, "pipe_target": None},
    "message_id": "0b8e4d1e",
    "message_timestamp": 1_795_420_800_000,
}


@pytest.mark.parametrize("content_type", [SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE, "application/json", None])
def test_a_dramatiq_envelope_is_no_message_of_ours(content_type: str | None) -> None:
    body = as_json([DRAMATIQ_ENVELOPE] if content_type == BATCH_CONTENT_TYPE else DRAMATIQ_ENVELOPE)
    declared = content_type in (SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE)
    expected = QuarantineReason.BAD_ENVELOPE if declared else QuarantineReason.WRONG_FORM
    assert reason_of(body, content_type) is expected


@pytest.mark.parametrize("options", [None, [], "x", {"throws": ["Exception"]}])
def test_a_dramatiq_envelope_hidden_in_an_event_changes_nothing(options: object) -> None:
    """Its keys are no attribute names, so the event is refused; nothing of it reaches Dramatiq."""
    event = an_event() | DRAMATIQ_ENVELOPE | {"options": options}
    assert reason_of(as_json(event)) is QuarantineReason.BAD_ENVELOPE


# JSON and UTF-8


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[",
        b"{}x",
        b"{}{}",
        b'{"a":}',
        b"{'a': 1}",
        b"\x00",
        b'{"a":1,}',
        b"nul",
        b"<xml/>",
        b'{"a": "\n"}',
        b'{"a": "\x00"}',
        b'{"a": 01}',
        b'{"a": .5}',
        b'{"a": +1}',
        b'{"a": "\\x"}',
        b"[" * 9,
    ],
)
@pytest.mark.parametrize("content_type", [SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE])
def test_a_body_that_is_not_json_is_quarantined(body: bytes, content_type: str) -> None:
    assert reason_of(body, content_type) is QuarantineReason.NOT_JSON


@pytest.mark.parametrize("tail", [b"", b",", b", ]", b" x]", b"}", b"] x", b"]]", b",,]"])
def test_a_batch_that_does_not_end_properly_is_not_json(tail: bytes) -> None:
    assert reason_of(b"[" + as_json(an_event()) + tail, BATCH_CONTENT_TYPE) is QuarantineReason.NOT_JSON


@pytest.mark.parametrize("token", [b"NaN", b"Infinity", b"-Infinity"])
@pytest.mark.parametrize("place", [b'"amount": %s', b'"x": {"y": [%s]}'])
def test_numbers_that_json_does_not_have_are_refused(token: bytes, place: bytes) -> None:
    body = as_json(an_event()).replace(b'"amount": 12000', place % token)
    assert reason_of(body) is QuarantineReason.NOT_JSON
    assert reason_of(b"[" + body + b"]", BATCH_CONTENT_TYPE) is QuarantineReason.NOT_JSON


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"]
)
def test_invalid_utf8_is_quarantined_wherever_it_stands(bad: bytes) -> None:
    body = as_json(an_event())
    for at in (0, len(body) // 2, len(body)):
        assert reason_of(body[:at] + bad + body[at:]) is QuarantineReason.NOT_UTF8


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_another_encoding_or_a_byte_order_mark_is_refused(codec: str) -> None:
    body = json.dumps(an_event()).encode(codec)
    assert reason_of(body) in {QuarantineReason.NOT_UTF8, QuarantineReason.NOT_JSON}


@pytest.mark.parametrize("content_type", [SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 980, 985, 990, 995, 1_000, 5_000, 30_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_beyond_the_bound_is_refused_at_any_depth(
    content_type: str, depth: int, opening: bytes
) -> None:
    if depth * (len(opening) + 1) > MAX_EVENT_BYTES - 1_000:
        depth = 10_000
    closing = b"]" if opening == b"[" else b"}"
    nested = opening * depth + b"1" + closing * depth
    body = as_json(an_event(data="HERE")).replace(b'"HERE"', nested)
    body = b"[" + body + b"," + body.replace(b'"e-1"', b'"e-2"') + b"]" if "batch" in content_type else body
    assert reason_of(body, content_type) is QuarantineReason.NOT_JSON


def test_a_megabyte_of_opening_brackets_is_refused() -> None:
    assert reason_of(b"[" * MAX_BODY_BYTES, BATCH_CONTENT_TYPE) is QuarantineReason.NOT_JSON


def test_nesting_within_the_bound_is_left_to_the_schema() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 2):
        nested = [nested]
    envelope = parse_one(an_event(data={"order_id": "o-1", "x": nested}))
    assert isinstance(validate_data("order.paid", envelope.data), InvalidData)


# Keys that stand twice


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion", "data", "time", "traceparent"])
def test_an_attribute_that_stands_twice_spoils_the_envelope(name: str) -> None:
    body = as_json(an_event(traceparent=TRACEPARENT))
    value = json.dumps(an_event(traceparent=TRACEPARENT)[name]).encode()
    assert reason_of(b'{"%s": %s, ' % (name.encode(), value) + body[1:]) is QuarantineReason.BAD_ENVELOPE


@pytest.mark.parametrize(
    ("place", "twice", "subject"),
    [
        (b'"amount": 12000', b'"amount": 1, "amount": 12000', "o-1"),
        (b'"amount": 12000', b'"amount": 12000, "amount": 12000', "o-1"),
        (b'"amount": 12000', b'"amount": 1, "\\u0061mount": 12000', "o-1"),
        (b'"seller_id": "s-1"', b'"seller_id": "s-9", "seller_id": "s-1"', "o-1"),
        (b'"order_id": "o-1"', b'"order_id": "o-9", "order_id": "o-1"', None),
        (b'"buyer_id": "b-1"', b'"buyer_id": "b-1", "order_id": "o-9"', None),
    ],
)
def test_a_key_that_stands_twice_in_data_makes_the_data_invalid(
    place: bytes, twice: bytes, subject: str | None
) -> None:
    """Parsers differ in which one wins; whoever signed it and we might not mean the same payment."""
    body = as_json(an_event()).replace(place, twice, 1)
    (envelope,) = parse_message(body, SINGLE_CONTENT_TYPE)
    judged = validate_data("order.paid", envelope.data)
    assert isinstance(judged, InvalidData)
    assert judged.detail.endswith("Key stands twice in one object")
    assert judged.subject_id == subject
    assert len(hash_of_raw("order.paid", envelope.data)) == 32


@pytest.mark.parametrize(
    "spoiled", ['"amount": 1, "amount": 12000', '"amount": ' + "9" * 5_000, '"amount": 1e999']
)
def test_a_bad_event_of_a_batch_never_harms_the_others(spoiled: str) -> None:
    events = [as_json(an_event(id=f"e-{number}")) for number in range(3)]
    events[1] = events[1].replace(b'"amount": 12000', spoiled.encode())
    envelopes = parse_message(b"[" + b",".join(events) + b"]", BATCH_CONTENT_TYPE)
    judged = [validate_data(envelope.type, envelope.data) for envelope in envelopes]
    assert [isinstance(data, EventData) for data in judged] == [True, False, True]
    assert getattr(judged[1], "subject_id", None) == "o-1"


# Sizes


def test_a_body_of_two_mebibytes_is_refused_unread() -> None:
    assert reason_of(b"\xff" * 2 * 1024 * 1024) is QuarantineReason.BODY_TOO_LARGE
    assert reason_of(b" " * (MAX_BODY_BYTES + 1), BATCH_CONTENT_TYPE) is QuarantineReason.BODY_TOO_LARGE


def test_an_event_may_have_exactly_its_bound_of_bytes() -> None:
    assert len(parse_message(event_of_size(MAX_EVENT_BYTES), SINGLE_CONTENT_TYPE)) == 1
    assert len(parse_message(b"[" + event_of_size(MAX_EVENT_BYTES) + b"]", BATCH_CONTENT_TYPE)) == 1


def test_an_event_one_byte_beyond_its_bound_is_refused() -> None:
    large = event_of_size(MAX_EVENT_BYTES + 1)
    assert reason_of(large) is QuarantineReason.EVENT_TOO_LARGE
    batch = b"[" + as_json(an_event(id="e-0")) + b"," + large + b"]"
    assert reason_of(batch, BATCH_CONTENT_TYPE) is QuarantineReason.EVENT_TOO_LARGE


def test_an_events_size_is_counted_in_bytes_not_in_characters() -> None:
    body = json.dumps(an_event(pad="é" * (MAX_EVENT_BYTES // 2)), ensure_ascii=False).encode()
    assert reason_of(b"[" + body + b"]", BATCH_CONTENT_TYPE) is QuarantineReason.EVENT_TOO_LARGE


def test_a_full_body_of_large_events_is_read() -> None:
    count = MAX_BODY_BYTES // (MAX_EVENT_BYTES + 1)
    body = b"[" + b",".join(event_of_size(MAX_EVENT_BYTES, f"e-{n}") for n in range(count)) + b"]"
    assert len(parse_message(body, BATCH_CONTENT_TYPE)) == count


def test_one_event_more_than_a_batch_may_have_is_refused() -> None:
    body = as_json([an_event(id=f"e-{number}") for number in range(MAX_BATCH_EVENTS + 1)])
    assert reason_of(body, BATCH_CONTENT_TYPE) is QuarantineReason.BATCH_TOO_LARGE


@pytest.mark.parametrize("other", [{"source": "/shops/other"}, {"type": "order.unpaid"}])
def test_a_batch_of_two_sources_or_types_is_refused(other: dict[str, str]) -> None:
    body = as_json([an_event(), an_event(id="e-2") | other])
    assert reason_of(body, BATCH_CONTENT_TYPE) is QuarantineReason.MIXED_BATCH


# The attributes

NOT_TEXT = [None, 7, 1.5, True, [], {}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("id", "source", "type", "specversion") for value in [*NOT_TEXT, ""]],
        *[("id", value) for value in ("x" * 65, "ü", "a\nb", "a\x00", "e-1\n", "\ud800")],
        *[("specversion", value) for value in ("1", "0.3", "1.0 ", "2.0", 1.0)],
        *[
            ("source", value)
            for value in ("/shops/", "/shops/ACME", "/shops/a/b", "shops/acme", "/shop/acme", "/holdfast")
        ],
        *[
            ("source", value)
            for value in ("/shops/acme\n", "/shops/" + "x" * 65, "/shops/..", "/sellers/s-1")
        ],
        *[("source", value) for value in ("https://acme.example/shops/acme", "/shops/acmé", "/banks/")],
        *[("type", value) for value in ("x" * 65, "order.paid\n", "order\x00paid", "заказ")],
        *[
            ("time", value)
            for value in (1, 1.5, True, [], {}, "", "now", "2026-11-23", "2026-11-23T08:00:00")
        ],
        *[("datacontenttype", value) for value in ("text/plain", "", 7, [], {}, "application/json\n")],
    ],
)
def test_an_attribute_of_the_wrong_kind_spoils_the_envelope(name: str, value: object) -> None:
    assert reason_of(as_json(an_event() | {name: value})) is QuarantineReason.BAD_ENVELOPE


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion", "data"])
def test_a_required_attribute_that_is_missing_spoils_the_envelope(name: str) -> None:
    event = an_event()
    del event[name]
    assert reason_of(as_json(event)) is QuarantineReason.BAD_ENVELOPE
    assert reason_of(as_json([an_event(), event]), BATCH_CONTENT_TYPE) is QuarantineReason.BAD_ENVELOPE


@pytest.mark.parametrize("name", ["data_base64", "Upper", "with-dash", "", "x" * 65, "a\n", "ü", "\ud800"])
def test_a_name_that_no_attribute_may_have_spoils_the_envelope(name: str) -> None:
    assert reason_of(as_json(an_event() | {name: "x"})) is QuarantineReason.BAD_ENVELOPE


@pytest.mark.parametrize("event", [None, 7, 1.5, True, "x", [], [[]]], ids=repr)
def test_an_event_is_an_object(event: object) -> None:
    assert reason_of(as_json(event)) is QuarantineReason.BAD_ENVELOPE
    assert reason_of(as_json([event]), BATCH_CONTENT_TYPE) is QuarantineReason.BAD_ENVELOPE


def test_a_type_that_we_do_not_know_is_still_an_envelope() -> None:
    """Whether we know the type is asked by the intake, which quarantines it under its own reason."""
    assert parse_one(an_event(type="com.example.v2.thing")).type == "com.example.v2.thing"


# Anything at all


@given(st.binary(max_size=400), st.sampled_from([SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE, None]))
def test_arbitrary_bytes_are_read_or_refused_but_never_fail_otherwise(
    body: bytes, content_type: str | None
) -> None:
    reason_of(body, content_type)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@given(
    JSON_VALUES, st.sampled_from(["order_id", "splits", "amount", "paid_at", "currency", "note", "\ud800"])
)
def test_arbitrary_data_is_judged_and_hashed_but_never_fails_otherwise(value: object, name: str) -> None:
    envelope = parse_one(an_event(data=valid_data("order.paid") | {name: value}))
    judged = validate_data("order.paid", envelope.data)
    if isinstance(judged, InvalidData):
        assert judged.detail.isprintable()
        assert len(hash_of_raw("order.paid", envelope.data)) == 32
    else:
        assert len(judged.content_hash()) == 32


# What we write ourselves


def test_what_we_write_is_a_cloud_event_in_compact_json() -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    event = OwnEvent(id="e-1", type="order.held", time=noon, data=Raw(b'{"order_id":"o-1"}'))
    one = encode_event(event)
    assert one == (
        b'{"specversion":"1.0","id":"e-1","source":"/holdfast","type":"order.held",'
        b'"time":"2026-11-23T12:00:00Z","datacontenttype":"application/json","data":{"order_id":"o-1"}}'
    )
    batch = encode_batch([event] * 2)
    assert batch == b"[" + one + b"," + one + b"]"


def test_what_we_write_keeps_text_of_any_script() -> None:
    data = json.dumps({"detail": 'Größe 包裹 "quoted" \\'}, ensure_ascii=False)
    body = encode_event(
        OwnEvent(id='e"1', type="order.rejected", time=datetime.now(UTC), data=Raw(data.encode()))
    )
    read = json.loads(body)
    assert read["data"] == json.loads(data)
    assert read["id"] == 'e"1'
