"""JSON Schemas, the AsyncAPI document and the page of events are what schemas/ says now, and are right."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from ops.contract_files import asyncapi, contract_files
from schemas.examples import EXAMPLES, SEALED_EXAMPLES, example_event
from schemas.inbound import INBOUND, InvalidData, validate_data
from schemas.json_schemas import RULES_IN_WORDS, SEALED, event_schema, sealed_schema
from schemas.outgoing import OUTGOING

CHECKOUT = Path(__file__).parents[3]
DOCS = CHECKOUT / "docs"
TYPES = [*INBOUND, *OUTGOING]


def test_generated_files_are_up_to_date() -> None:
    made = contract_files()
    kept = {name: (DOCS / name).read_text(encoding="utf-8") for name in made if (DOCS / name).exists()}
    kept |= {
        f"schemas/{path.name}": path.read_text(encoding="utf-8") for path in (DOCS / "schemas").glob("*")
    }
    differing = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert differing == [], "run `make contract` and commit what it writes"


def test_every_event_has_an_example_and_every_inbound_one_its_rules() -> None:
    assert set(EXAMPLES) == set(TYPES), "write one in schemas/examples.py"
    assert set(SEALED_EXAMPLES) == set(SEALED)
    assert set(RULES_IN_WORDS) == set(INBOUND), "say in schemas/json_schemas.py what no schema can"


@pytest.mark.parametrize("type_", TYPES)
def test_example_fits_its_schema_and_its_model(type_: str) -> None:
    schema = event_schema(type_)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(example_event(type_))
    if type_ in INBOUND:
        assert not isinstance(validate_data(type_, EXAMPLES[type_]), InvalidData)
    else:
        OUTGOING[type_].model_validate(EXAMPLES[type_])


@pytest.mark.parametrize("type_", SEALED)
def test_sealed_example_fits_its_schema_and_its_model(type_: str) -> None:
    schema = sealed_schema(type_)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(SEALED_EXAMPLES[type_])
    SEALED[type_].model_validate(SEALED_EXAMPLES[type_])


@pytest.mark.parametrize("type_", INBOUND)
def test_schema_refuses_what_the_model_refuses(type_: str) -> None:
    """A missing field, a null, an unknown field and a value of the wrong kind, one field after the other."""
    validator = Draft202012Validator(event_schema(type_))
    required = {name for name, field in INBOUND[type_].model_fields.items() if field.is_required()}
    spoilt: list[dict[str, Any]] = [EXAMPLES[type_] | {"surprise": 1}]
    for name in EXAMPLES[type_]:
        spoilt += [EXAMPLES[type_] | {name: value} for value in (None, True, {}, "")]
        if name in required:
            spoilt.append({key: value for key, value in EXAMPLES[type_].items() if key != name})
    for data in spoilt:
        assert isinstance(validate_data(type_, copy.deepcopy(data)), InvalidData), data
        assert not validator.is_valid(example_event(type_) | {"data": data}), data


@pytest.mark.parametrize("type_", OUTGOING)
def test_reader_must_not_refuse_a_field_that_is_new(type_: str) -> None:
    event = example_event(type_)
    grown = event | {"data": event["data"] | {"new_field": 1}, "newattribute": "x"}
    Draft202012Validator(event_schema(type_)).validate(grown)


@pytest.mark.parametrize("type_", TYPES)
def test_asyncapi_message_judges_as_the_json_schema_does(type_: str) -> None:
    document = asyncapi()
    payload = document["components"]["messages"][type_]["payload"]
    validator = Draft7Validator({**payload, "components": document["components"]})
    event = example_event(type_)
    validator.validate(event)
    assert not validator.is_valid({name: value for name, value in event.items() if name != "data"})
    assert not validator.is_valid(event | {"data": {}})


def test_asyncapi_leads_nowhere_that_does_not_exist() -> None:
    document = asyncapi()
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def _shown_events() -> list[tuple[str, dict[str, Any]]]:
    """Find every whole event that a page shows, alone or in what a command printed."""
    found = []
    for page in sorted([*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")]):
        text = page.read_text(encoding="utf-8")
        for start in re.finditer(r'^\{\s*"specversion"', text, flags=re.MULTILINE):
            event, _ = json.JSONDecoder().raw_decode(text, start.start())
            found.append((f"{page.relative_to(CHECKOUT)}: {event['type']}", event))
    return found


SHOWN = _shown_events()


def test_pages_show_events() -> None:
    assert len(SHOWN) > len(TYPES)


@pytest.mark.parametrize(("where", "event"), SHOWN, ids=[where for where, _ in SHOWN])
def test_event_on_a_page_fits_its_schema(where: str, event: dict[str, Any]) -> None:
    assert where
    schema = event_schema(event["type"])
    if event["data"] == {}:  # shown for its envelope only
        schema["properties"]["data"] = {}
    Draft202012Validator(schema).validate(event)
