"""The contract as files: JSON Schemas, the AsyncAPI document and the page that shows every event."""

import json
from importlib.metadata import version
from typing import Any, Final

from infra.postgres.roles import roles_page
from infra.rabbitmq.topology import EVENTS_EXCHANGE, INBOUND_EXCHANGE
from schemas.asyncapi import asyncapi_document, signer
from schemas.event_data import EventData
from schemas.examples import SEALED_EXAMPLES, example_event
from schemas.inbound import INBOUND
from schemas.json_schemas import RULES_IN_WORDS, SEALED, event_schema, sealed_schema
from schemas.outgoing import OUTGOING, OutgoingData

PAGE: Final = "events.md"
_FIRST_LINES: Final = """\
<!-- Made by `make contract` from schemas/. Change those, not this page. -->

# Every event

One example of each type, with what no JSON Schema can say. The words that go with all of them, signatures,
sealed content, duplicates and refusals, are in [the contract](contract.md). For programs there are one JSON
Schema a type, linked below, and an [AsyncAPI 3 document](asyncapi.json); `holdfast contract schema TYPE` and
`holdfast contract asyncapi` print them.
"""


def contract_files() -> dict[str, str]:
    """Return every generated file's text by its path below `docs/`."""
    files = {f"schemas/{type_}.json": _json(event_schema(type_)) for type_ in (*INBOUND, *OUTGOING)}
    files |= {f"schemas/{type_}.sealed.json": _json(sealed_schema(type_)) for type_ in SEALED}
    files["asyncapi.json"] = _json(asyncapi())
    files[PAGE] = _page()
    files["database-roles.md"] = roles_page()
    return files


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document of this version."""
    return asyncapi_document(
        version=version("holdfast"), inbound_exchange=INBOUND_EXCHANGE, events_exchange=EVENTS_EXCHANGE
    )


def _page() -> str:
    parts = [_FIRST_LINES, "## What Holdfast takes\n"]
    parts += [_section(type_, model) for type_, model in INBOUND.items()]
    parts.append("## What Holdfast tells\n")
    parts += [_section(type_, model) for type_, model in OUTGOING.items()]
    return "\n".join(parts)


def _section(type_: str, model: type[EventData | OutgoingData]) -> str:
    said = " ".join((model.__dict__.get("__doc__") or "").split())
    lines = [f"### {type_}", "", f"Signed by {signer(type_)}. [JSON Schema](schemas/{type_}.json)", ""]
    if said:
        lines += [said, ""]
    lines += [f"- {rule}" for rule in RULES_IN_WORDS.get(type_, ())]
    lines += [""] if type_ in RULES_IN_WORDS else []
    lines += ["```json", json.dumps(example_event(type_), indent=2), "```", ""]
    if type_ in SEALED:
        lines += [
            f"Inside `sealed` ([JSON Schema](schemas/{type_}.sealed.json)):",
            "",
            "```json",
            json.dumps(SEALED_EXAMPLES[type_], indent=2),
            "```",
            "",
        ]
    return "\n".join(lines)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
