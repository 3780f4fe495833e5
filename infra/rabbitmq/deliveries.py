"""
Reading deliveries where they lie.

A delivery is three frames. pika makes a dozen objects of them and looks its callbacks up by name for each,
which costs more than checking the message's signature does. Here the usual delivery is read straight from
the bytes: to the one consumer of a channel, its body in one frame, its properties and headers plain text.
All else is left to pika, byte by byte as it came, so what this does not know it cannot get wrong. A test
holds the two together.

Neighbours in a queue are alike: same exchange, same names of headers, values of the same lengths. So the
first of its kind is taken apart field by field, and what is learned is its shape: which bytes say the same
in all of them, and where those lie that do not. Whatever has this shape is then read in one go.

The forms are those of AMQP 0-9-1, sections 4.2.3 (frames), 4.2.5.5 (tables) and 4.2.6.1 (properties), with
RabbitMQ's errata.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pika
import pika.spec
from pika.adapters.utils.io_services_utils import _AsyncSSLTransport

from infra.rabbitmq.messages import Delivery, delivery_of_texts

_RECEIVE_BYTES = 64 * 1024

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQH")
_LENGTH = struct.Struct(">I")
_TAG_BYTES = _BODY_SIZE_BYTES = _TIMESTAMP_BYTES = 8
_END = pika.spec.FRAME_END
# Of a frame: its header, and where its size stands in it; of a content header, where the body's size stands.
_FRAME_HEADER_BYTES, _FRAME_SIZE_AT, _BODY_SIZE_AT = _FRAME.size, 3, 4
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

# Senders differ in how long their ids are, and in little else.
_MAX_SHAPES = 256
_as_text = bytes.decode

# Called with the delivery tag and the delivery.
Take = Callable[[int, Delivery], None]


class _Shape(NamedTuple):
    """
    What deliveries have in common, from the first byte to where the body begins.

    `cut` takes them apart, what is alike and what is not in turn. Alike is `constants`; not alike are the
    delivery tag, the body's size, a text for each of `names`, the message id and the timestamp where there
    are such, and the size of the body's frame.
    """

    cut: Callable[[bytes, int], tuple[Any, ...]]
    size: int
    constants: tuple[bytes, ...]
    exchange: str
    routing_key: str
    content_type: str | None
    type: str | None
    names: tuple[str, ...]
    has_message_id: bool
    redelivered: bool


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
        self._last: _Shape | None = None
        # By the sizes of the first two frames.
        self._known: dict[tuple[int, int], _Shape] = {}

    def read(self, data: bytes) -> tuple[int, bool]:
        """
        Take every usual delivery from the start of what came.

        Returns:
            How many bytes they were, and whether what is left is the beginning of one more, to be read when
            the rest of it is here.
        """
        position = 0
        while True:
            if self._last is not None:
                position, answer = self._read_alike(data, position, self._last)
                if answer is not None:
                    return position, answer
            found = self._shape_of(data, position)
            if isinstance(found, bool):
                return position, found
            self._last = found

    def _read_alike(self, data: bytes, position: int, shape: _Shape) -> tuple[int, bool | None]:
        """Take deliveries of this shape; the answer is None where the next is not, or not here as a whole."""
        end = len(data)
        queue_name, take, body_max = self._queue_name, self._take, self._body_max
        cut, size, constants, exchange, routing_key, content_type, type_, names, has_id, redelivered = shape
        while (body := position + size) <= end:
            fields = cut(data, position)
            if fields[::2] != constants:
                break
            tag, body_size, *texts, frame_size = fields[1::2]
            body_end = body + body_size
            if not 0 < body_size == frame_size <= body_max:
                return position, False
            if end <= body_end:
                return position, True
            if data[body_end] != _END:
                return position, False
            try:
                headers = dict(zip(names, map(_as_text, texts)))  # noqa: B905 - what follows is no header's
                message_id = texts[len(names)].decode() if has_id else None
            except UnicodeDecodeError:
                return position, False
            take(
                tag,
                delivery_of_texts(
                    queue_name,
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
        return position, None

    def _shape_of(self, data: bytes, position: int) -> _Shape | bool:  # noqa: PLR0911 - ways to be unusual
        """
        Return the shape of the delivery that begins here, all of it up to its body being here.

        Returns:
            Else whether this is the beginning of a delivery; where it is none, or not a usual one, False, and
            pika says what it is.
        """
        end = len(data)
        # Where this is not a whole method frame, pika waits for the rest itself.
        if not data.startswith(self._method_frame, position) or end < position + _FRAME_HEADER_BYTES:
            return False
        method_size = _LENGTH.unpack_from(data, position + _FRAME_SIZE_AT)[0]
        arguments, header = position + _FRAME_HEADER_BYTES, position + method_size + _FRAME_OVERHEAD
        if end < header or not data.startswith(self._deliver, arguments):
            return False
        content = header + _FRAME_HEADER_BYTES
        if end < content + _CONTENT.size:
            return True
        frame_type, channel_number, header_size = _FRAME.unpack_from(data, header)
        body_frame = content + header_size + 1
        class_id, _, body_size, flags = _CONTENT.unpack_from(data, content)
        if (
            frame_type != pika.spec.FRAME_HEADER
            or channel_number != self._channel_number
            or class_id != pika.BasicProperties.INDEX
            or not 0 < body_size <= self._body_max
            or header_size > self._body_max
            or flags & ~_USUAL
        ):
            return False
        if end < body_frame + _FRAME_HEADER_BYTES:
            return True
        known = self._known.get((method_size, header_size))
        if known is not None and known.cut(data, position)[::2] == known.constants:
            return known
        if (
            data[header - 1] != _END
            or data[body_frame - 1] != _END
            or _FRAME.unpack_from(data, body_frame)[:2] != (pika.spec.FRAME_BODY, self._channel_number)
        ):
            return False
        learned = _learn(data, position, arguments + len(self._deliver), content, body_frame)
        if learned is None:
            return False
        if len(self._known) == _MAX_SHAPES:
            self._known.clear()
        self._known[method_size, header_size] = learned
        return learned


def _learn(data: bytes, position: int, tag: int, content: int, body_frame: int) -> _Shape | None:
    """
    Take a delivery apart field by field; None where something is not as usual.

    The other positions are of the delivery tag, of the content header's arguments and of the body's frame.
    """
    try:
        exchange, after = _short_text(data, tag + _TAG_BYTES + 1)
        routing_key, after = _short_text(data, after)
        properties = _properties(data, content, body_frame - 1)
        if properties is None or after + 1 + _FRAME_HEADER_BYTES != content:
            return None
        layout, after = ">", position
        for start, length, form in (
            (tag, _TAG_BYTES, "Q"),
            (content + _BODY_SIZE_AT, _BODY_SIZE_BYTES, "Q"),
            *((start, length, f"{length}s") for start, length in properties.varying),
            (body_frame + _FRAME_SIZE_AT, _LENGTH.size, "I"),
        ):
            layout += f"{start - after}s{form}"
            after = start + length
        cut = struct.Struct(layout)
        return _Shape(
            cut.unpack_from,
            cut.size,
            cut.unpack_from(data, position)[::2],
            exchange,
            routing_key,
            properties.content_type,
            properties.type,
            properties.names,
            properties.has_message_id,
            redelivered=bool(data[tag + _TAG_BYTES] & 1),
        )
    except (UnicodeDecodeError, IndexError, struct.error):
        return None


# Where values lie that differ by message: start and length of each.
_Varying = list[tuple[int, int]]


class _Properties(NamedTuple):
    """All of a message's properties that anything here asks for."""

    content_type: str | None
    type: str | None
    names: tuple[str, ...]
    has_message_id: bool
    varying: _Varying


