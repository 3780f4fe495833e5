"""The `holdfast` command on real services, and a database in which nearly everything has happened."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from workflow_support.desk import DAY_SECONDS, ENCRYPTION_KEY

from ops import cli


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Holdfast = Callable[..., Ran]


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
    kept = structlog.get_config()

    def run(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", StringIO(stdin))
        capsys.readouterr()
        exit_code = cli.main(arguments)
        printed = capsys.readouterr()
        return Ran(exit_code, printed.out, printed.err)

    yield run
    structlog.configure(**kept)


def a_public_key() -> str:
    """Return a new Ed25519 public key as the command takes it."""
    return base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
