"""Whatever the reader takes, pika would have read the same; whatever it is unsure of, it leaves to pika."""

from typing import Any, NamedTuple

import pika
import pika.frame
from hypothesis import example, given
from hypothesis import strategies as st
from pika.adapters.utils import io_services_utils

from infra.rabbitmq.deliveries import DeliveryReader
from infra.rabbitmq.messages import DELIVER_EXCHANGE, delivery_from_wire

QUEUE, CHANNEL, TAG, FRAME_MAX = "payment.orders", 1, "holdfast-1", 131_072


class Arrival(NamedTuple):
    tag: int
    redelivered: bool
    exchange: str
    routing_key: str


_TEXT = st.text(max_size=20)
_PROPERTIES = st.builds(
    pika.BasicProperties,
    content_type=st.none() | _TEXT,
    content_encoding=st.none() | st.just("gzip"),
    headers=st.none()
    | st.dictionaries(_TEXT, _TEXT | st.integers(-9, 9) | st.booleans() | st.none(), max_size=4),
    delivery_mode=st.none() | st.just(2),
    priority=st.none() | st.just(3),
    message_id=st.none() | _TEXT,
    timestamp=st.none() | st.integers(0, 2**40),
    type=st.none() | _TEXT,
    user_id=st.none() | st.just("guest"),
    app_id=st.none() | _TEXT,
)
_ARRIVALS = st.builds(
    Arrival,
    st.integers(1, 2**63 - 1),
    st.booleans(),
    st.sampled_from(["", "holdfast.inbound", DELIVER_EXCHANGE, "élan"]),
    _TEXT,
)
_MESSAGES = st.lists(
    st.tuples(_ARRIVALS, _PROPERTIES, st.binary(max_size=300)), max_size=4, unique_by=lambda one: one[0].tag
)


def _frames(
    arrival: Arrival,
    properties: Any,
    body: bytes,
    *,
    consumer_tag: str = TAG,
    channel: int = CHANNEL,
    cut: int | None = None,
) -> bytes:
    method = pika.spec.Basic.Deliver(
        consumer_tag=consumer_tag,
        delivery_tag=arrival.tag,
        redelivered=arrival.redelivered,
        exchange=arrival.exchange,
        routing_key=arrival.routing_key,
    )
    parts = [body] if cut is None else [body[:cut], body[cut:]]
    frames = [
        pika.frame.Method(channel, method),
        pika.frame.Header(channel, len(body), properties),
        *(pika.frame.Body(channel, part) for part in parts if part),
    ]
    return b"".join(frame.marshal() for frame in frames)


def a_reader(taken: list[tuple[int, Any]]) -> DeliveryReader:
    return DeliveryReader(
        QUEUE,
        channel_number=CHANNEL,
        consumer_tag=TAG,
        frame_max=FRAME_MAX,
        take=lambda tag, delivery: taken.append((tag, delivery)),
    )


