"""The one place where pika is set up: connection parameters, and message properties that cannot hurt us."""

import logging
import socket
from collections.abc import Mapping
from typing import Any

import pika
import pika.exceptions
import pika.spec

HEARTBEAT_SECONDS = 30
SOCKET_TIMEOUT_SECONDS = 5.0
PERSISTENT = 2
MAX_HEADER_BYTES = 64 << 10
UNDECODABLE_PROPERTIES_HEADER = "holdfast-undecodable-properties"

# What a broken connection, a refused channel or a dead socket looks like from here; the blocking adapter
# also asserts its own state, and the assertions fail while a connection breaks.
CONNECTION_ERRORS: tuple[type[BaseException], ...] = (pika.exceptions.AMQPError, OSError, AssertionError)


class GuardedProperties(pika.spec.BasicProperties):  # type: ignore[misc]  # the base is untyped
    """
    Message properties that survive what a hostile publisher puts in them.

    The broker passes header values through unread, and pika decodes them in
    its read loop: a time-stamp in the year 300,000,000, a NaN or a table nested
    20,000 deep raises there, closes the connection, and the message comes back to
    break the next one. Such properties become empty, with the raw bytes in one
    header, so that the message reaches a handler, which finds no signature.
    """

    def decode(self, encoded: bytes, offset: int = 0) -> Any:  # noqa: ANN401 - pika is untyped
        try:
            return super().decode(encoded, offset)
        except Exception:  # noqa: BLE001 - whatever it is, it must not reach the read loop
            evidence = bytes(encoded[: MAX_HEADER_BYTES // 2])
            self.__init__(headers={UNDECODABLE_PROPERTIES_HEADER: evidence})  # type: ignore[misc]
            return self


def can_be_written(headers: Mapping[str, object]) -> bool:
    """
    Whether these headers fit into one frame with room to spare.

    They need not, though they were read: a frame holds 128 KiB, a stranger may have filled it to the last
    byte, and one byte more makes the broker close the connection with everything that is in flight on it.
    """
    try:
        encoded: list[bytes] = pika.BasicProperties(headers=dict(headers)).encode()
    except Exception:  # noqa: BLE001 - pika raises whatever its struct formats raise
        return False
    return sum(map(len, encoded)) <= MAX_HEADER_BYTES


def connection_parameters(broker_url: str, *, name: str) -> Any:  # noqa: ANN401 - pika is untyped
    """
    Parameters for one connection.

    The name is what an operator sees in the broker's list of connections.
    """
    # A lost connection is a dozen of pika's error lines; ours is one, when the state changes.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    # pika looks the class up by number for every content header that it reads.
    pika.spec.props[pika.spec.BasicProperties.INDEX] = GuardedProperties
    parameters = pika.URLParameters(broker_url)
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = SOCKET_TIMEOUT_SECONDS
    parameters.stack_timeout = SOCKET_TIMEOUT_SECONDS * 2
    # Reconnecting is ours: pika's own retries would hold a thread that has to stop.
    parameters.connection_attempts = 1
    parameters.blocked_connection_timeout = None
    parameters.client_properties = {"connection_name": f"holdfast {name} on {socket.gethostname()}"}
    return parameters
