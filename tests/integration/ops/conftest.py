"""The `holdfast` command on real services."""

from collections.abc import Iterator
from io import StringIO

import pytest
from command_runs import Holdfast, Ran
from workflow_support.desk import DAY_SECONDS, ENCRYPTION_KEY, Desk
from workflow_support.events import SellersPlatform

from ops import cli


@pytest.fixture
def holdfast(
    database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Holdfast]:
    """Return a function that runs a command on this module's database and vhost."""
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", database_url)
    monkeypatch.setenv("HOLDFAST_BROKER_URL", broker_url)
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", ENCRYPTION_KEY)
    monkeypatch.setenv("HOLDFAST_PROTECTION_DAY_SECONDS", str(DAY_SECONDS))
    monkeypatch.setenv("USER", "ada")

    def run(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", StringIO(stdin))
        capsys.readouterr()
        exit_code = cli.main(arguments)
        printed = capsys.readouterr()
        return Ran(exit_code, printed.out, printed.err)

    return run


@pytest.fixture
def set_up(holdfast: Holdfast) -> Holdfast:
    """Return the command on a database that has its schema."""
    assert holdfast("migrate").exit_code == 0
    return holdfast


@pytest.fixture
def platform(set_up: Holdfast, desk: Desk) -> SellersPlatform:
    """Return the sellers' platform of a new shop."""
    return desk.platform(desk.a_shop())