class Both:
    """Reads a stream in the reader's way, and what it leaves in pika's; keeps what each has seen."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []
        self.left: list[Any] = []
        self.reader = a_reader(self.taken)
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            taken, unfinished = self.reader.read(self._buffer)
            self._buffer = self._buffer[taken:]
            if unfinished or not self._buffer:
                return
            size, frame = pika.frame.decode_frame(self._buffer)
            if frame is None:
                return
            self._buffer = self._buffer[size:]
            self.left.append(frame)

    @property
    def unread(self) -> bytes:
        return self._buffer


def _as_pika_says(data: bytes) -> tuple[Any, ...]:
    frames = []
    while data:
        size, frame = pika.frame.decode_frame(data)
        data = data[size:]
        frames.append(frame)
    method, header, *bodies = frames
    deliver, properties = method.method, header.properties
    return deliver.delivery_tag, delivery_from_wire(
        QUEUE,
        deliver.exchange,
        deliver.routing_key,
        b"".join(body.fragment for body in bodies),
        content_type=properties.content_type,
        type_=properties.type,
        headers=properties.headers,
        message_id=properties.message_id,
        redelivered=deliver.redelivered,
    )


@given(_MESSAGES, st.integers(1, 700))
def test_what_it_takes_is_what_pika_reads_however_the_stream_is_cut(
    messages: list[tuple[Any, ...]], piece: int
) -> None:
    each = [_frames(*message) for message in messages]
    stream, both = b"".join(each), Both()
    for start in range(0, len(stream), piece):
        both.feed(stream[start : start + piece])
    assert both.unread == b""
    expected = {message[0].tag: _as_pika_says(frames) for message, frames in zip(messages, each, strict=True)}
    assert all(taken == expected[taken[0]] for taken in both.taken)
    left = [frame.method.delivery_tag for frame in both.left if isinstance(frame, pika.frame.Method)]
    taken = [tag for tag, _ in both.taken]
    assert sorted([*taken, *left]) == sorted(message[0].tag for message in messages)


ORDINARY = (
    Arrival(7, False, "holdfast.inbound", "order.paid"),
    pika.BasicProperties(
        content_type="application/cloudevents+json",
        headers={"webhook-id": "e-1", "webhook-timestamp": "1760000000", "webhook-signature": "v1,xyz"},
        delivery_mode=2,
        message_id="e-1",
        timestamp=1_760_000_000,
        type="order.paid",
    ),
    b'{"id":"e-1"}',
)


def test_an_ordinary_message_takes_the_short_way() -> None:
    both = Both()
    both.feed(_frames(*ORDINARY) * 3)
    assert both.left == []
    assert both.taken == [_as_pika_says(_frames(*ORDINARY))] * 3


def test_what_is_not_as_usual_is_left_to_pika_whole() -> None:
    body = ORDINARY[-1]
    others = [
        _frames(*ORDINARY, consumer_tag="somebody-else"),
        _frames(*ORDINARY, channel=2),
        _frames(*ORDINARY, cut=5),
        _frames(*ORDINARY[:2], b""),
        _frames(ORDINARY[0], pika.BasicProperties(headers={"x-delivery-count": 3}), body),
        _frames(ORDINARY[0], pika.BasicProperties(reply_to="q"), body),
        pika.frame.Heartbeat().marshal(),
        pika.frame.Method(CHANNEL, pika.spec.Basic.ConsumeOk(TAG)).marshal(),
    ]
    both = Both()
    both.feed(b"".join(other + _frames(*ORDINARY) for other in others))
    assert len(both.taken) == len(others)
    assert len(both.left) == 3 + 3 + 4 + 2 + 3 + 3 + 1 + 1


@given(st.integers(0, len(_frames(*ORDINARY)) - 1), st.integers(0, 255), st.sampled_from([0, 1]))
@example(0, 3, 0)
def test_no_broken_byte_is_read_as_anything_but_what_pika_reads(
    position: int, byte: int, seen_before: int
) -> None:
    frames = bytearray(_frames(*ORDINARY))
    frames[position] = byte
    taken: list[tuple[Any, ...]] = []
    reader = a_reader(taken)
    reader.read(_frames(*ORDINARY) * seen_before)
    taken.clear()
    reader.read(bytes(frames))
    if taken:
        assert taken == [_as_pika_says(bytes(frames))]


# Few lengths and few names: many are alike, and many are nearly so.
_SHORT = st.text("aé\x00", max_size=2)
_ALIKE = st.lists(
    st.tuples(
        st.builds(
            Arrival,
            st.integers(1, 2**63 - 1),
            st.booleans(),
            st.sampled_from(["holdfast.inbound", DELIVER_EXCHANGE]),
            st.sampled_from(["order.paid", "order.held"]),
        ),
        st.builds(
            pika.BasicProperties,
            headers=st.none() | st.dictionaries(st.sampled_from("ab"), _SHORT, max_size=2),
            message_id=st.none() | _SHORT,
            timestamp=st.none() | st.integers(0, 2**40),
            type=st.none() | _SHORT,
        ),
        st.binary(min_size=1, max_size=3),
    ),
    min_size=2,
    max_size=12,
)


@given(_ALIKE)
def test_messages_that_are_nearly_alike_are_told_apart(messages: list[tuple[Any, ...]]) -> None:
    each = [_frames(*message) for message in messages]
    both = Both()
    both.feed(b"".join(each))
    assert both.left == []
    assert both.taken == [_as_pika_says(frames) for frames in each]


def test_it_keeps_few_shapes_however_many_come() -> None:
    arrival, _, body = ORDINARY
    each = [
        _frames(
            arrival._replace(routing_key="k" * length), pika.BasicProperties(message_id="m" * id_length), body
        )
        for length in range(25)
        for id_length in range(25)
    ]
    both = Both()
    both.feed(b"".join(each + each))
    assert both.left == []
    assert both.taken == [_as_pika_says(frames) for frames in each] * 2
    assert len(both.reader._known) <= 256


def test_pika_still_asks_its_transport_how_much_to_receive() -> None:
    """It is set for want of a setting; should the name go, receiving would silently be slow again."""
    for transport in (io_services_utils._AsyncPlaintextTransport, io_services_utils._AsyncSSLTransport):
        assert transport._MAX_RECV_BYTES > 0