def _properties(data: bytes, content: int, end: int) -> _Properties | None:
    """Read properties in the order of their flags; None where something is not as usual."""
    flags = _CONTENT.unpack_from(data, content)[3]
    after = content + _CONTENT.size
    content_type = type_ = None
    names: list[str] = []
    varying: _Varying = []
    if flags & _CONTENT_TYPE:
        content_type, after = _short_text(data, after)
    if flags & _HEADERS:
        start, after = after + _LENGTH.size, after + _LENGTH.size + _LENGTH.unpack_from(data, after)[0]
        if not _headers(data, start, after, names, varying):
            return None
    if flags & _DELIVERY_MODE:
        after += 1
    if flags & _MESSAGE_ID:
        varying.append((after + 1, data[after]))
        after += 1 + data[after]
    if flags & _TIMESTAMP:
        varying.append((after, _TIMESTAMP_BYTES))
        after += _TIMESTAMP_BYTES
    if flags & _TYPE:
        type_, after = _short_text(data, after)
    if after != end:
        return None
    return _Properties(content_type, type_, tuple(names), bool(flags & _MESSAGE_ID), varying)


def _headers(data: bytes, start: int, end: int, names: list[str], varying: _Varying) -> bool:
    """Collect a table's names and where their values lie; False where a value is no text."""
    while start < end:
        name, kind = _short_text(data, start)
        if data[kind] != _TEXT:
            return False
        value = kind + 1 + _LENGTH.size
        length = _LENGTH.unpack_from(data, kind + 1)[0]
        names.append(name)
        varying.append((value, length))
        start = value + length
    return start == end


def _short_text(data: bytes, start: int) -> tuple[str, int]:
    """Return a short string and where it ends."""
    end = start + 1 + data[start]
    return data[start + 1 : end].decode(), end


class ReadingConnection(pika.SelectConnection):  # type: ignore[misc]  # the base is untyped
    """pika's connection, where `reader`, once it is set, sees what comes first."""

    reader: DeliveryReader | None = None
    _has_read_again = False

    def read_much_at_once(self) -> None:
        """
        Ask the socket for more than pika's 4 KiB, which are half a dozen orders.

        Each asking gives the interpreter away, and whoever works has it until it has waited long enough.
        """
        self._transport._MAX_RECV_BYTES = _RECEIVE_BYTES  # noqa: SLF001 - pika has no setting for it
        if isinstance(self._transport, _AsyncSSLTransport):
            # Over TLS each read asks for another, and each time the socket is ready one more chain begins.
            # Until nothing is left, every turn of the loop reads more than the last one. One is enough.
            self._read_again = self._transport._on_socket_readable  # noqa: SLF001 - the same
            self._transport._on_socket_readable = self._read_again_once_a_turn  # noqa: SLF001 - the same

    def begin_turn(self) -> None:
        """Say that the loop turns anew."""
        self._has_read_again = False

    def _read_again_once_a_turn(self) -> None:
        if not self._has_read_again:
            self._has_read_again = True
            self._read_again()

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
