import struct

import pika
import pytest

from infra.rabbitmq.amqp import UNDECODABLE_PROPERTIES_HEADER, GuardedProperties


def _with_header(field: bytes) -> bytes:
    """Encoded properties with one header `h` holding a raw AMQP field."""
    entry = b"\x01h" + field
    return struct.pack(">H", pika.BasicProperties.FLAG_HEADERS) + struct.pack(">I", len(entry)) + entry


def _nested(depth: int) -> bytes:
    field = b"V"
    for _ in range(depth):
        entry = b"\x01h" + field
        field = b"F" + struct.pack(">I", len(entry)) + entry
    return field


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"T" + struct.pack(">Q", 2**62), id="time in the far future"),
        pytest.param(b"d" + struct.pack(">d", float("nan")), id="not a number"),
        pytest.param(b"f" + struct.pack(">f", float("inf")), id="infinity"),
        pytest.param(_nested(2000), id="nested 2,000 deep"),
        pytest.param(b"?", id="a type that does not exist"),
    ],
)
def test_headers_that_break_the_client_library_become_evidence(field: bytes) -> None:
    """Stock pika raises in its read loop: the connection closes, and the message breaks the next one."""
    encoded = _with_header(field)
    with pytest.raises(Exception, match=r".*"):
        pika.BasicProperties().decode(encoded)
    assert GuardedProperties().decode(encoded).headers == {UNDECODABLE_PROPERTIES_HEADER: encoded}


def test_good_properties_are_decoded_as_ever() -> None:
    encoded = b"".join(pika.BasicProperties(type="t", headers={"a": 1, "b": ["c"]}).encode())
    decoded = GuardedProperties().decode(encoded)
    assert (decoded.type, decoded.headers) == ("t", {"a": 1, "b": ["c"]})
