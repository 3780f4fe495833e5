"""Three broker nodes, a database, and every process of the Procfile, on cables that can be cut."""

import contextlib
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from workflow_support.system import CHECKOUT, DAY_SECONDS, Process, System

from chaos.cables import Address, Cable
from infra.local.errors import LocalServiceError
from infra.local.postgres import PrivatePostgres
from infra.local.procfile import read_procfile
from infra.local.rabbitmq import RabbitMQCluster

DATABASE = "holdfast"
NODES = 3
_START_TRIES = 5
# Nine processes and four servers start at once; on a busy machine that takes its time.
_START_SECONDS = 180
_WATCH_SECONDS = 0.1
# As soon as a supervisor would.
_RESTART_SECONDS = 0.5

# Outages last seconds here, so what is waited for is seconds too; everything else is as in production.
_SHORT_TIMES = {"HOLDFAST_BANK_TIMEOUT_SECONDS": "2", "HOLDFAST_PUBLISH_TIMEOUT_SECONDS": "5"}


def _address(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class World:
    """All that runs; `system` drives it, the cables break it."""

    def __init__(self, folder: Path, draw: random.Random, copies: dict[str, int]) -> None:
        """Describe it; nothing runs before `start`."""
        self.cluster = RabbitMQCluster(folder / "rabbitmq", size=NODES)
        self.postgres = PrivatePostgres(folder / "postgres")
        self.broker_cable = Cable(self._broker_addresses, draw)
        self.database_cable = Cable(self._database_addresses, draw, database=True)
        self.outside_cable = Cable(self._broker_addresses, draw)
        # Never cut on purpose: by this one it is measured what the others have done.
        self.clean_cable = Cable(self._broker_addresses, draw)
        self._folder = folder
        self._copies = copies
        self._stopping = threading.Event()
        self._guard: threading.Thread | None = None
        self._system: System | None = None
        self.kills: Counter[str] = Counter()
        self.ended: list[tuple[str, int]] = []
        self._held_back: set[str] = set()

    def start(self) -> None:
        """Start servers, set them up as for a first deployment, and start the workers."""
        booting = threading.Thread(target=self.postgres.start)
        booting.start()
        self.cluster.start()
        booting.join()
        self.postgres.wait_until_ready()
        self.postgres.ensure_database(DATABASE)
        broker_url = self.cluster.nodes[0].url()
        folder = self._folder / "processes"
        folder.mkdir(parents=True)
        self._system = System(
            broker_url=self.clean_cable.url(broker_url),
            database_url=self.postgres.url(DATABASE),
            folder=folder,
        )
        programs = Path(sys.executable).parent
        self.system.environment |= _SHORT_TIMES
        environment = self.system.environment | {
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOLDFAST_BROKER_URL": self.broker_cable.url(broker_url),
            "HOLDFAST_DATABASE_URL": self.database_cable.url(
                self.system.environment["HOLDFAST_DATABASE_URL"]
            ),
        }
        self.outside_url = self.outside_cable.url(broker_url)
        bank = environment | {"HOLDFAST_BROKER_URL": self.outside_url}
        self.system.processes = {
            f"{name}.{number}": Process(f"{name}.{number}", command, environment, folder)
            for name, command in read_procfile(CHECKOUT / "Procfile").items()
            for number in range(1, self._copies.get(name, 1) + 1)
        }
        self.system.processes["bank"] = Process(
            "bank", [sys.executable, "-m", "infra.local.bank"], bank, folder
        )
        self.system.start(patience=_START_SECONDS)
        self._guard = threading.Thread(target=self._keep_running, daemon=True)
        self._guard.start()

    @property
    def system(self) -> System:
        assert self._system is not None
        return self._system

    @property
    def cables(self) -> tuple[Cable, ...]:
        """Those that are cut."""
        return self.broker_cable, self.database_cable, self.outside_cable

    @property
    def workers(self) -> list[str]:
        return [name for name in self.system.processes if name != "bank"]

    def kill(self, name: str) -> None:
        """`kill -9` a process; it is started again soon, as a supervisor would."""
        process = self.system.processes[name]
        with contextlib.suppress(AssertionError, ProcessLookupError):
            if process.is_running:
                self.kills[name] += 1
                process.kill()

    @property
    def workers_at_work(self) -> list[str]:
        processes = self.system.processes
        return [name for name in self.workers if processes[name].is_running and processes[name].is_ready]

    def hold_back(self, name: str) -> None:
        """Stop a worker for good, in good order."""
        self._held_back.add(name)
        process = self.system.processes[name]
        if process.is_running:
            process.stop()

    def kill_database(self) -> None:
        self.kills["PostgreSQL"] += 1
        self.postgres.kill()

    def start_database(self) -> None:
        for attempt in range(_START_TRIES):
            self.postgres.start()
            try:
                self.postgres.wait_until_ready()
            except LocalServiceError:
                if attempt == _START_TRIES - 1:
                    raise
            else:
                return

    def wait_until_whole(self) -> None:
        """Heal everything: servers up, cables plugged, processes running."""
        for cable in self.cables:
            cable.disarm()
        self.start_database()
        self.cluster.start()

    def stop(self) -> None:
        """Stop everything that was started, whatever state it is in."""
        with contextlib.ExitStack() as leaving:
            leaving.callback(self.postgres.stop)
            leaving.callback(self.cluster.stop)
            for cable in (*self.cables, self.clean_cable):
                leaving.callback(cable.close)
            self._stopping.set()
            if self._guard is not None:
                self._guard.join()
            if self._system is not None:
                leaving.callback(self._system.close)

    def _keep_running(self) -> None:
        """Start again what has ended, and note what has ended without being killed."""
        ended: dict[str, float] = {}
        counted: Counter[str] = Counter()
        while not self._stopping.wait(_WATCH_SECONDS):
            for name, process in self.system.processes.items():
                if process.is_running or name in self._held_back:
                    continue
                if name not in ended:
                    ended[name] = time.monotonic()
                    if self.kills[name] == counted[name]:
                        self.ended.append((name, process.ends_by_itself()))
                    counted[name] = self.kills[name]
                elif time.monotonic() - ended[name] > _RESTART_SECONDS:
                    del ended[name]
                    process.start()

    def _broker_addresses(self) -> list[Address]:
        return [_address(node.url()) for node in self.cluster.nodes]

    def _database_addresses(self) -> list[Address]:
        return [_address(self.postgres.url(DATABASE))]


assert DAY_SECONDS == 1, "a whole life has to fit between two faults"
