"""
The contract as JSON Schema: one document a type of event, made from the models that judge the events.

What a schema can't say stands beside it in words, in its `description`: `RULES_IN_WORDS`.
"""

from typing import Any, Final

from pydantic import BaseModel

from schemas.envelope import OUR_SOURCE
from schemas.fields import EXTERNAL_ID_PATTERN, INSTANT_SCHEMA, OWNER_ID_PATTERN
from schemas.inbound import INBOUND
from schemas.outgoing import OUTGOING
from schemas.seller_enrolled import SealedEnrolment
from schemas.seller_password_changed import SealedPasswordChange
from schemas.withdrawal_requested import SealedWithdrawal

JsonSchema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

# What is inside `sealed`, by the type of the event that carries it.
SEALED: Final[dict[str, type[BaseModel]]] = {
    "seller.enrolled": SealedEnrolment,
    "seller.password_changed": SealedPasswordChange,
    "withdrawal.requested": SealedWithdrawal,
}

_CURRENCY = "`currency` is an ISO 4217 code of a currency that has a minor unit; `amount` is in that unit."
_ONE_LINE = "holds no control characters and no line breaks"
_SEALED = "`sealed` opens with Holdfast's key; what stands inside and outside is equal."
RULES_IN_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "order.paid": (
        "The amounts of `splits` add up to `amount`; each `seller_id` stands once.",
        "`bank_reference` is unique among the shop's orders.",
        _CURRENCY,
    ),
    "bank.credited": ("`statement_line` is unique among the bank's lines.", _CURRENCY),
    "bank.debited": (
        "`statement_line` is unique among the bank's lines.",
        f"`reason` {_ONE_LINE}.",
        _CURRENCY,
    ),
    "seller.enrolled": (_SEALED,),
    "seller.password_changed": (_SEALED,),
    "withdrawal.requested": (_SEALED, _CURRENCY),
    "dispute.opened": (
        f"`reason` {_ONE_LINE}.",
        "Each seller of `seller_ids` stands once and is one of the order's.",
    ),
    "dispute.resolved": (
        "Each `seller_id` of `refunds` stands once.",
        "No amount exceeds what is held for that seller.",
    ),
    "refund.requested": (
        "Each `seller_id` of `refunds` stands once.",
        "No amount exceeds what is held for that seller.",
    ),
}
_OF_EVERY_INBOUND: Final = (
    "A JSON key stands once in its object. The event has at most 64 KiB.",
    "A whole number is written without fraction and exponent.",
    "It is signed: see the headers `webhook-id` (equal to `id`), `webhook-timestamp`, `webhook-signature`.",
)
_OF_EVERY_SEALED: Final = (
    "`shop_id` and `event_id` are those of the event that carries it.",
    "Passwords count in Unicode code points after NFC.",
    "An IBAN has right check digits; a `holder_name` " + _ONE_LINE + ".",
)


def event_schema(type_: str) -> JsonSchema:
    """
    Return the schema of a whole event, envelope and data; it refers to nothing outside itself.

    Raises:
        KeyError: no such type.
    """
    inbound = type_ in INBOUND
    data, definitions = data_schema(type_)
    schema: JsonSchema = {
        "$schema": DIALECT,
        "$id": f"urn:holdfast:event:{type_}",
        "title": type_,
        "description": describe_event(type_),
        "type": "object",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "pattern": EXTERNAL_ID_PATTERN},
            "source": _source(type_),
            "type": {"const": type_},
            "time": INSTANT_SCHEMA,
            "datacontenttype": {"const": "application/json"},
            "traceparent": {"type": "string", "description": "W3C Trace Context; optional."},
            "data": data,
        },
        "required": ["specversion", "id", "source", "type", "data"]
        + ([] if inbound else ["time", "datacontenttype"]),
        # CloudEvents 1.0, 3.1: extension attributes are allowed, under such names.
        "propertyNames": {"pattern": "^[a-z0-9]{1,64}$"},
    }
    return schema | ({"$defs": definitions} if definitions else {})


def sealed_schema(type_: str) -> JsonSchema:
    """
    Return the schema of what an event of this type seals.

    Raises:
        KeyError: it seals nothing.
    """
    body, definitions = _schema_of(SEALED[type_], refuse_unknown=True)
    return {
        "$schema": DIALECT,
        "$id": f"urn:holdfast:sealed:{type_}",
        "title": f"{type_}, inside `sealed`",
        **body,
        "description": " ".join(_OF_EVERY_SEALED),
        **({"$defs": definitions} if definitions else {}),
    }


def data_schema(type_: str, *, refer_to: str = "#/$defs/") -> tuple[JsonSchema, dict[str, JsonSchema]]:
    """Return the schema of an event's `data`, and the definitions that it refers to under that prefix."""
    if type_ in INBOUND:
        return _schema_of(INBOUND[type_], refuse_unknown=True, refer_to=refer_to)
    # Readers must ignore fields that they do not know, so the schema must not refuse them.
    return _schema_of(OUTGOING[type_], refuse_unknown=False, refer_to=refer_to)


def describe_event(type_: str) -> str:
    """Say in words what the event is and what no schema can hold its sender to."""
    model = INBOUND.get(type_) or OUTGOING[type_]
    # Only the class's own docstring: one that is inherited speaks of something else.
    said = " ".join((model.__dict__.get("__doc__") or "").split())
    rules = (*RULES_IN_WORDS[type_], *_OF_EVERY_INBOUND) if type_ in INBOUND else ()
    return " ".join(part for part in (said, *rules) if part)


def _source(type_: str) -> JsonSchema:
    if type_ in OUTGOING:
        return {"const": OUR_SOURCE}
    sender = "shops" if INBOUND[type_].SCOPE is not None else "banks"
    owner = OWNER_ID_PATTERN.removeprefix("^")
    return {"type": "string", "pattern": f"^/{sender}/{owner}"}


def _schema_of(
    model: type[BaseModel], *, refuse_unknown: bool, refer_to: str = "#/$defs/"
) -> tuple[JsonSchema, dict[str, JsonSchema]]:
    made = model.model_json_schema(ref_template=refer_to + "{model}")
    definitions = {name: _plain(part, refuse_unknown) for name, part in made.pop("$defs", {}).items()}
    made.pop("description", None)
    return _plain(made, refuse_unknown), definitions


def _plain(schema: JsonSchema, refuse_unknown: bool) -> JsonSchema:  # noqa: FBT001 - one caller
    """
    Drop what says nothing or the wrong thing about JSON.

    Titles repeat names. A field that may be left out is never null. `discriminator` is OpenAPI's.
    """
    plain: JsonSchema = {}
    for name, value in schema.items():
        if name == "title" and isinstance(value, str):
            continue
        if name == "discriminator" or (name == "default" and value is None):
            continue
        if name == "additionalProperties" and not refuse_unknown:
            continue
        if name == "properties":
            plain[name] = {field: _plain(part, refuse_unknown) for field, part in value.items()}
        elif isinstance(value, dict):
            plain[name] = _plain(value, refuse_unknown)
        elif isinstance(value, list):
            plain[name] = [_plain(part, refuse_unknown) if isinstance(part, dict) else part for part in value]
        else:
            plain[name] = value
    given = [part for part in plain.get("anyOf", ()) if part != {"type": "null"}]
    if len(given) == 1:
        del plain["anyOf"]
        return {**given[0], **plain}
    return plain
