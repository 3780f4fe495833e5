"""
Reading deliveries where they lie.

A delivery is three frames. pika makes a dozen objects of them and looks its callbacks up by name for each,
which costs more than checking the message's signature does. Here the usual delivery is read straight from
the bytes: to the one consumer of a channel, its body in one frame, its properties and headers plain text.
All else is left to pika, byte by byte as it came, so what this does not know it cannot get wrong. A test
holds the two together.

The forms are those of AMQP 0-9-1, sections 4.2.3 (frames), 4.2.5.5 (tables) and 4.2.6.1 (properties), with
RabbitMQ's errata.
"""

import struct
from collections.abc import Callable

import pika
import pika.spec

from infra.rabbitmq.messages import Delivery, delivery_of_texts

_RECEIVE_BYTES = 64 * 1024

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQH")
_LENGTH = struct.Struct(">I")
_TAG = struct.Struct(">QB")
_END = pika.spec.FRAME_END
# A body frame's own header and end; what is left of the largest frame is body.
_FRAME_OVERHEAD = 8
_DELIVER = struct.pack(">I", pika.spec.Basic.Deliver.INDEX)
_TEXT = ord("S")

_CONTENT_TYPE = pika.BasicProperties.FLAG_CONTENT_TYPE
_HEADERS = pika.BasicProperties.FLAG_HEADERS
_DELIVERY_MODE = pika.BasicProperties.FLAG_DELIVERY_MODE
_MESSAGE_ID = pika.BasicProperties.FLAG_MESSAGE_ID
_TIMESTAMP = pika.BasicProperties.FLAG_TIMESTAMP
_TYPE = pika.BasicProperties.FLAG_TYPE
_USUAL = _CONTENT_TYPE | _HEADERS | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE


# Content type, type, headers, message id: all that anything here asks for.
_Properties = tuple[str | None, str | None, dict[str, object], str | None]

# Called with the delivery tag and the delivery.
Take = Callable[[int, Delivery], None]


class DeliveryReader:
    """
    Reads the usual deliveries to one consumer of one channel and hands each to `take`.

    Args:
        queue_name: what the deliveries are said to come from.
        frame_max: the largest frame that was agreed on, in bytes.
    """

    def __init__(
        self, queue_name: str, *, channel_number: int, consumer_tag: str, frame_max: int, take: Take
    ) -> None:
        self._queue_name = queue_name
        channel = struct.pack(">H", channel_number)
        name = consumer_tag.encode()
        self._method_frame = bytes([pika.spec.FRAME_METHOD]) + channel
        self._deliver = _DELIVER + bytes([len(name)]) + name
        self._channel_number = channel_number
        self._body_max = frame_max - _FRAME_OVERHEAD
        self._take = take

    def read(self, data: bytes) -> tuple[int, bool]:  # noqa: PLR0911 - each a way of not being as usual
        """
        Take every usual delivery from the start of what came.

        Returns:
            How many bytes they were, and whether what is left is the beginning of one more, to be read when
            the rest of it is here.
        """
        position, end = 0, len(data)
        while True:
            # Where this is not a whole method frame, pika says what it is.
            if not data.startswith(self._method_frame, position) or end < position + 7:
                return position, False
            arguments = position + 7
            header = arguments + _LENGTH.unpack_from(data, position + 3)[0] + 1
            if end < header or not data.startswith(self._deliver, arguments):
                return position, False
            content = header + 7
            if end < content + _CONTENT.size:
                return position, True
            frame_type, channel_number, size = _FRAME.unpack_from(data, header)
            body_frame = content + size + 1
            class_id, _, body_size, flags = _CONTENT.unpack_from(data, content)
            if (
                frame_type != pika.spec.FRAME_HEADER
                or channel_number != self._channel_number
                or class_id != pika.BasicProperties.INDEX
                or not 0 < body_size <= self._body_max
                or size > self._body_max
                or flags & ~_USUAL
            ):
                return position, False
            body = body_frame + 7
            body_end = body + body_size
            if end <= body_end:
                return position, True
            if (
                _FRAME.unpack_from(data, body_frame)
                != (pika.spec.FRAME_BODY, self._channel_number, body_size)
                or data[header - 1] != _END
                or data[body_frame - 1] != _END
                or data[body_end] != _END
            ):
                return position, False
            try:
                arrival = _arrival(data, arguments + len(self._deliver), header - 1)
                properties = _properties(data, content + _CONTENT.size, body_frame - 1, flags)
            except (UnicodeDecodeError, IndexError, struct.error):
                return position, False
            if arrival is None or properties is None:
                return position, False
            tag, redelivered, exchange, routing_key = arrival
            content_type, type_, headers, message_id = properties
            self._take(
                tag,
                delivery_of_texts(
                    self._queue_name,
                    exchange,
                    routing_key,
                    data[body:body_end],
                    content_type,
                    type_,
                    headers,
                    message_id,
                    redelivered,
                ),
            )
            position = body_end + 1


