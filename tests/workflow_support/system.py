"""The whole system as an operator runs it: real processes, driven by the `holdfast` command."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pika
import psycopg

from infra.local.bank.keys import make_signing_key, read_signing_key
from infra.local.ports import choose_ports
from infra.postgres.roles import role_name
from infra.rabbitmq.topology import ORPHANS_QUEUE, QUARANTINE_QUEUE, WORK_QUEUES
from workflow_support.canaries import must_be_nowhere, plant, seen_in
from workflow_support.outsider import Ed25519Key, HmacKey, Key, Shop, fresh

WORKERS = ("payment", "escrow", "payout", "relay")
START_SECONDS = 60.0
DAY_SECONDS = 1
COOLING_OFF_SECONDS = 3
CHECKOUT = Path(__file__).parent.parent.parent


class Process:
    """One process of the system: started, killed, started again."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self._command = command
        self._ready = folder / f"{name}.ready"
        self._log = folder / f"{name}.log"
        self._environment = environment | {"HOLDFAST_READY_FILE": str(self._ready)}
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, **variables: str) -> None:
        """Start with these variables from now on."""
        self._environment |= variables

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=CHECKOUT, stdout=log, stderr=log
            )

    def wait_until_ready(self, *, patience: float = START_SECONDS) -> None:
        deadline = time.monotonic() + patience
        while not self.is_ready:
            assert self.is_running, f"{self.name} ended:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.log}"
            time.sleep(0.02)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        return self._ready.exists()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    def kill(self) -> None:
        """`kill -9`: no chance to finish anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        return self._end(signal.SIGTERM)

    def ends_by_itself(self) -> int:
        """Wait until it has ended; return its exit code."""
        assert self._process is not None
        return self._process.wait(START_SECONDS)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(40)


class System:
    """Workers, relay and a simulated bank on one broker and one database; a protection day is a second."""

    def __init__(
        self, *, broker_url: str, database_url: str, folder: Path, users: Mapping[str, str] | None = None
    ) -> None:
        """Describe the system; `users` holds the broker URLs of processes that log in as themselves."""
        self.broker_url = broker_url
        port = choose_ports(folder / "bank-ports.json", ["bank"])["bank"]
        self.bank_url = f"http://127.0.0.1:{port}"
        self._key_file = folder / "bank.key"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
            "HOLDFAST_BROKER_URL": broker_url,
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_BANK_URL": self.bank_url,
            "HOLDFAST_ENCRYPTION_KEY": plant(base64.b64encode(secrets.token_bytes(32)).decode()),
            "HOLDFAST_PASSWORD_PEPPERS": f"1:{plant(base64.b64encode(secrets.token_bytes(32)).decode())}",
            "HOLDFAST_PROTECTION_DAY_SECONDS": str(DAY_SECONDS),
            # Long enough to be seen, short enough to be waited for.
            "HOLDFAST_COOLING_OFF_SECONDS": str(COOLING_OFF_SECONDS),
            "HOLDFAST_BANK_POLL_SECONDS": "0.5",
            "HOLDFAST_LOG_FORMAT": "json",
            # What a killed process leaves behind is taken over soon enough for a test to wait for.
            "HOLDFAST_OUTBOX_GRACE_SECONDS": "1",
            "HOLDFAST_SWEEP_SECONDS": "1",
            "HOLDFAST_SWEEP_GRACE_SECONDS": "5",
            "SIMULATED_BANK_JOURNAL": str(folder / "bank"),
            "SIMULATED_BANK_KEY_FILE": str(self._key_file),
        }
        commands = {name: [sys.executable, "-m", f"workers.{name}.worker"] for name in WORKERS}
        commands["bank"] = [sys.executable, "-m", "infra.local.bank"]
        self.processes = {
            name: Process(
                name,
                command,
                self.environment | {"HOLDFAST_BROKER_URL": (users or {}).get(name, broker_url)},
                folder,
            )
            for name, command in commands.items()
        }
        self._terminal = Terminal(self.environment)
        self._folder = folder
        self._owner_url = database_url
        self._logins: list[str] = []
        self._holdfast_keys: list[dict[str, str]] = []
        self._shops: list[Shop] = []
        self._shop_ids: list[str] = []

    def start(self, *, patience: float = START_SECONDS) -> None:
        """Set up broker and database as for a first deployment, then start everything."""
        self.holdfast("migrate")
        self._log_in_as_little_as_each_may()
        self.holdfast("topology", "apply")
        public = make_signing_key(self._key_file)
        plant(self._key_file.read_text(encoding="ascii").strip())
        self.holdfast("bank", "key", "add", "sim", "--ed25519", public)
        self._holdfast_keys = self.holdfast_json("keys", "public")["keys"]
        for process in self.processes.values():
            process.start()
        for process in self.processes.values():
            process.wait_until_ready(patience=patience)

    def stop(self) -> dict[str, int]:
        """Stop every process; return their exit codes."""
        for shop in self._shops:
            shop.close()
        self._shops.clear()
        codes = {name: process.stop() for name, process in self.processes.items() if process.is_running}
        self._no_secret_waits_in_a_queue()
        return codes

    def _no_secret_waits_in_a_queue(self) -> None:
        """Look into all that the stopped workers have left, and into what shops have not fetched."""
        connection = pika.BlockingConnection(pika.URLParameters(self.broker_url))
        try:
            events = [f"events.{shop_id}" for shop_id in self._shop_ids]
            dead = [f"{queue}.XQ" for queue in WORK_QUEUES]
            for queue in (*WORK_QUEUES, *dead, QUARANTINE_QUEUE, ORPHANS_QUEUE, *events):
                channel = connection.channel()
                while (got := channel.basic_get(queue))[0] is not None:
                    text = f"{got[1].headers} {got[2].decode('utf-8', 'replace')}"
                    must_be_nowhere(f"queue {queue}: {secret}" for secret in seen_in(text))
                channel.close()  # whatever was got goes back
        finally:
            connection.close()

    def close(self) -> None:
        self.stop()
        self._terminal.close()
        with psycopg.connect(self._owner_url, autocommit=True) as connection:
            for login in self._logins:
                connection.execute(f'DROP ROLE "{login}"'.encode())

    def _log_in_as_little_as_each_may(self) -> None:
        """From here on each worker, and the operator, has a login with the rights of its kind only."""
        for name in (*WORKERS, "operator"):
            login, password = fresh(f"hf-{name}"), plant(secrets.token_hex(16))
            with psycopg.connect(self._owner_url, autocommit=True) as connection:
                connection.execute(
                    f"CREATE ROLE \"{login}\" LOGIN PASSWORD '{password}' IN ROLE {role_name(name)}".encode()
                )
            self._logins.append(login)
            _, _, place = self._owner_url.rpartition("@")
            url = f"postgresql://{login}:{password}@{place}"
            if name in self.processes:
                self.processes[name].use(HOLDFAST_DATABASE_URL=url)
            else:
                self._terminal.close()
                self._terminal = Terminal(self.environment | {"HOLDFAST_DATABASE_URL": url})

    def a_shop(self, *terms: str, scheme: str = "v1a", days: int = 3) -> Shop:
        """Register a shop with one key for everything; return it as it is outside."""
        shop_id = fresh("shop")
        self.holdfast("shop", "add", shop_id, "--protection-days", str(days), *terms)
        key: Key
        if scheme == "v1a":
            key = ed25519 = Ed25519Key()
            how = ["--ed25519", ed25519.public]
        else:
            key = shared = HmacKey()
            secret_file = self._folder / f"{shop_id}.secret"
            secret_file.write_text(plant(shared.secret))
            how = ["--hmac-file", str(secret_file)]
        self.holdfast("shop", "key", "add", shop_id, "--scope", "orders", "--scope", "sellers", *how)
        shop = Shop(self.broker_url, shop_id, key, self._holdfast_keys)
        self._shops.append(shop)
        self._shop_ids.append(shop_id)
        return shop

    def buyers_pay(self, *orders: dict[str, Any]) -> None:
        """Buyers transfer the money of these orders to the bank, which tells Holdfast."""
        credits_ = [
            {name: order[name] for name in ("bank_reference", "amount", "currency")} for order in orders
        ]
        httpx.post(f"{self.bank_url}/credits", json=credits_, timeout=30).raise_for_status()

    @property
    def bank_key(self) -> Key:
        """What the bank signs with."""
        return Ed25519Key(read_signing_key(self._key_file))

    def bank_behaves(self, behaviour: str, **rule: Any) -> None:
        httpx.put(
            f"{self.bank_url}/behaviour", json={"behaviour": behaviour, **rule}, timeout=30
        ).raise_for_status()

    def accepted_by_bank(self, end_to_end_id: str) -> int:
        """Return how many transfers the bank made under an id, by its own journal."""
        journal = httpx.get(f"{self.bank_url}/journal", timeout=30).raise_for_status().json()
        return sum(
            (entry["kind"], entry.get("end_to_end_id")) == ("transfer_accepted", end_to_end_id)
            for entry in journal
        )

    def balances(self, shop: Shop, seller: str) -> dict[str, int]:
        """Return a seller's CNY as `holdfast balances` tells it."""
        told = self.holdfast_json("balances", "--shop", shop.id, "--seller", seller)
        return dict(told["balances"]["CNY"])

    def broken_promises(self) -> list[dict[str, Any]]:
        """Return what `holdfast audit` finds wrong."""
        exit_code, said = self._terminal.run(["audit", "--json"])
        told = json.loads(said)
        assert (exit_code == 0) == told["ok"]
        return [check for check in told["checks"] if not check["ok"]]

    def holdfast_json(self, *arguments: str) -> Any:
        return json.loads(self.holdfast(*arguments, "--json"))

    def holdfast(self, *arguments: str) -> str:
        exit_code, said = self._terminal.run(arguments)
        assert exit_code == 0, f"holdfast {' '.join(arguments)}: {said}"
        return said

    def holdfast_of_the_owner(self, *commands: tuple[str, ...]) -> None:
        """Run commands with all rights in the database, as `migrate` and `recover` need them."""
        terminal = Terminal(self.environment)
        try:
            for arguments in commands:
                exit_code, said = terminal.run(arguments)
                assert exit_code == 0, f"holdfast {' '.join(arguments)}: {said}"
        finally:
            terminal.close()


# `holdfast` takes a second to start; typed into one terminal, many commands share that.
_TERMINAL = """
import contextlib, io, json, sys
from ops.cli import main
for line in sys.stdin:
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        exit_code = main(json.loads(line))
    print(json.dumps([exit_code, said.getvalue() + complained.getvalue()]), flush=True)
"""


class Terminal:
    """A process in which `holdfast` commands run one after another."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TERMINAL],
            env=environment,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run one command; return its exit code and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(arguments)) + "\n")
        self._process.stdin.flush()
        exit_code, said = json.loads(self._process.stdout.readline())
        return exit_code, said

    def close(self) -> None:
        self._process.communicate(timeout=30)
