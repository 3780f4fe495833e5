"""
Runs the Procfile's processes in the background for `make up`.

A process that ends is started again, at once the first time and then after growing pauses, so that a worker
that can't start does not eat the machine. SIGHUP reads the plan again, SIGTERM lets everything drain and
then ends. What it knows stands in `state.json`, for whoever waits for readiness.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from infra.local.files import read_json_object, write_whole
from infra.local.ports import choose_ports
from infra.local.processes import kill_group, record_of, save_record, stop_recorded

READY_FILE_VARIABLE = "HOLDFAST_READY_FILE"
METRICS_PORT_VARIABLE = "HOLDFAST_METRICS_PORT"

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
# Who ran this long has started well; its end is a new story.
_SETTLED_SECONDS = 30.0
_READY_POLL_SECONDS = 0.05
_IDLE_SECONDS = 5.0


class ProcessState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    PAUSING = "pausing"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which commands run, how often each, how long they may take to stop, and what each alone may know."""

    commands: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    stop_seconds: float
    # By name; added to the environment that all have.
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def save(self, path: Path) -> None:
        text = {
            "commands": self.commands,
            "counts": self.counts,
            "stop_seconds": self.stop_seconds,
            "variables": self.variables,
        }
        # The variables hold passwords.
        write_whole(path, json.dumps(text, indent=1, default=dict) + "\n", mode=0o600)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        match read_json_object(path):
            case {
                "commands": dict(commands),
                "counts": dict(counts),
                "stop_seconds": float(stop_seconds),
                "variables": dict(variables),
            }:
                tuples = {name: tuple(command) for name, command in commands.items()}
                return cls(tuples, counts, stop_seconds, variables)
        raise ValueError(f"{path} holds no plan")

    def instances(self) -> dict[str, tuple[str, ...]]:
        """Return the command of each instance, named `payment.1`, `payment.2` and so on."""
        return {
            f"{name}.{number}": command
            for name, command in self.commands.items()
            for number in range(1, self.counts.get(name, 0) + 1)
        }


