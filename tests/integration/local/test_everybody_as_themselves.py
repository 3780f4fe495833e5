"""`make up` on servers of its own: each process logs in to both with no more rights than in production."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import psycopg
import pytest
from pika.exceptions import ChannelClosedByBroker

from infra.local.errors import LocalServiceError
from infra.local.installation import DATABASE, Installation
from infra.local.services import services_in
from infra.rabbitmq.topology import INBOUND_EXCHANGE, PAYMENT_INTAKE

WORKERS = ("payment", "escrow", "payout", "relay")
_PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A whole Holdfast with a RabbitMQ and a PostgreSQL of its own."""
    caller = {"PATH": os.environ["PATH"], "HOLDFAST_PROTECTION_DAY_SECONDS": "2"}
    private = Installation(tmp_path_factory.mktemp("private"), caller=caller)
    try:
        private.up()
        yield private
    finally:
        private.down()


def _variables(installation: Installation, name: str) -> dict[str, str]:
    """Return what a running process really has in its environment."""
    facts = json.loads(installation.folders.state.read_text())["processes"][f"{name}.1"]
    entries = Path(f"/proc/{facts['pid']}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _users_who_came(installation: Installation) -> set[str]:
    log = "".join(path.read_text() for path in (installation.folder / "rabbitmq" / "log").glob("*.log"))
    return set(re.findall(r"user '([^']+)' authenticated and granted access", log))


def _owners_url(installation: Installation) -> str:
    postgres = services_in(installation.folder).postgres
    assert postgres is not None
    return postgres.url(DATABASE)


def test_each_process_has_a_database_login_of_its_own(installation: Installation) -> None:
    with psycopg.connect(_owners_url(installation)) as connection:
        sessions = connection.execute(
            "SELECT DISTINCT usename, application_name FROM pg_stat_activity"
            " WHERE application_name LIKE 'holdfast%'"
        ).fetchall()
    assert {(user, name) for user, name in sessions} >= {
        (f"hf_{name}", f"holdfast-{name}") for name in (*WORKERS, "exporter")
    }
    assert "holdfast" not in {user for user, _ in sessions}


def test_each_process_has_a_broker_user_of_its_own(installation: Installation) -> None:
    # The owner has only looked whether the server is up.
    expected = {*(f"holdfast-{name}" for name in (*WORKERS, "operator")), "holdfast"}
    # RabbitMQ writes its log a moment later.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (seen := _users_who_came(installation)) >= expected:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    assert seen == expected
    # The bank connects when it has something to say.
    assert urlsplit(_variables(installation, "bank")["HOLDFAST_BROKER_URL"]).username == "bank.sim"


def test_no_process_is_told_what_another_needs(installation: Installation) -> None:
    known = {name: _variables(installation, name) for name in (*WORKERS, "exporter", "bank")}
    owner = urlsplit(_owners_url(installation)).password or ""
    assert [name for name, variables in known.items() if owner in "".join(variables.values())] == []

    def who_has(variable: str) -> set[str]:
        return {name for name, variables in known.items() if variable in variables}

    assert who_has("HOLDFAST_PASSWORD_PEPPERS") == {"payout"}
    assert who_has("HOLDFAST_BANK_URL") == {"payout", "bank"}
    assert who_has("SIMULATED_BANK_KEY_FILE") == {"bank"}
    assert who_has("HOLDFAST_DATABASE_URL") == {*WORKERS, "exporter"}
    assert who_has("HOLDFAST_BROKER_MANAGEMENT_URL") == set()


def test_passwords_are_for_the_owners_eyes_only(installation: Installation) -> None:
    folder = installation.folder
    files = [folder / "env", folder / "owner-env", folder / "run" / "plan.json", *folder.glob("secrets/*")]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert len({path.read_text() for path in folder.glob("secrets/*.password")}) == 14


def test_the_operator_runs_commands_and_only_the_owner_migrates(installation: Installation) -> None:
    assert json.loads(installation.run_command("doctor", "--json"))["ok"]
    # Nothing is to be done, so there is nothing to refuse.
    assert json.loads(installation.run_command("migrate", "--json"))["roles_granted"] is False
    with pytest.raises(LocalServiceError, match="belong to another database user"):
        installation.run_command("database", "roles")
    installation.run_command("migrate", as_owner=True)


def test_who_plays_a_shop_can_say_and_read_what_a_shop_does_and_nothing_else(
    installation: Installation,
) -> None:
    installation.run_command("shop", "add", "acme")
    for url in (installation.shops_broker_url, installation.shop_broker_url("acme")):
        connection = pika.BlockingConnection(pika.URLParameters(url))
        try:
            _publish(connection, INBOUND_EXCHANGE, "order.paid")
            connection.channel().basic_get("events.acme")
            _is_refused(lambda channel: channel.basic_get(PAYMENT_INTAKE), connection)
            _is_refused(lambda channel: channel.queue_delete("events.acme"), connection)
            for exchange, key in ((INBOUND_EXCHANGE, "bank.credited"), ("", PAYMENT_INTAKE)):
                with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
                    _publish(connection, exchange, key)
        finally:
            connection.close()


def _is_refused(what: Callable[[Any], object], connection: pika.BlockingConnection) -> None:
    with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
        what(connection.channel())


def _publish(connection: pika.BlockingConnection, exchange: str, key: str) -> None:
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"not signed", mandatory=True)


def test_up_again_keeps_users_passwords_and_processes(installation: Installation) -> None:
    before = {path: path.read_text() for path in installation.folder.glob("secrets/*")}
    payment = _variables(installation, "payment")
    installation.up()
    assert {path: path.read_text() for path in installation.folder.glob("secrets/*")} == before
    assert _variables(installation, "payment") == payment
