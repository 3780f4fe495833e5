"""
A whole Holdfast under one folder: private servers, simulated bank, workers; for `make up` and the demo.

Servers that the caller's environment names are used as they are, and only what is missing is started here.
"""

import base64
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.local.errors import LocalServiceError
from infra.local.files import read_json_object, secret, write_whole
from infra.local.logins import OPERATOR, BrokerLogins, DatabaseLogins
from infra.local.ports import LOOPBACK, choose_ports, remembered_ports
from infra.local.processes import (
    ProcessRecord,
    find_running,
    last_lines,
    send_signal,
    start_background,
    stop_recorded,
)
from infra.local.procfile import read_procfile, read_scale
from infra.local.rabbitmq import RabbitMQCluster
from infra.local.services import is_private_url, services_in, start_services
from infra.local.supervise import READY_FILE_VARIABLE, Folders, Plan, ProcessState
from infra.rabbitmq.access import shop_user

CHECKOUT = Path(__file__).parent.parent.parent
LOCAL = CHECKOUT / ".local"

DATABASE = "holdfast"
BANK_ID = "sim"
_BANK_PROCESS = "bank"
_BANK_COMMAND = ("python", "-m", "infra.local.bank")
_SCALE_VARIABLE = "HOLDFAST_SCALE"
_BROKER_VARIABLE = "HOLDFAST_BROKER_URL"
_MANAGEMENT_VARIABLE = "HOLDFAST_BROKER_MANAGEMENT_URL"
_DATABASE_VARIABLE = "HOLDFAST_DATABASE_URL"
_BANK_VARIABLE = "HOLDFAST_BANK_URL"
_PEPPERS_VARIABLE = "HOLDFAST_PASSWORD_PEPPERS"
# Read by the example clients, which are no part of Holdfast.
_SHOPS_VARIABLE = "SHOP_BROKER_URL"
# What the simulated bank alone needs.
_JOURNAL_VARIABLE = "SIMULATED_BANK_JOURNAL"
_BANK_KEY_VARIABLE = "SIMULATED_BANK_KEY_FILE"
# What not every process may know, and which ones may.
_CONFINED: Mapping[str, frozenset[str]] = {
    _BROKER_VARIABLE: frozenset(),
    _DATABASE_VARIABLE: frozenset(),
    _MANAGEMENT_VARIABLE: frozenset(),
    _SHOPS_VARIABLE: frozenset(),
    _PEPPERS_VARIABLE: frozenset({"payout"}),
    _BANK_VARIABLE: frozenset({"payout", _BANK_PROCESS}),
    _JOURNAL_VARIABLE: frozenset({_BANK_PROCESS}),
    _BANK_KEY_VARIABLE: frozenset({_BANK_PROCESS}),
}
_DAY_VARIABLE = "HOLDFAST_PROTECTION_DAY_SECONDS"
_DRAIN_SECONDS = 25.0
# A process is killed only after the time in which it drains by itself.
_STOP_MARGIN_SECONDS = 5.0
_READY_TIMEOUT_SECONDS = 60.0
_GIVE_UP_AFTER_CRASHES = 3
_POLL_SECONDS = 0.05
_KEY_BYTES = 32

Announce = Callable[[str], None]


