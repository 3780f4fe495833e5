"""Messages outlive releases: in queues, in delay lanes for days, and in the programs of shops."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.commands import COMMANDS, decode_command
from schemas.envelope import SINGLE_CONTENT_TYPE, parse_message
from schemas.inbound import InvalidData, validate_data
from schemas.outgoing import OUTGOING

RELEASES = sorted(Path(__file__).parent.glob("release_*"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def messages(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(json.loads((request.param / "messages.json").read_text()))


def test_events_of_a_release_are_still_accepted(messages: dict[str, Any]) -> None:
    for old in messages["events"]:
        [envelope] = parse_message(json.dumps(old["event"]).encode(), SINGLE_CONTENT_TYPE)
        assert not isinstance(validate_data(envelope.type, envelope.data), InvalidData), envelope.type


def test_content_counts_as_the_same_as_a_release_counted_it(messages: dict[str, Any]) -> None:
    """Else a repeat of an order from before the update would be refused as a conflict."""
    for old in messages["events"]:
        data = validate_data(old["event"]["type"], old["event"]["data"])
        assert not isinstance(data, InvalidData)
        assert data.content_hash().hex() == old["content_hash"], old["event"]["type"]


def test_commands_of_a_release_are_still_carried_out(messages: dict[str, Any]) -> None:
    for old in messages["commands"]:
        command = decode_command(COMMANDS[old["type"]], json.dumps(old["body"]).encode())
        assert command.model_dump(mode="json").items() >= old["body"].items()


def test_shops_still_find_every_field_that_a_release_promised(messages: dict[str, Any]) -> None:
    """Types and fields are only ever added: a shop ignores what it does not know, and misses what is gone."""
    for type_, promised in messages["outgoing"].items():
        schema = OUTGOING[type_].model_json_schema(mode="serialization")["properties"]
        for name, told in promised["fields"].items():
            assert schema.get(name) == told, f"{type_}: {name}"
        for name in promised["required"]:
            assert OUTGOING[type_].model_fields[name].is_required(), f"{type_}: {name} must always be there"
