"""The examples that the guides show, as a shop would run them: programs of their own, outside Holdfast."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from workflow_support.outsider import PATIENCE_SECONDS, fresh
from workflow_support.system import CHECKOUT, System

_SHOP = CHECKOUT / "examples" / "shop.py"


@pytest.fixture
def folder(system: System, tmp_path: Path) -> Path:
    """Where a shop keeps its key and Holdfast's keys."""
    (tmp_path / "holdfast-keys.json").write_text(system.holdfast("keys", "public", "--json"))
    return tmp_path


def _run(system: System, folder: Path, *arguments: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, str(_SHOP), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOLDFAST_BROKER_URL": system.broker_url},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    return ran.returncode, ran.stdout or ran.stderr


def _asks(system: System, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    exit_code, said = _run(system, folder, *arguments)
    return exit_code, json.loads(said)


def test_python_example_connects_pays_enrols_and_withdraws(system: System, folder: Path) -> None:
    shop = fresh("example")
    exit_code, public = _run(system, folder, "keygen", f"{shop}.key")
    assert exit_code == 0
    system.holdfast("shop", "add", shop, "--protection-days", "3", "--funding", "announced")
    scopes = ("--scope", "orders", "--scope", "sellers")
    system.holdfast("shop", "key", "add", shop, *scopes, "--ed25519", public.strip())

    exit_code, held = _asks(system, folder, "pay", shop, "o-1")
    assert (exit_code, held["type"], held["data"]["order_id"]) == (0, "order.held", "o-1")
    exit_code, enrolled = _asks(system, folder, "enrol", shop, "s-1")
    assert (exit_code, enrolled["type"]) == (0, "seller.accepted")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not system.holdfast_json("balances", "--shop", shop, "--seller", "s-1")["balances"]["EUR"][
        "available"
    ]:
        assert time.monotonic() < deadline, "the hold was never released"
        time.sleep(0.1)
    exit_code, refused = _asks(
        system, folder, "withdraw", shop, "s-1", "w-1", "1000", "--password", "guessed it"
    )
    assert (exit_code, refused["data"]["reason"]) == (1, "wrong_password")
    exit_code, accepted = _asks(system, folder, "withdraw", shop, "s-1", "w-2", "1000")
    assert (exit_code, accepted["type"]) == (0, "withdrawal.accepted")
