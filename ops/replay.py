"""Turn a recorded message back into the message that it was, for the place where it came from."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from infra.rabbitmq.messages import (
    ATTEMPT_HEADER,
    DELIVER_EXCHANGE,
    FIRST_EXCHANGE_HEADER,
    FIRST_ROUTING_KEY_HEADER,
    Delivery,
    Outgoing,
    retry_message,
)
from infra.rabbitmq.topology import INBOUND_EXCHANGE
from infra.security.signatures import SIGNATURE_HEADER
from ops.store.quarantine import Record

_DEAD_LETTER_SUFFIX = ".XQ"


class NotReplayable(Exception):
    """Publishing it again can't lead anywhere; the sentence says why."""


def replayed_message(record: Record) -> Outgoing:
    """
    Compose the message to publish: raw body, its headers, no attempt counted.

    What was quarantined is judged anew by its routing key; a dead letter goes to its work queue and says
    where it first arrived; an orphan goes to the queue that was missing.

    Raises:
        NotReplayable: a bank's refused event, of which the signature was not kept.
    """
    if record.kind == "quarantine":
        if not record.queue and SIGNATURE_HEADER not in record.headers:
            raise NotReplayable("it was authentic and refused by a rule; its sender must send it anew")
        return _as_it_came(record, INBOUND_EXCHANGE, record.routing_key)
    if record.kind == "orphan":
        return _as_it_came(record, DELIVER_EXCHANGE, record.routing_key)
    exchange, routing_key = _first_arrival(record)
    message = retry_message(
        msgspec.structs.replace(_delivery(record), exchange=exchange, routing_key=routing_key), delay_ms=0
    )
    return replace(message, headers=_without(message.headers, ATTEMPT_HEADER))


def _as_it_came(record: Record, exchange: str, routing_key: str) -> Outgoing:
    # `retry_message` knows which headers must not travel again.
    message = retry_message(_delivery(record), delay_ms=0)
    headers = _without(message.headers, ATTEMPT_HEADER, FIRST_EXCHANGE_HEADER, FIRST_ROUTING_KEY_HEADER)
    return replace(message, exchange=exchange, routing_key=routing_key, headers=headers)


def _delivery(record: Record) -> Delivery:
    return Delivery(
        queue_name=record.queue,
        exchange=record.exchange,
        routing_key=record.routing_key,
        body=record.body,
        content_type=record.content_type,
        type=record.message_type,
        headers={name: _amqp_value(value) for name, value in record.headers.items()},
    )


def _first_arrival(record: Record) -> tuple[str, str]:
    """
    Tell where a dead letter came from before it died.

    Our own dead-lettering notes it; RabbitMQ's (a delivery limit reached) has it in `x-death`.
    """
    noted = record.headers.get(FIRST_EXCHANGE_HEADER)
    if isinstance(noted, str):
        return noted, record.routing_key
    deaths = record.headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else ():
        if isinstance(death, dict) and death.get("queue") == record.queue:
            keys = death.get("routing-keys")
            if isinstance(keys, list) and keys:
                return str(death.get("exchange") or ""), str(keys[0])
    return record.exchange, record.routing_key.removesuffix(_DEAD_LETTER_SUFFIX)


def _amqp_value(value: Any) -> object:  # noqa: ANN401 - any JSON value
    """Undo what the recorder did to make a header JSON."""
    if isinstance(value, dict):
        if set(value) == {"base64"} and isinstance(value["base64"], str):
            try:
                return base64.b64decode(value["base64"], validate=True)
            except binascii.Error:
                return value
        return {name: _amqp_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_amqp_value(inner) for inner in value]
    return value


def _without(headers: Mapping[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in headers.items() if name not in names}
