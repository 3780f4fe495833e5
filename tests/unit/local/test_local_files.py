"""What `make up` remembers: ports, secrets, processes, the Procfile's meaning."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local.errors import LocalServiceError
from infra.local.files import read_json_object, secret, write_whole
from infra.local.installation import CHECKOUT, Installation
from infra.local.ports import LOOPBACK, choose_ports, remembered_ports
from infra.local.processes import (
    find_running,
    is_alive,
    record_of,
    save_record,
    start_background,
    stop_recorded,
)
from infra.local.procfile import read_procfile, read_scale
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.local.services import is_private_url

NAMES = frozenset({"payment", "relay"})


def test_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key"
    assert [secret(path, lambda: "first"), secret(path, lambda: "second")] == ["first", "first"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_secret_made_by_two_at_once_is_one_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"

    def make_while_another_does() -> str:
        assert secret(path, lambda: "theirs") == "theirs"
        return "mine"

    assert secret(path, make_while_another_does) == "theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_replaced_file_leaves_no_temporary_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_whole(path, "{}")
    write_whole(path, '{"a": 1}')
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert read_json_object(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_damaged_state_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert read_json_object(path) == {}


def test_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = choose_ports(path, ["amqp", "names"])
    assert len(set(first.values())) == 2
    assert choose_ports(path, ["amqp", "names"]) == first == remembered_ports(path)


def test_port_that_somebody_took_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = choose_ports(path, ["amqp", "names"])
    with socket.create_server((LOOPBACK, first["amqp"])):
        second = choose_ports(path, ["amqp", "names"])
    assert second["amqp"] != first["amqp"]
    assert second["names"] == first["names"]


def test_process_id_that_belongs_to_another_process_is_not_ours(tmp_path: Path) -> None:
    """Process ids are used again; `make down` must never signal a stranger."""
    mine = record_of(os.getpid())
    assert mine is not None
    path = tmp_path / "worker.pid.json"
    for stranger in (replace(mine, started_ticks=mine.started_ticks - 1), replace(mine, boot_id="before")):
        save_record(path, stranger)
        assert find_running(path) is None
        assert stop_recorded(path, signal.SIGKILL, timeout_s=1)


def test_background_process_is_found_and_stopped_by_its_record(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid.json"
    started = start_background(
        [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"],
        record=path,
        log=tmp_path / "worker.log",
        environment=os.environ,
        folder=tmp_path,
    )
    assert find_running(path) == started
    assert stop_recorded(path, timeout_s=10)
    assert not is_alive(started)
    assert not path.exists()


def test_process_that_has_ended_but_was_not_reaped_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert record_of(child.pid) is None
    child.wait()


def test_repositorys_procfile_names_every_worker() -> None:
    commands = read_procfile(CHECKOUT / "Procfile")
    assert commands == {
        name: ("python", "-m", f"workers.{name}.worker")
        for name in ("payment", "escrow", "payout", "relay", "exporter")
    }


def test_procfile_line_without_command_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "Procfile"
    path.write_text("# workers\n\npayment: python -m payment\nrelay:\n")
    with pytest.raises(LocalServiceError, match="line 4"):
        read_procfile(path)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", {"payment": 1, "relay": 1}),
        ("payment=3", {"payment": 3, "relay": 1}),
        (" payment=2, relay=0 ", {"payment": 2, "relay": 0}),
    ],
)
def test_scale_changes_only_what_it_names(text: str, counts: dict[str, int]) -> None:
    assert read_scale(text, NAMES) == counts


@pytest.mark.parametrize("text", ["payment", "payment=-1", "payment=x", "unknown=1", "payment=1;relay=2"])
def test_scale_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(LocalServiceError, match="HOLDFAST_SCALE"):
        read_scale(text, NAMES)


def test_url_of_a_private_server_is_told_from_a_given_one(tmp_path: Path) -> None:
    private = PrivateRabbitMQ(tmp_path / "rabbitmq")
    choose_ports(private.folder / "ports.json", ["amqp"])
    url = private.url()
    assert is_private_url(url, tmp_path)
    assert is_private_url(url.replace("/holdfast", "/another"), tmp_path)
    assert not is_private_url(url.replace(LOOPBACK, "rabbit.example.com"), tmp_path)
    assert not is_private_url("amqp://127.0.0.1:1/", tmp_path)
    assert not is_private_url("amqp://rabbit.example.com", tmp_path)


def test_callers_variables_win_and_empty_ones_do_not(tmp_path: Path) -> None:
    given = {
        "HOLDFAST_BROKER_URL": "amqp://rabbit.example.com/x",
        "HOLDFAST_DATABASE_URL": "",
        "HOLDFAST_ENCRYPTION_KEY": "",
        "HOLDFAST_BATCH_BOUND": "7",
        "HOLDFAST_SCALE": "payment=2",
        "PATH": "/usr/bin",
    }
    environment = Installation(tmp_path, caller=given).environment()
    assert environment["HOLDFAST_BROKER_URL"] == "amqp://rabbit.example.com/x"
    assert environment["HOLDFAST_DATABASE_URL"].startswith("postgresql://hf_operator:")
    assert environment["HOLDFAST_ENCRYPTION_KEY"]
    assert environment["HOLDFAST_BATCH_BOUND"] == "7"
    assert "HOLDFAST_SCALE" not in environment
    assert environment["PATH"] == f"{sys.prefix}/bin:/usr/bin"


def test_installation_keeps_its_secrets(tmp_path: Path) -> None:
    first = Installation(tmp_path, caller={}).environment()
    assert Installation(tmp_path, caller={}).environment() == first