@dataclass(slots=True)
class _Instance:
    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    state: ProcessState = ProcessState.PAUSING
    started_at: float = 0.0
    start_due_at: float = 0.0
    kill_due_at: float = 0.0
    crashes_in_a_row: int = 0
    restarts: int = 0
    last_exit: int | None = None
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the supervisor keeps what it and others need to know."""

    run: Path
    log: Path

    @property
    def plan(self) -> Path:
        return self.run / "plan.json"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def record(self) -> Path:
        return self.run / "supervisor.pid.json"

    @property
    def supervisor_log(self) -> Path:
        return self.log / "supervisor.log"

    def instance_record(self, name: str) -> Path:
        return self.run / f"{name}.pid.json"

    def instance_ready(self, name: str) -> Path:
        return self.run / f"{name}.ready"

    def instance_port(self, name: str) -> Path:
        return self.run / f"{name}.ports.json"

    def instance_log(self, name: str) -> Path:
        return self.log / f"{name}.log"

    def stop_orphans(self) -> None:
        """Stop what a supervisor that was killed has left running."""
        for path in self.run.glob("*.pid.json"):
            if path != self.record:
                stop_recorded(path, timeout_s=10)


@dataclass(slots=True)
class Supervisor:
    """Keeps the plan's processes running until told to stop."""

    folders: Folders
    checkout: Path
    plan: Plan
    _instances: dict[str, _Instance] = field(default_factory=dict)
    _stopping: bool = False
    _plan_changed: bool = False
    _written: str = ""

    def run(self) -> None:
        """Run until SIGTERM or SIGINT and until the last process has ended."""
        wakeup_read, wakeup_write = os.pipe()
        os.set_blocking(wakeup_write, False)
        os.set_blocking(wakeup_read, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_plan_changed)
        # Its handler does nothing, but without one the end of a child would not wake us.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self.folders.stop_orphans()
        self._follow_plan()
        while True:
            self._turn()
            if self._stopping and not self._instances:
                return
            select.select([wakeup_read], [], [], self._patience())
            while select.select([wakeup_read], [], [], 0)[0]:
                os.read(wakeup_read, 4096)

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _on_plan_changed(self, _number: int, _frame: object) -> None:
        self._plan_changed = True

    def _turn(self) -> None:
        if self._plan_changed:
            self._plan_changed = False
            self.plan = Plan.load(self.folders.plan)
            self._follow_plan()
        if self._stopping:
            for instance in self._instances.values():
                self._begin_stop(instance)
        now = time.monotonic()
        for instance in list(self._instances.values()):
            self._look_after(instance, now)
        self._write_state()

    def _follow_plan(self) -> None:
        wanted = self.plan.instances()
        for name, instance in self._instances.items():
            if name not in wanted:
                self._begin_stop(instance)
        for name, command in wanted.items():
            if name not in self._instances:
                self._instances[name] = _Instance(name, command)

    def _look_after(self, instance: _Instance, now: float) -> None:
        if instance.process is not None and (code := instance.process.poll()) is not None:
            self._note_end(instance, code, now)
        if instance.process is None:
            if instance.state is ProcessState.STOPPING:
                self._forget(instance)
            elif now >= instance.start_due_at:
                self._start(instance, now)
        elif instance.state is ProcessState.STOPPING:
            if now >= instance.kill_due_at:
                record = record_of(instance.process.pid)
                if record is not None:
                    _say("process_killed", name=instance.name, stop_seconds=self.plan.stop_seconds)
                    kill_group(record)
        elif instance.state is ProcessState.STARTING and self.folders.instance_ready(instance.name).exists():
            instance.state = ProcessState.READY
            _say("process_ready", name=instance.name, seconds=round(now - instance.started_at, 2))

    def _environment(self, instance: _Instance, ready: Path) -> dict[str, str]:
        # A port of its own for health and metrics, unless the caller chose one for all (0 for none).
        port = os.environ.get(METRICS_PORT_VARIABLE)
        if port is None:
            chosen = choose_ports(self.folders.instance_port(instance.name), ["metrics"])["metrics"]
            port, instance.metrics_port = str(chosen), chosen
        own = self.plan.variables.get(instance.name.partition(".")[0], {})
        return {**os.environ, **own, READY_FILE_VARIABLE: str(ready), METRICS_PORT_VARIABLE: port}

    def _start(self, instance: _Instance, now: float) -> None:
        ready = self.folders.instance_ready(instance.name)
        ready.unlink(missing_ok=True)
        with self.folders.instance_log(instance.name).open("ab") as log:
            instance.process = subprocess.Popen(  # noqa: S603 - the Procfile is ours, no shell is involved
                instance.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.checkout,
                env=self._environment(instance, ready),
                start_new_session=True,
            )
        record = record_of(instance.process.pid)
        if record is not None:
            save_record(self.folders.instance_record(instance.name), record)
        instance.state = ProcessState.STARTING
        instance.started_at = now
        _say("process_started", name=instance.name, pid=instance.process.pid)

    def _note_end(self, instance: _Instance, code: int, now: float) -> None:
        instance.process = None
        instance.last_exit = code
        self.folders.instance_record(instance.name).unlink(missing_ok=True)
        self.folders.instance_ready(instance.name).unlink(missing_ok=True)
        _say("process_ended", name=instance.name, exit_code=code, state=instance.state)
        if instance.state is ProcessState.STOPPING:
            return
        settled = now - instance.started_at >= _SETTLED_SECONDS
        instance.crashes_in_a_row = 1 if settled else instance.crashes_in_a_row + 1
        instance.restarts += 1
        instance.state = ProcessState.PAUSING
        instance.start_due_at = now + pause_seconds(instance.crashes_in_a_row)

    def _begin_stop(self, instance: _Instance) -> None:
        if instance.state is ProcessState.STOPPING:
            return
        instance.state = ProcessState.STOPPING
        instance.kill_due_at = time.monotonic() + self.plan.stop_seconds
        if instance.process is not None:
            instance.process.terminate()

    def _forget(self, instance: _Instance) -> None:
        del self._instances[instance.name]
        self.folders.instance_port(instance.name).unlink(missing_ok=True)
        # Wanted again while it was stopping: the plan may have changed twice.
        if not self._stopping and instance.name in self.plan.instances():
            self._follow_plan()

    def _patience(self) -> float:
        now = time.monotonic()
        waits = [_IDLE_SECONDS]
        for instance in self._instances.values():
            if instance.state is ProcessState.STARTING:
                waits.append(_READY_POLL_SECONDS)
            elif instance.state is ProcessState.PAUSING:
                waits.append(max(0.0, instance.start_due_at - now))
            elif instance.state is ProcessState.STOPPING:
                waits.append(max(0.0, instance.kill_due_at - now))
        return min(waits)

    def _write_state(self) -> None:
        state = {
            instance.name: {
                "state": instance.state,
                "pid": instance.process.pid if instance.process is not None else None,
                "restarts": instance.restarts,
                "crashes_in_a_row": instance.crashes_in_a_row,
                "last_exit": instance.last_exit,
                "metrics_port": instance.metrics_port,
            }
            for instance in self._instances.values()
        }
        text = json.dumps({"supervisor": os.getpid(), "processes": state}, indent=1) + "\n"
        if text != self._written:
            write_whole(self.folders.state, text)
            self._written = text


def pause_seconds(crashes_in_a_row: int) -> float:
    """Return how long to wait before the next start."""
    doublings = min(crashes_in_a_row - 1, 16)
    return float(min(_FIRST_PAUSE_SECONDS * 2**doublings, _LONGEST_PAUSE_SECONDS))


def _say(event: str, **facts: object) -> None:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stdout.write(json.dumps({"time": moment, "event": event, **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run as `python -m infra.local.supervise RUN_FOLDER LOG_FOLDER CHECKOUT`."""
    run, log, checkout = (Path(argument) for argument in sys.argv[1:4])
    folders = Folders(run, log)
    Supervisor(folders, checkout, Plan.load(folders.plan)).run()


if __name__ == "__main__":
    main()