def _arrival(data: bytes, start: int, end: int) -> tuple[int, bool, str, str] | None:
    """Read what follows the consumer tag: delivery tag, redelivered, exchange, routing key."""
    tag, bits = _TAG.unpack_from(data, start)
    start += _TAG.size
    exchange = start + 1 + data[start]
    routing_key = exchange + 1 + data[exchange]
    if routing_key != end:
        return None
    return tag, bool(bits & 1), data[start + 1 : exchange].decode(), data[exchange + 1 : end].decode()


def _properties(data: bytes, start: int, end: int, flags: int) -> _Properties | None:
    """Read properties in the order of their flags; None where something is not as usual."""
    content_type = type_ = message_id = None
    headers: dict[str, object] = {}
    if flags & _CONTENT_TYPE:
        after = start + 1 + data[start]
        content_type = data[start + 1 : after].decode()
        start = after
    if flags & _HEADERS:
        table_end = start + 4 + _LENGTH.unpack_from(data, start)[0]
        start += 4
        while start < table_end:
            value = start + 1 + data[start]
            name = data[start + 1 : value].decode()
            if data[value] != _TEXT:
                return None
            after = value + 5 + _LENGTH.unpack_from(data, value + 1)[0]
            headers[name] = data[value + 5 : after].decode()
            start = after
        if start != table_end:
            return None
    if flags & _DELIVERY_MODE:
        start += 1
    if flags & _MESSAGE_ID:
        after = start + 1 + data[start]
        message_id = data[start + 1 : after].decode()
        start = after
    if flags & _TIMESTAMP:
        start += 8
    if flags & _TYPE:
        after = start + 1 + data[start]
        type_ = data[start + 1 : after].decode()
        start = after
    return (content_type, type_, headers, message_id) if start == end else None


class ReadingConnection(pika.SelectConnection):  # type: ignore[misc]  # the base is untyped
    """pika's connection, where `reader`, once it is set, sees what comes first."""

    reader: DeliveryReader | None = None

    def read_much_at_once(self) -> None:
        """
        Ask the socket for more than pika's 4 KiB, which are half a dozen orders.

        Each asking gives the interpreter away, and whoever works has it until it has waited long enough.
        """
        self._transport._MAX_RECV_BYTES = _RECEIVE_BYTES  # noqa: SLF001 - pika has no setting for it

    def cut(self) -> None:
        """
        End the connection without the broker's word, where it did not come.

        Left alone it would stay open until Python finds it, and the broker would wait for what it delivered.
        """
        if self._transport is not None and not self.is_closed:
            self._transport.abort()
            # The socket is closed in what this calls.
            self.ioloop.process_timeouts()

    def _on_data_available(self, data_in: bytes) -> None:
        self._frame_buffer += data_in
        while self._frame_buffer:
            if self.reader is not None:
                taken, unfinished = self.reader.read(self._frame_buffer)
                if taken:
                    self._trim_frame_buffer(taken)
                if unfinished or not self._frame_buffer:
                    return
            taken, frame = self._read_frame()
            if not frame:
                return
            self._trim_frame_buffer(taken)
            self._process_frame(frame)
