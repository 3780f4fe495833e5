"""The one place where pika is set up: connection parameters, and message properties that cannot hurt us."""

import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pika
import pika.exceptions
import pika.spec

HEARTBEAT_SECONDS = 30
SOCKET_TIMEOUT_SECONDS = 5.0
PERSISTENT = 2
CA_FILE_PARAMETER = "cacertfile"
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

    The name is what an operator sees in the broker's list of connections. An `amqps` URL is verified against
    the system's certificate authorities, or those in the file that its parameter `cacertfile` names, and for
    the host that the URL names; there is no way to leave that out.

    Raises:
        ValueError: a URL that can't be used, or a `cacertfile` that can't be read.
    """
    # A lost connection is a dozen of pika's error lines; ours is one, when the state changes.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    # pika looks the class up by number for every content header that it reads.
    pika.spec.props[pika.spec.BasicProperties.INDEX] = GuardedProperties
    url, ca_file = _take_ca_file(broker_url)
    parameters = pika.URLParameters(url)
    if parameters.ssl_options is not None:
        parameters.ssl_options = pika.SSLOptions(_verifying_context(ca_file), parameters.host)
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = SOCKET_TIMEOUT_SECONDS
    parameters.stack_timeout = SOCKET_TIMEOUT_SECONDS * 2
    # Reconnecting is ours: pika's own retries would hold a thread that has to stop.
    parameters.connection_attempts = 1
    parameters.blocked_connection_timeout = None
    parameters.client_properties = {"connection_name": f"holdfast {name} on {socket.gethostname()}"}
    return parameters


def _take_ca_file(broker_url: str) -> tuple[str, str | None]:
    """Split RabbitMQ's own URI parameter off: pika does not know it."""
    parts = urlsplit(broker_url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    files = [value for name, value in parameters if name == CA_FILE_PARAMETER]
    rest = urlencode([pair for pair in parameters if pair[0] != CA_FILE_PARAMETER])
    return urlunsplit(parts._replace(query=rest)), files[-1] if files else None


def _verifying_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"{CA_FILE_PARAMETER} of the broker's URL: {ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