class Installation:
    """Everything that `make up` runs; its whole state lies in `folder`."""

    def __init__(self, folder: Path = LOCAL, *, caller: Mapping[str, str] | None = None) -> None:
        """
        Describe an installation; nothing runs or is written before `up`.

        Args:
            folder: where all data, logs, secrets and process records go.
            caller: the environment whose HOLDFAST_* variables win; by default this process's, less the URLs
                of private servers that `. .local/env` put there.
        """
        self.folder = folder.resolve()
        self.folders = Folders(self.folder / "run", self.folder / "log")
        self.env_file = self.folder / "env"
        self.owner_env_file = self.folder / "owner-env"
        self._caller = dict(os.environ if caller is None else caller)
        # This process's environment may come from `. .local/env`; what a caller passes is meant.
        self._private_folders = (self.folder, LOCAL) if caller is None else (self.folder,)
        self._services = services_in(
            self.folder,
            broker=self._given(_BROKER_VARIABLE) is None,
            database=self._given(_DATABASE_VARIABLE) is None,
        )
        self._bank_folder = self.folder / "bank"
        self._secrets = self.folder / "secrets"
        broker, database = self._services.rabbitmq, self._services.postgres
        self._broker_logins = BrokerLogins(broker, self._secrets, BANK_ID) if broker else None
        self._database_logins = DatabaseLogins(database, self._secrets, DATABASE) if database else None

    @property
    def broker_url(self) -> str:
        """The broker, as the operator."""
        logins = self._broker_logins
        return self._given(_BROKER_VARIABLE) or (logins.operator_url if logins else "")

    @property
    def broker_management_url(self) -> str | None:
        """The management API; a broker of the caller's has one only if the caller names it."""
        logins = self._broker_logins
        return self._given(_MANAGEMENT_VARIABLE) or (logins.management_url if logins else None)

    @property
    def database_url(self) -> str:
        """The database, as the operator."""
        logins = self._database_logins
        return self._given(_DATABASE_VARIABLE) or (logins.url_of(OPERATOR) if logins else "")

    @property
    def shops_broker_url(self) -> str:
        """The broker, as whoever plays a shop on this machine."""
        logins = self._broker_logins
        return self._given(_BROKER_VARIABLE) or (logins.shops_url if logins else "")

    @property
    def bank_url(self) -> str:
        port = remembered_ports(self._bank_folder / "ports.json").get("bank", 0)
        return self._given(_BANK_VARIABLE) or f"http://{LOOPBACK}:{port}"

    def shop_broker_url(self, shop_id: str) -> str:
        """Give a shop its own user of the private broker, and return its URL."""
        if self._broker_logins is None:
            return self.broker_url
        user = shop_user(shop_id, {"orders", "sellers"})
        self._broker_logins.admit([user])
        return self._broker_logins.url_of(user)

    def environment(self) -> dict[str, str]:
        """Return the whole environment that the operator's commands run in."""
        variables = {
            "HOLDFAST_ENCRYPTION_KEY": secret(self._secrets / "encryption.key", _random_key),
            _PEPPERS_VARIABLE: "1:" + secret(self._secrets / "pepper.key", _random_key),
            **self._remembered_day_length(),
            # An empty variable is one that was not given.
            **{
                name: value
                for name, value in self._caller.items()
                if value or not name.startswith("HOLDFAST_")
            },
            _BROKER_VARIABLE: self.broker_url,
            _MANAGEMENT_VARIABLE: self.broker_management_url or "",
            _DATABASE_VARIABLE: self.database_url,
            _BANK_VARIABLE: self.bank_url,
            _SHOPS_VARIABLE: self.shops_broker_url,
            _JOURNAL_VARIABLE: str(self._bank_folder / "journal"),
            _BANK_KEY_VARIABLE: str(self._bank_key_file()),
            "PATH": f"{_programs()}{os.pathsep}{self._caller.get('PATH', os.defpath)}",
        }
        for only_for_us in (_SCALE_VARIABLE, READY_FILE_VARIABLE):
            variables.pop(only_for_us, None)
        if not variables[_MANAGEMENT_VARIABLE]:
            del variables[_MANAGEMENT_VARIABLE]
        return variables

    def owner_environment(self) -> dict[str, str]:
        """Return the environment of `holdfast migrate` and `holdfast recover`, which need the owner."""
        private = self._services.postgres
        owned = {_DATABASE_VARIABLE: private.url(DATABASE)} if private else {}
        return self.environment() | owned

    def _process_environments(self, names: Iterable[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Return the environment that all processes have, and by process what it has beside that."""
        all_of_it = self.environment()
        shared = {name: value for name, value in all_of_it.items() if name not in _CONFINED}
        own = {}
        for name in names:
            own[name] = {
                variable: all_of_it[variable]
                for variable, knowing in _CONFINED.items()
                if name in knowing and variable in all_of_it
            }
            is_bank = name == _BANK_PROCESS
            broker, database = self._broker_logins, self._database_logins
            own[name][_BROKER_VARIABLE] = (
                broker.url_of_process(name, bank=is_bank) if broker else self.broker_url
            )
            if not is_bank:
                own[name][_DATABASE_VARIABLE] = database.url_of(name) if database else self.database_url
        return shared, own

    def up(self, announce: Announce = lambda _line: None) -> None:
        """
        Start what does not run yet and return when everything is ready.

        Raises:
            LocalServiceError: something can't start; what this call started is stopped again.
        """
        with self._alone():
            was_running = self._supervisor() is not None
            try:
                self._start(announce)
            except BaseException:
                if not was_running:
                    self._stop()
                raise

    def down(self) -> None:
        """Stop everything; data is kept."""
        if self.folder.exists():
            with self._alone():
                self._stop()

    def run_command(self, *arguments: str, as_owner: bool = False) -> str:
        """
        Run `holdfast` as the operator, or as the database's owner, and return what it printed.

        Raises:
            LocalServiceError: it did not exit 0.
        """
        done = subprocess.run(  # noqa: S603 - our own command, no shell is involved
            [str(_programs() / "holdfast"), *arguments],
            stdin=subprocess.DEVNULL,
            check=False,
            capture_output=True,
            text=True,
            env=self.owner_environment() if as_owner else self.environment(),
            cwd=CHECKOUT,
        )
        if done.returncode != 0:
            said = "\n".join(part for part in (done.stdout.strip(), done.stderr.strip()) if part)
            raise LocalServiceError(f"`holdfast {' '.join(arguments)}` failed ({done.returncode}):\n{said}")
        return done.stdout

    def _start(self, announce: Announce) -> None:
        commands = {**read_procfile(CHECKOUT / "Procfile")}
        if self._given(_BANK_VARIABLE) is None:
            commands[_BANK_PROCESS] = _BANK_COMMAND
        counts = read_scale(self._caller.get(_SCALE_VARIABLE, ""), frozenset(commands))
        private = [
            name
            for name, service in (
                ("RabbitMQ", self._services.rabbitmq),
                ("PostgreSQL", self._services.postgres),
            )
            if service is not None and not service.is_running
        ]
        if private:
            announce(f"starting private {' and '.join(private)}")
        if self._supervisor() is None:
            choose_ports(self._bank_folder / "ports.json", ["bank"])
        with ThreadPoolExecutor(max_workers=1) as beside:
            schema: list[Future[None]] = []
            start_services(
                self._services, database_ready=lambda: schema.append(beside.submit(self._prepare_database))
            )
            self._write_env_files()
            announce("bringing schema and topology up to date")
            if self._broker_logins is not None:
                self._broker_logins.admit_installation()
            self.run_command("topology", "apply")
            for prepared in schema:
                prepared.result()

        announce("starting the bank and the workers")
        shared, own = self._process_environments(commands)
        plan = Plan(commands, counts, self._stop_seconds(), own)
        self._supervise(plan, shared)
        self._wait_until_ready(plan)

    def _prepare_database(self) -> None:
        if self._services.postgres is not None:
            self._services.postgres.ensure_database(DATABASE)
        self._remember_day_length()
        self.run_command("migrate", as_owner=True)
        if self._database_logins is not None:
            self._database_logins.admit()
        self.run_command("bank", "key", "add", BANK_ID, "--ed25519", self._bank_public_key())

    def _supervise(self, plan: Plan, environment: Mapping[str, str]) -> None:
        """Start a supervisor with this plan, or hand the plan to the one that runs."""
        # A digest, because the environment holds secrets.
        ours = {name: value for name, value in environment.items() if name.startswith("HOLDFAST_")}
        both = json.dumps([ours, plan.variables], sort_keys=True)
        digest = hashlib.sha256(both.encode()).hexdigest()
        kept_digest = self.folders.run / "environment.sha256"
        running = self._supervisor()
        if running is not None and (
            not kept_digest.exists() or kept_digest.read_text(encoding="ascii").strip() != digest
        ):
            # Processes keep the environment they were started with: with another one they start anew.
            self._stop_supervisor()
            running = None
        plan.save(self.folders.plan)
        if running is not None:
            send_signal(running, signal.SIGHUP)
            return
        self.folders.state.unlink(missing_ok=True)
        write_whole(kept_digest, digest + "\n")
        self.folders.log.mkdir(parents=True, exist_ok=True)
        start_background(
            [sys.executable, "-m", "infra.local.supervise", self.folders.run, self.folders.log, CHECKOUT],
            record=self.folders.record,
            log=self.folders.supervisor_log,
            environment=environment,
            folder=CHECKOUT,
        )

    def _wait_until_ready(self, plan: Plan) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
        wanted = set(plan.instances())
        while True:
            states = process_states(self.folders)
            if wanted == set(states) and all(state is ProcessState.READY for state, _ in states.values()):
                return
            if self._supervisor() is None:
                log = self.folders.supervisor_log
                raise LocalServiceError(f"the supervisor ended, see {log}:\n{last_lines(log)}")
            late = [
                name for name in sorted(wanted) if states.get(name, (None, 0))[0] is not ProcessState.READY
            ]
            crashing = [name for name in late if states.get(name, (None, 0))[1] >= _GIVE_UP_AFTER_CRASHES]
            if crashing or time.monotonic() > deadline:
                name = (crashing or late or sorted(set(states) - wanted))[0]
                what = "ended right after each start" if crashing else "did not get ready"
                log = self.folders.instance_log(name)
                raise LocalServiceError(f"{name} {what}, see {log}:\n{last_lines(log)}")
            time.sleep(_POLL_SECONDS)

    def _supervisor(self) -> ProcessRecord | None:
        return find_running(self.folders.record)

    def _stop_supervisor(self) -> None:
        stop_recorded(self.folders.record, timeout_s=self._stop_seconds() + _STOP_MARGIN_SECONDS)
        self.folders.stop_orphans()
        self.folders.state.unlink(missing_ok=True)

    def _stop(self) -> None:
        self._stop_supervisor()
        # Also those that this caller's environment would not use: an earlier one may have started them.
        services_in(self.folder).stop()

    def _stop_seconds(self) -> float:
        try:
            drain = float(self._caller.get("HOLDFAST_DRAIN_SECONDS", _DRAIN_SECONDS))
        except ValueError:
            drain = _DRAIN_SECONDS
        return drain + _STOP_MARGIN_SECONDS

    def _given(self, variable: str) -> str | None:
        url = self._caller.get(variable)
        if not url or any(is_private_url(url, folder) for folder in self._private_folders):
            return None
        return url

    def _remembered_day_length(self) -> dict[str, str]:
        """Return the length of a day that our database was created with; a later `up` may not name it."""
        kept = read_json_object(self.folder / "postgres" / "day.json").get("seconds")
        if self._services.postgres is None or not isinstance(kept, str):
            return {}
        return {_DAY_VARIABLE: kept}

    def _remember_day_length(self) -> None:
        path = self.folder / "postgres" / "day.json"
        given = self._caller.get(_DAY_VARIABLE)
        if self._services.postgres is not None and given and not path.exists():
            write_whole(path, f'{{"seconds": "{int(given)}"}}\n')

    def _bank_key_file(self) -> Path:
        path = self._secrets / "bank.key"
        secret(path, _random_key)
        return path

    def _bank_public_key(self) -> str:
        seed = base64.b64decode(self._bank_key_file().read_text(encoding="ascii"))
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
        return base64.b64encode(public.public_bytes_raw()).decode()

    def _write_env_files(self) -> None:
        self._write_env_file(self.env_file, self.environment())
        self._write_env_file(self.owner_env_file, self.owner_environment())

    def _write_env_file(self, path: Path, environment: Mapping[str, str]) -> None:
        variables = {
            name: value
            for name, value in environment.items()
            if name.startswith("HOLDFAST_") or name == _SHOPS_VARIABLE
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
        lines.append(f'export PATH={shlex.quote(str(_programs()))}:"$PATH"')
        write_whole(path, "\n".join(lines) + "\n", mode=0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a second `make up` or `make down` of this folder waiting."""
        self.folders.run.mkdir(parents=True, exist_ok=True)
        with (self.folders.run / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def process_states(folders: Folders) -> dict[str, tuple[ProcessState, int]]:
    """Return the state and the crashes in a row of each supervised process."""
    processes = read_json_object(folders.state).get("processes")
    states: dict[str, tuple[ProcessState, int]] = {}
    for name, facts in processes.items() if isinstance(processes, dict) else ():
        match facts:
            case {"state": str(state), "crashes_in_a_row": int(crashes)}:
                states[name] = (ProcessState(state), crashes)
    return states


def metrics_ports(folders: Folders) -> dict[str, int]:
    """Return the port at which each supervised process serves health and metrics; the bank serves none."""
    processes = read_json_object(folders.state).get("processes")
    ports = {}
    for name, facts in processes.items() if isinstance(processes, dict) else ():
        match facts:
            case {"metrics_port": int(port)} if name.partition(".")[0] != _BANK_PROCESS:
                ports[name] = port
    return ports


def installations() -> list[Installation]:
    """Return every installation that may have something running: of `make up` and of a demo cut short."""
    return [Installation(folder) for folder in (LOCAL, *sorted(LOCAL.glob("demo*"))) if folder.is_dir()]


def stop_abandoned_runs() -> None:
    """Stop what test, chaos and benchmark runs that were killed left behind, and delete it."""
    for folder in LOCAL.glob("*/run-*"):
        services_in(folder).stop()
        RabbitMQCluster(folder / "rabbitmq").stop()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Return the folder with `python` and `holdfast`: that of the environment this runs in."""
    return Path(sys.prefix) / "bin"


def _random_key() -> str:
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
