"""From an empty database and an empty vhost to a shop that can trade."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from broker_access import channel
from command_runs import Holdfast, a_public_key
from sqlalchemy import Engine, create_engine, text
from workflow_support.desk import DAY_SECONDS, ENCRYPTION_KEY

from infra.postgres.key_store import KeyStore
from infra.security.encryption import Vault

HMAC_SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes .. ").decode()


@pytest.fixture
def registered(holdfast: Holdfast) -> Holdfast:
    """Everything is set up and the shop `acme` is registered."""
    for arguments in (("migrate",), ("topology", "apply"), ("shop", "add", "acme")):
        assert holdfast(*arguments).exit_code == 0
    return holdfast


def actions(engine: Engine, subject: str) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT operator, action, reason FROM operator_actions WHERE subject = :s ORDER BY action_id"
            ),
            {"s": subject},
        )
        return [tuple(row) for row in rows]


def test_a_blank_database_is_migrated_with_its_day_and_our_keys(
    holdfast: Holdfast, blank_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", blank_database_url)
    before = holdfast("balances", "--shop", "acme")
    assert before.exit_code == 1
    assert "run `holdfast migrate`" in before.err
    assert before.err.count("\n") == 1
    assert holdfast("audit").exit_code == 1
    first = holdfast("migrate", "--json")
    assert first.json["protection_day_seconds"] == DAY_SECONDS
    keys = holdfast("keys", "public", "--json").json["keys"]
    assert sorted(key["use"] for key in keys) == ["enc", "sig"]
    assert {key["crv"] for key in keys} == {"Ed25519", "X25519"}
    assert all("d" not in key for key in keys)
    assert holdfast("migrate", "--json").json == first.json
    assert holdfast("keys", "public", "--json").json["keys"] == keys


def test_another_length_of_a_day_is_refused_and_the_stored_one_stays(
    holdfast: Holdfast, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    assert holdfast("migrate").exit_code == 0
    monkeypatch.setenv("HOLDFAST_PROTECTION_DAY_SECONDS", "2")
    refused = holdfast("migrate")
    assert refused.exit_code == 2
    assert f"set it to {DAY_SECONDS}" in refused.err
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT protection_day_seconds FROM deployment")).scalar_one()
    assert stored == DAY_SECONDS


def test_topology_verify_says_no_until_it_is_applied(
    holdfast: Holdfast, make_vhost: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_BROKER_URL", make_vhost())
    before = holdfast("topology", "verify", "--json")
    assert before.exit_code == 1
    assert "missing_queue" in {finding["drift"] for finding in before.json["findings"]}
    too_early = holdfast("shop", "add", "early")
    assert (too_early.exit_code, too_early.out) == (1, "")
    assert "run `holdfast topology apply`" in too_early.err
    assert holdfast("topology", "apply").exit_code == 0
    after = holdfast("topology", "verify", "--json")
    assert (after.exit_code, after.json["ok"], after.json["findings"]) == (0, True, [])
    assert "HOLDFAST_BROKER_MANAGEMENT_URL" in after.json["not_checked"][0]
    assert "not checked: bindings" in holdfast("topology", "verify").out


def test_topology_verify_and_doctor_see_through_the_management_api_what_amqp_hides(
    registered: Holdfast, broker_url: str, test_servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert test_servers.rabbitmq is not None, "run this without HOLDFAST_BROKER_URL"
    monkeypatch.setenv("HOLDFAST_BROKER_MANAGEMENT_URL", test_servers.rabbitmq.management_url)
    assert registered("topology", "verify", "--json").json == {"ok": True, "findings": [], "not_checked": []}
    with channel(broker_url) as open_channel:
        open_channel.queue_delete("events.acme")
        open_channel.queue_unbind("payment.intake", "holdfast.inbound", "order.paid")
    verified = registered("topology", "verify")
    assert verified.exit_code == 1
    assert "holdfast.inbound -order.paid-> payment.intake" in verified.out
    checks = {check["name"]: check for check in registered("doctor", "--json").json["checks"]}
    assert "missing_queue events.acme" in checks["topology"]["detail"]
    assert "topology apply" in checks["topology"]["remedy"]
    with channel(broker_url) as open_channel:
        open_channel.queue_declare("nobody.knows", durable=True)
    foreign = {check["name"]: check for check in registered("doctor", "--json").json["checks"]}["topology"]
    assert "foreign_queue nobody.knows" in foreign["detail"]
    assert "apply" not in foreign["remedy"], "which would not help"
    with channel(broker_url) as open_channel:
        open_channel.queue_delete("nobody.knows")
    monkeypatch.setenv("HOLDFAST_BROKER_MANAGEMENT_URL", "http://nobody:secret@127.0.0.1:1")
    refused = registered("topology", "verify")
    assert (refused.exit_code, refused.err.count("\n")) == (1, 1)
    assert "HOLDFAST_BROKER_MANAGEMENT_URL" in refused.err
    assert "secret" not in refused.err


def test_a_shop_has_its_queue_and_the_safest_terms_by_default(registered: Holdfast, broker_url: str) -> None:
    shops = {shop["shop"]: shop for shop in registered("shop", "list", "--json").json}
    assert (shops["acme"]["protection_days"], shops["acme"]["funding"], shops["acme"]["fee_bps"]) == (
        7,
        "confirmed",
        0,
    )
    with channel(broker_url) as open_channel:
        open_channel.queue_declare("events.acme", passive=True)


def test_adding_a_shop_again_changes_only_what_is_named_and_is_on_record(
    registered: Holdfast, engine: Engine
) -> None:
    added = registered("shop", "add", "again", "--protection-days", "3", "--funding", "announced", "--json")
    assert added.json == {
        "shop": "again",
        "protection_days": 3,
        "funding": "announced",
        "fee_bps": 0,
        "queue": "events.again",
    }
    assert "unchanged" in registered("shop", "add", "again", "--protection-days", "3").out
    changed = registered("shop", "add", "again", "--fee-bps", "30", "--why", "agreed", "--json")
    assert (changed.json["protection_days"], changed.json["funding"], changed.json["fee_bps"]) == (
        3,
        "announced",
        30,
    )
    assert actions(engine, "again") == [
        ("ada", "shop_added", ""),
        ("ada", "shop_terms_changed", "agreed"),
    ]


def test_a_shop_can_be_suspended_and_resumed_and_that_is_on_record(
    registered: Holdfast, engine: Engine
) -> None:
    registered("shop", "add", "pausing")
    for command in ("suspend", "suspend", "resume"):
        assert registered("shop", command, "pausing", "--operator", "bo", "--why", "x").exit_code == 0
    assert actions(engine, "pausing")[1:] == [("bo", "shop_suspended", "x"), ("bo", "shop_resumed", "x")]


def test_keys_overlap_while_one_follows_the_other(registered: Holdfast, engine: Engine) -> None:
    registered("shop", "add", "rotating")
    add = ("shop", "key", "add", "rotating", "--scope", "orders", "--ed25519")
    old = registered(*add, a_public_key(), "--json").json["key_id"]
    times = ("--not-before", "2999-01-01T00:00:00Z", "--not-after", "2999-12-31T00:00:00Z")
    registered(*add, a_public_key(), *times)
    until = registered("shop", "key", "expire", "rotating", old, "--at", "2999-01-02T00:00:00Z", "--why", "r")
    assert until.exit_code == 0
    listed = registered("shop", "key", "list", "rotating", "--json").json
    assert [(key["active"], key["not_after"][:10]) for key in listed] == [
        (True, "2999-01-02"),
        (False, "2999-12-31"),
    ]
    assert actions(engine, "rotating")[-1] == ("ada", "shop_key_expires", "r")


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "expire", "acme", "00000000-0000-0000-0000-000000000001", "--at", "2999-01-01T00:00:00Z"),
        ("key", "add", "acme", "--scope", "orders", "--ed25519", a_public_key(), "--not-after",
         "2001-01-01T00:00:00Z"),
    ],
)  # fmt: skip
def test_a_key_can_not_be_given_a_time_that_is_over_or_be_one_that_is_none(
    registered: Holdfast, arguments: tuple[str, ...]
) -> None:
    assert registered("shop", *arguments).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("shop", "suspend", "nobody", "--why", "x"),
        ("shop", "key", "list", "nobody"),
        ("shop", "key", "add", "nobody", "--scope", "orders", "--ed25519", a_public_key()),
        ("shop", "key", "revoke", "nobody", "00000000-0000-0000-0000-000000000001"),
        ("shop", "key", "revoke", "acme", "00000000-0000-0000-0000-000000000001"),
        ("bank", "key", "list", "nobody"),
        ("balances", "--shop", "nobody"),
        ("balances", "--shop", "acme", "--seller", "nobody"),
        ("trace", "--shop", "nobody", "--order", "o-1"),
        ("trace", "--shop", "acme", "--order", "none"),
        ("trace", "--shop", "acme", "--withdrawal", "none"),
        ("events", "replay", "--shop", "nobody", "--since", "2026-01-01T00:00:00Z"),
        ("quarantine", "show", "00000000-0000-0000-0000-000000000001"),
        ("quarantine", "discard", "00000000-0000-0000-0000-000000000001", "--why", "x"),
    ],
)
def test_what_does_not_exist_is_exit_1_and_one_line(registered: Holdfast, arguments: tuple[str, ...]) -> None:
    ran = registered(*arguments)
    assert (ran.exit_code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1


def test_keys_are_added_from_anywhere_listed_without_secrets_and_revoked(
    registered: Holdfast, engine: Engine
) -> None:
    def scopes_that_work() -> list[set[str]]:
        store = KeyStore(engine, Vault(ENCRYPTION_KEY), cache_seconds=0.001)
        sender = store.sender("shop", "acme")
        return [set(key.scopes) for key in sender.keys] if sender else []

    public = a_public_key()
    both = ("--scope", "orders", "--scope", "sellers")
    first = registered("shop", "key", "add", "acme", *both, "--ed25519", public, "--json").json
    again = registered("shop", "key", "add", "acme", *both, "--ed25519", "-", "--json", stdin=public).json
    assert first["key_id"] == again["key_id"]
    registered("shop", "key", "add", "acme", "--scope", "orders", "--hmac-file", "-", stdin=HMAC_SECRET)
    assert sorted(map(sorted, scopes_that_work())) == [["orders"], ["orders", "sellers"]]
    listed = registered("shop", "key", "list", "acme", "--json")
    assert [(key["scheme"], key["active"]) for key in listed.json] == [("v1a", True), ("v1", True)]
    assert HMAC_SECRET[6:] not in listed.out
    revoke = ("shop", "key", "revoke", "acme", first["key_id"])
    assert registered(*revoke).exit_code == 0
    assert registered(*revoke).exit_code == 1
    assert scopes_that_work() == [{"orders"}]


def test_a_banks_first_key_registers_the_bank(registered: Holdfast, engine: Engine) -> None:
    added = registered("bank", "key", "add", "first-bank", "--ed25519", a_public_key(), "--json")
    assert (added.exit_code, added.json["bank"], added.json["scopes"]) == (0, "first-bank", [])
    assert registered("bank", "key", "add", "first-bank", "--ed25519", a_public_key()).exit_code == 0
    assert len(registered("bank", "key", "list", "first-bank", "--json").json) == 2
    assert [action for _, action, _ in actions(engine, "first-bank")] == [
        "bank_added",
        "bank_key_added",
        "bank_key_added",
    ]


def test_doctor_finds_what_is_missing_and_says_how_to_mend_it(
    registered: Holdfast, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A relay that hangs keeps its connections: only what it leaves undone shows.
    with engine.begin() as connection:
        connection.execute(text("UPDATE seal SET sealed_at = clock_timestamp() - interval '2 minutes'"))
    monkeypatch.setenv("HOLDFAST_PROTECTION_DAY_SECONDS", "2")
    ran = registered("doctor", "--json")
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert (ran.exit_code, ran.json["ok"]) == (1, False)
    assert {name for name, check in checks.items() if check["ok"]} >= {
        "settings",
        "database",
        "clock",
        "schema",
        "own keys",
        "broker",
    }
    assert checks["day length"]["remedy"] == f"set it to {DAY_SECONDS}"
    # Nobody works here, there is no bank, and the lanes of a shorter day are not declared.
    assert {name for name, check in checks.items() if not check["ok"]} == {
        "day length",
        "topology",
        "workers",
        "progress",
        "bank",
    }
    assert "no relay has sealed for 12" in checks["progress"]["detail"]
    assert all(check["remedy"] for check in checks.values() if not check["ok"])


def test_a_database_that_was_not_migrated_is_doctors_finding(
    holdfast: Holdfast, databases: object, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        kept = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    try:
        checks = {check["name"]: check for check in holdfast("doctor", "--json").json["checks"]}
        assert checks["schema"]["remedy"] == "run `holdfast migrate`"
        refused = holdfast("audit")
        assert (refused.exit_code, refused.err.count("\n")) == (1, 1)
    finally:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": kept})
        engine.dispose()
