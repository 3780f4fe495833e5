"""The contract as an AsyncAPI 3.0 document: where to publish and read, and every message."""

from typing import Any, Final

from schemas.envelope import MAX_BATCH_EVENTS, OUR_SOURCE, SINGLE_CONTENT_TYPE
from schemas.examples import example_event
from schemas.fields import OWNER_ID_PATTERN
from schemas.inbound import INBOUND
from schemas.json_schemas import JsonSchema, data_schema, describe_event, event_schema
from schemas.outgoing import OUTGOING

_SCHEMAS: Final = "#/components/schemas/"
_DESCRIPTION: Final = f"""\
Holdfast holds buyers' money for a protection period and then lets sellers withdraw it. Shops and bank
connectors publish signed CloudEvents to one exchange; each shop reads what Holdfast tells it from a queue of
its own.

A message is one event (`application/cloudevents+json`, as written here) or a JSON array of 1 to
{MAX_BATCH_EVENTS} events of one type and one source (`application/cloudevents-batch+json`). Every message is
signed by Standard Webhooks. Each event comes at least once, with the same id; no order is promised.
"""

_HEADERS: Final[JsonSchema] = {
    "type": "object",
    "required": ["webhook-id", "webhook-timestamp", "webhook-signature"],
    "properties": {
        "webhook-id": {"type": "string", "description": "The event's id; of a batch, any unique id."},
        "webhook-timestamp": {"type": "string", "pattern": "^[0-9]+$", "description": "Unix seconds."},
        "webhook-signature": {
            "type": "string",
            "description": (
                "One or several, separated by spaces: v1a,<base64> (Ed25519) or v1,<base64> (HMAC-SHA256) of"
                " {webhook-id}.{webhook-timestamp}.{body}."
            ),
        },
    },
}


def asyncapi_document(*, version: str, inbound_exchange: str, events_exchange: str) -> dict[str, Any]:
    """Return the document; `version` is Holdfast's own, the exchanges are those of its topology."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:holdfast",
        "info": {"title": "Holdfast", "version": version, "description": _DESCRIPTION},
        "defaultContentType": SINGLE_CONTENT_TYPE,
        "channels": {
            "inbound": {
                "address": None,
                "title": f"The exchange {inbound_exchange}",
                "description": "The routing key is the event's type. Publish persistent, with confirms.",
                "messages": {type_: {"$ref": f"#/components/messages/{type_}"} for type_ in INBOUND},
                "bindings": {
                    "amqp": {
                        "is": "routingKey",
                        "exchange": {
                            "name": inbound_exchange,
                            "type": "topic",
                            "durable": True,
                            "autoDelete": False,
                        },
                        "bindingVersion": "0.3.0",
                    }
                },
            },
            "events": {
                "address": "events.{shop_id}",
                "title": "A shop's queue",
                "description": f"Bound to {events_exchange} by {{shop_id}}.#. `holdfast shop add` makes it.",
                "parameters": {"shop_id": {"description": f"The shop's id, {OWNER_ID_PATTERN}"}},
                "messages": {type_: {"$ref": f"#/components/messages/{type_}"} for type_ in OUTGOING},
                "bindings": {
                    "amqp": {
                        "is": "queue",
                        "queue": {"name": "events.{shop_id}", "durable": True, "exclusive": False},
                        "bindingVersion": "0.3.0",
                    }
                },
            },
        },
        "operations": {
            "take": _operation("receive", "inbound", "What Holdfast takes from shops and banks.", INBOUND),
            "tell": _operation("send", "events", "What Holdfast tells a shop.", OUTGOING),
        },
        "components": {
            "messages": {type_: _message(type_) for type_ in (*INBOUND, *OUTGOING)},
            "schemas": _schemas(),
        },
    }


def signer(type_: str) -> str:
    """Say in words whose key an event of this type is signed with."""
    if type_ in OUTGOING:
        return f"Holdfast (`source` is `{OUR_SOURCE}`)"
    scope = INBOUND[type_].SCOPE
    return "a bank" if scope is None else f"a shop, with a key of scope `{scope}`"


def _operation(action: str, channel: str, summary: str, types: dict[str, Any]) -> JsonSchema:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{type_}"} for type_ in types],
    }


def _message(type_: str) -> JsonSchema:
    return {
        "name": type_,
        "title": type_,
        "summary": f"Signed by {signer(type_)}.",
        "description": describe_event(type_),
        "contentType": SINGLE_CONTENT_TYPE,
        "headers": {"$ref": f"{_SCHEMAS}signature_headers"},
        "payload": {"$ref": f"{_SCHEMAS}{type_}"},
        "examples": [{"name": "one", "payload": example_event(type_)}],
    }


def _schemas() -> dict[str, JsonSchema]:
    made: dict[str, JsonSchema] = {"signature_headers": _HEADERS}
    for type_ in (*INBOUND, *OUTGOING):
        data, definitions = data_schema(type_, refer_to=_SCHEMAS)
        made |= definitions
        whole = event_schema(type_)
        # AsyncAPI's own dialect is JSON Schema's draft 7: no `$schema`, no `$defs`.
        for name in ("$schema", "$id", "$defs"):
            whole.pop(name, None)
        whole["properties"] = {**whole["properties"], "data": data}
        made[type_] = whole
    return made
