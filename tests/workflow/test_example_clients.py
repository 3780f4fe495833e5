"""The examples that the guides show, as a shop would run them: programs of their own, outside Holdfast."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from workflow_support.outsider import PATIENCE_SECONDS, fresh
from workflow_support.system import CHECKOUT, System

_PYTHON = CHECKOUT / "examples" / "shop.py"
_NODE = CHECKOUT / "examples" / "node"
_PASSWORD = "correct horse battery"


@pytest.fixture
def folder(system: System, tmp_path: Path) -> Path:
    """Where a shop keeps its key and Holdfast's keys."""
    (tmp_path / "holdfast-keys.json").write_text(system.holdfast("keys", "public", "--json"))
    return tmp_path


@pytest.fixture(scope="module")
def node_example() -> Path:
    """The example in Node beside its libraries, which npm installs as its lock pins them."""
    installed = CHECKOUT / ".local" / "example-node"
    installed.mkdir(parents=True, exist_ok=True)
    for file in ("package.json", "package-lock.json", "shop.mjs"):
        shutil.copy(_NODE / file, installed / file)
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(npm, cwd=installed, check=True, timeout=100)
    return installed / "shop.mjs"


class Client:
    """An example program, run in the folder of its shop."""

    def __init__(self, system: System, folder: Path, *program: str) -> None:
        self._system, self._folder, self._program = system, folder, program
        self.shop = fresh("example")
        public = self.run("keygen", f"{self.shop}.key")[1].strip()
        system.holdfast("shop", "add", self.shop, "--protection-days", "3", "--funding", "announced")
        scopes = ("--scope", "orders", "--scope", "sellers")
        system.holdfast("shop", "key", "add", self.shop, *scopes, "--ed25519", public)

    def run(self, *arguments: str) -> tuple[int, str]:
        ran = subprocess.run(
            [*self._program, *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "HOLDFAST_BROKER_URL": self._system.broker_url},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
        return ran.returncode, ran.stdout or ran.stderr

    def asks(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        exit_code, said = self.run(*arguments)
        return exit_code, json.loads(said)

    def wait_for_release(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        of_seller = ("--shop", self.shop, "--seller", "s-1")
        while not self._system.holdfast_json("balances", *of_seller)["balances"]["EUR"]["available"]:
            assert time.monotonic() < deadline, "the hold was never released"
            time.sleep(0.1)


def test_python_example_connects_pays_enrols_and_withdraws(system: System, folder: Path) -> None:
    client = Client(system, folder, sys.executable, str(_PYTHON))
    shop = client.shop
    exit_code, held = client.asks("pay", shop, "o-1")
    assert (exit_code, held["type"], held["data"]["order_id"]) == (0, "order.held", "o-1")
    exit_code, enrolled = client.asks("enrol", shop, "s-1")
    assert (exit_code, enrolled["type"]) == (0, "seller.accepted")
    client.wait_for_release()
    exit_code, refused = client.asks("withdraw", shop, "s-1", "w-1", "1000", "--password", "guessed it")
    assert (exit_code, refused["data"]["reason"]) == (1, "wrong_password")
    exit_code, accepted = client.asks("withdraw", shop, "s-1", "w-2", "1000")
    assert (exit_code, accepted["type"]) == (0, "withdrawal.accepted")


def test_node_example_connects_pays_enrols_and_withdraws(
    system: System, folder: Path, node_example: Path
) -> None:
    client = Client(system, folder, "node", str(node_example))
    shop = client.shop
    exit_code, held = client.asks("pay", shop, "o-1")
    assert (exit_code, held["type"], held["data"]["order_id"]) == (0, "order.held", "o-1")
    exit_code, enrolled = client.asks("enrol", shop, "s-1", _PASSWORD)
    assert (exit_code, enrolled["type"]) == (0, "seller.accepted")
    client.wait_for_release()
    exit_code, refused = client.asks("withdraw", shop, "s-1", "w-1", "1000", "guessed it")
    assert (exit_code, refused["data"]["reason"]) == (1, "wrong_password")
    exit_code, accepted = client.asks("withdraw", shop, "s-1", "w-2", "1000", _PASSWORD)
    assert (exit_code, accepted["type"]) == (0, "withdrawal.accepted")
