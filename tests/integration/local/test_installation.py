"""`make up` and `make down` as a whole, on servers that the caller named."""

import base64
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from infra.local.errors import LocalServiceError
from infra.local.installation import Installation, process_states
from infra.local.processes import find_running


@dataclass(frozen=True, slots=True)
class Running:
    """An installation that is up, and the environment it was started from."""

    installation: Installation
    caller: dict[str, str]


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, blank_database_url: str
) -> Iterator[Running]:
    """A whole Holdfast in a folder of its own."""
    caller = {
        "PATH": os.environ["PATH"],
        "HOLDFAST_BROKER_URL": broker_url,
        "HOLDFAST_DATABASE_URL": blank_database_url,
        "HOLDFAST_PROTECTION_DAY_SECONDS": "2",
        "HOLDFAST_SCALE": "payment=2",
    }
    installation = Installation(tmp_path_factory.mktemp("installation"), caller=caller)
    try:
        installation.up()
        yield Running(installation, caller)
    finally:
        installation.down()


def test_all_processes_are_ready_when_up_returns(running: Running) -> None:
    states = process_states(running.installation.folders)
    assert {name for name, (state, _) in states.items() if state == "ready"} == {
        *("payment.1", "payment.2", "escrow.1", "payout.1", "relay.1", "exporter.1", "bank.1")
    }


def test_sourced_env_file_is_all_that_the_command_needs(running: Running) -> None:
    script = f". {shlex.quote(str(running.installation.env_file))} && holdfast bank key list sim --json"
    listed = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(listed.stdout)
    assert running.installation.env_file.stat().st_mode & 0o777 == 0o600


def test_second_up_changes_nothing_that_runs(running: Running) -> None:
    def process_ids() -> dict[str, object]:
        processes = json.loads(running.installation.folders.state.read_text())["processes"]
        return {name: facts["pid"] for name, facts in processes.items()}

    before = process_ids()
    Installation(running.installation.folder, caller=running.caller).up()
    assert process_ids() == before


def test_no_secret_is_readable_by_others(running: Running) -> None:
    secrets = list((running.installation.folder / "secrets").iterdir())
    assert {path.name for path in secrets} >= {"encryption.key", "bank.key"}
    assert {path.stat().st_mode & 0o077 for path in secrets} == {0}


def test_day_length_of_the_caller_is_stored_in_the_database(
    running: Running, blank_database_url: str
) -> None:
    with psycopg.connect(blank_database_url) as connection:
        stored = connection.execute("SELECT protection_day_seconds FROM deployment").fetchone()
    assert stored == (2,)


def test_up_that_can_not_succeed_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    """The database's port answers nobody."""
    caller = {
        "PATH": os.environ["PATH"],
        "HOLDFAST_BROKER_URL": "amqp://127.0.0.1:1/",
        "HOLDFAST_DATABASE_URL": "postgresql://nobody:hidden@127.0.0.1:1/none",
        "HOLDFAST_ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(),
    }
    installation = Installation(tmp_path, caller=caller)
    with pytest.raises(LocalServiceError, match=r"holdfast (migrate|topology apply)") as refused:
        installation.up()
    assert "hidden" not in str(refused.value)
    assert find_running(installation.folders.record) is None


def test_down_leaves_no_process(running: Running) -> None:
    """Last in this file, because nothing runs after it."""
    folders = running.installation.folders
    running.installation.down()
    assert [path for path in folders.run.glob("*.pid.json") if find_running(path)] == []
    assert process_states(folders) == {}
