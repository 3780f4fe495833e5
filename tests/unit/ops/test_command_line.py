"""Exit codes and the one line on standard error, without any service."""

import base64
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.postgres.audit import CHECKS
from ops import cli
from ops.commands import topology
from ops.environment import Environment, Need

_NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _unreachable_services(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that are valid but lead nowhere."""
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", f"postgresql://holdfast:db-secret@{_NOWHERE}/holdfast")
    monkeypatch.setenv("HOLDFAST_BROKER_URL", f"amqp://holdfast:mq-secret@{_NOWHERE}/")
    monkeypatch.setenv("HOLDFAST_BANK_URL", f"http://{_NOWHERE}")
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", base64.b64encode(bytes(32)).decode())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_command(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", StringIO(stdin))
        exit_code = cli.main(arguments)
        printed = capsys.readouterr()
        return exit_code, printed.out, printed.err

    return run_command


def a_public_key() -> str:
    return base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("shop", "add"),
        ("shop", "add", "Not A Shop"),
        ("shop", "add", "acme", "--protection-days", "2"),
        ("shop", "add", "acme", "--protection-days", "8"),
        ("shop", "add", "acme", "--protection-days", "three"),
        ("shop", "add", "acme", "--funding", "hoped-for"),
        ("shop", "add", "acme", "--fee-bps", "10001"),
        ("shop", "add", "acme", "--operator", " "),
        ("shop", "key", "add", "acme", "--ed25519", "AAAA"),
        ("shop", "key", "add", "acme", "--scope", "everything", "--ed25519", "AAAA"),
        ("shop", "key", "add", "acme", "--scope", "orders"),
        ("shop", "key", "add", "acme", "--scope", "orders", "--ed25519", "not base64"),
        (
            "shop",
            "key",
            "add",
            "acme",
            "--scope",
            "orders",
            "--ed25519",
            base64.b64encode(bytes(32)).decode(),
        ),
        ("shop", "key", "add", "acme", "--scope", "orders", "--hmac-file", "/no/such/file"),
        ("shop", "key", "add", "acme", "--scope", "orders", "--hmac-file", "-", "--ed25519", "-"),
        ("shop", "key", "revoke", "acme", "not-a-uuid"),
        ("balances",),
        ("balances", "--shop", "acme", "--seller", "s\n1"),
        ("trace",),
        ("events", "replay", "--shop", "acme", "--since", "yesterday"),
        ("events", "replay", "--shop", "acme", "--since", "2026-11-23T08:00:00"),
        ("quarantine", "replay", "--reason", "bad_signature"),
        ("quarantine", "replay", "--why", "x"),
        ("quarantine", "discard", "--why", "", "--reason", "bad_signature"),
        ("quarantine", "show", "not-a-uuid"),
        ("quarantine", "list", "--limit", "0"),
    ],
)
def test_bad_usage_is_exit_2_and_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    exit_code, out, err = run(*arguments)
    assert exit_code == 2
    assert out == ""
    assert err.startswith("holdfast: ")
    assert err.count("\n") == 1


_TWO_NAMES = {
    "claim add": ("--shop=acme", "--seller=s-1", "--amount=1", "--currency=EUR"),
    "recover adopt payout": ("--shop=acme", "--withdrawal=w-1", "--seller=s-1", "--destination=d-1"),
    "recover adopt refund": ("--shop=acme", "--refund=r-1", "--order=o-1", "--part=s-1=1"),
    "refund retry": ("--shop=acme", "--refund=r-1"),
    "refund settle": ("--shop=acme", "--refund=r-1"),
    "suspense assign": ("bank", "line-1", "--shop=acme", "--order=o-1"),
}


def test_every_command_that_takes_a_second_name_is_tried_below() -> None:
    assert set(_TWO_NAMES) == {
        name
        for name, command in _all_commands(typer.main.get_command(cli.app))
        if any("--second-operator" in parameter.opts for parameter in command.params)
    }


def _all_commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _all_commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


@pytest.mark.parametrize("command", sorted(_TWO_NAMES))
@pytest.mark.parametrize("second", ["anna", " anna ", "ANNA", "\uff21nna", "an\u200bna", "", "  ", "\u200b"])
def test_one_person_is_not_two_however_the_name_is_written(run: Run, command: str, second: str) -> None:
    """Refused before anything is asked of the database, which is nowhere."""
    arguments = [*command.split(), *_TWO_NAMES[command], "--why=seen", "--operator= Anna"]
    exit_code, out, err = run(*arguments, f"--second-operator={second}")
    assert (exit_code, out, err.count("\n")) == (2, "", 1)
    assert "--second-operator" in err
    assert run(*arguments, "--second-operator=Hannah")[0] == 1, "two people get as far as what is away"


@pytest.mark.parametrize("name", ["", " ", "\u200b"])
def test_who_acts_has_a_name(run: Run, name: str) -> None:
    exit_code, _, err = run("withdrawal", "approve", "acme", "w-1", "--why=seen", f"--by={name}")
    assert exit_code == 2
    assert "--operator" in err


def test_no_command_shows_the_help_and_is_exit_2(run: Run) -> None:
    exit_code, out, err = run()
    assert exit_code == 2
    assert "balances" in out
    assert err == ""


def test_help_is_exit_0(run: Run) -> None:
    assert run("shop", "add", "--help")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "place", "variable"),
    [
        (("balances", "--shop", "acme"), "database", "HOLDFAST_DATABASE_URL"),
        (("audit",), "database", "HOLDFAST_DATABASE_URL"),
        (("migrate",), "database", "HOLDFAST_DATABASE_URL"),
        (("keys", "public"), "database", "HOLDFAST_DATABASE_URL"),
        (("shop", "list"), "database", "HOLDFAST_DATABASE_URL"),
        (("topology", "apply"), "broker", "HOLDFAST_BROKER_URL"),
        (("topology", "verify"), "broker", "HOLDFAST_BROKER_URL"),
        (("shop", "add", "acme"), "broker", "HOLDFAST_BROKER_URL"),
    ],
)
def test_a_server_that_is_away_is_exit_1_and_named_without_its_password(
    run: Run, arguments: tuple[str, ...], place: str, variable: str
) -> None:
    exit_code, out, err = run(*arguments)
    assert exit_code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert f"the {place} at {_NOWHERE}" in err
    assert variable in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("HOLDFAST_DATABASE_URL", ("balances", "--shop", "acme")),
        ("HOLDFAST_BROKER_URL", ("topology", "apply")),
        ("HOLDFAST_ENCRYPTION_KEY", ("migrate",)),
    ],
)
def test_a_missing_setting_is_exit_2_and_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv(missing)
    exit_code, _, err = run(*arguments)
    assert exit_code == 2
    assert missing in err
    assert err.count("\n") == 1


def test_a_setting_that_is_not_needed_may_be_missing_or_wrong(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDFAST_BROKER_URL")
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", "rubbish")
    assert "the database at" in run("balances", "--shop", "acme")[2]


def test_what_a_command_did_not_ask_for_it_cannot_use() -> None:
    """A stand-in must never be taken for the real thing, least of all the encryption key."""
    environment = Environment(Need.DATABASE)
    with pytest.raises(AssertionError, match="VAULT"):
        _ = environment.vault
    with pytest.raises(AssertionError, match="BROKER"):
        _ = environment.broker_url


def test_production_refuses_a_short_day(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_ENVIRONMENT", "production")
    monkeypatch.setenv("HOLDFAST_PROTECTION_DAY_SECONDS", "2")
    exit_code, _, err = run("topology", "apply")
    assert exit_code == 2
    assert "HOLDFAST_PROTECTION_DAY_SECONDS" in err


def test_key_material_is_never_repeated(run: Run, tmp_path: Path) -> None:
    secret = "whsec_" + base64.b64encode(b"far too short").decode()
    file = tmp_path / "secret"
    file.write_text(secret)
    exit_code, out, err = run("shop", "key", "add", "acme", "--scope", "orders", "--hmac-file", str(file))
    assert exit_code == 2
    assert secret[6:] not in out + err


@pytest.mark.parametrize("option", ["--ed25519", "--hmac-file"])
def test_a_key_can_come_from_standard_input(run: Run, option: str) -> None:
    key = a_public_key() if option == "--ed25519" else "whsec_" + base64.b64encode(b"k" * 32).decode()
    exit_code, _, err = run("shop", "key", "add", "acme", "--scope", "orders", option, "-", stdin=key + "\n")
    # It was read and is good: what is missing now is the database.
    assert exit_code == 1
    assert "the database at" in err


def test_a_mistake_of_ours_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(topology, "apply", broken)
    exit_code, _, err = run("topology", "apply")
    assert exit_code == 1
    assert err == "holdfast: this should not happen: RuntimeError: first line\n"


def test_doctor_reports_every_part_and_a_remedy_for_each(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_BANK_URL", f"http://{_NOWHERE}")
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", "rubbish")
    exit_code, out, err = run("doctor", "--json")
    assert (exit_code, err) == (1, "")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert {"settings", "database", "broker", "bank"} <= set(checks)
    assert all(check["remedy"] for check in checks.values() if not check["ok"])
    assert "secret" not in out


def test_audit_checks_have_names_of_their_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
