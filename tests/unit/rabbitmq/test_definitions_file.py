"""The committed definitions are those that the code makes, hold no password, and know every process."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from infra.rabbitmq import access
from infra.settings import DAY_SECONDS
from schemas.inbound import INBOUND

CHECKOUT = Path(__file__).parents[3]
FILE = CHECKOUT / "infra" / "rabbitmq" / "definitions.json"


def test_file_is_what_the_command_prints() -> None:
    made = access.installation_definitions(DAY_SECONDS, "holdfast", {})
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(made)), (
        "run `holdfast topology definitions > infra/rabbitmq/definitions.json`"
    )


# Reads the database and nothing else.
WITHOUT_BROKER = {"exporter"}


def test_every_process_has_a_user_without_a_password() -> None:
    processes = re.findall(r"^(\w+):", (CHECKOUT / "Procfile").read_text(), flags=re.MULTILINE)
    users = {user["name"]: user for user in json.loads(FILE.read_text())["users"]}
    assert set(users) == {access.OPERATOR, *(f"holdfast-{name}" for name in {*processes} - WITHOUT_BROKER)}
    assert {user["password_hash"] for user in users.values()} == {""}
    assert {user["tags"] for user in users.values()} == {""}


def test_a_password_appears_as_salted_hash_only() -> None:
    user = access.bank_user("first")
    made = [access.user_definitions([user], "/", {user.name: "open sesame, please"}) for _ in range(2)]
    hashes = [base64.b64decode(one["users"][0]["password_hash"]) for one in made]
    assert hashes[0] != hashes[1]
    assert "sesame" not in json.dumps(made)
    for raw in hashes:
        assert raw[4:] == hashlib.sha256(raw[:4] + b"open sesame, please").digest()


def test_between_them_shops_and_banks_may_write_every_event_and_neither_the_others() -> None:
    def may(user: access.BrokerUser) -> set[str]:
        return {name for name in INBOUND if re.search(user.routing_keys["holdfast.inbound"], name)}

    orders, sellers = access.shop_user("a", {"orders"}), access.shop_user("a", {"sellers"})
    kinds = [may(orders), may(sellers), may(access.bank_user("b"))]
    assert set.union(*kinds) == set(INBOUND)
    assert sum(map(len, kinds)) == len(INBOUND)


@pytest.mark.parametrize("shop_id", ["", "a.b", "a|b", ".*", "A"])
def test_a_name_that_would_widen_a_right_is_no_shop(shop_id: str) -> None:
    with pytest.raises(ValueError, match="not a shop id"):
        access.shop_user(shop_id, {"orders"})


@pytest.mark.parametrize("scopes", [set(), {"other"}])
def test_a_shop_without_a_scope_gets_no_user(scopes: set[str]) -> None:
    with pytest.raises(ValueError, match="no event"):
        access.shop_user("acme", scopes)
