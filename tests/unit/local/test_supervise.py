"""The supervisor of `make up`: restarts, scales, drains, and leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local.processes import find_running, is_alive, record_of
from infra.local.supervise import Folders, Plan, pause_seconds

READY_THEN_WAIT = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(os.environ["HOLDFAST_READY_FILE"]).touch()
while True:
    signal.pause()
"""
IGNORES_STOPPING = READY_THEN_WAIT.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
PATIENCE_SECONDS = 20.0


def a_program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@dataclass(slots=True)
class Running:
    """A supervisor under test."""

    folders: Folders
    process: subprocess.Popen[bytes]

    def states(self) -> dict[str, dict[str, object]]:
        if not self.folders.state.exists():
            return {}
        processes: dict[str, dict[str, object]] = json.loads(self.folders.state.read_text())["processes"]
        return processes

    def wait(self, condition: Callable[[dict[str, dict[str, object]]], bool]) -> dict[str, dict[str, object]]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(states := self.states()):
            assert time.monotonic() < deadline, states
            assert self.process.poll() is None, self.process.returncode
            time.sleep(0.01)
        return states

    def wait_ready(self, *names: str) -> dict[str, dict[str, object]]:
        return self.wait(
            lambda states: set(states) == set(names) and all(s["state"] == "ready" for s in states.values())
        )

    def follow(self, plan: Plan) -> None:
        plan.save(self.folders.plan)
        self.process.send_signal(signal.SIGHUP)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[Plan], Running]]:
    """Return a function that runs a plan; whatever is left at the end is killed."""
    folders = Folders(tmp_path / "run", tmp_path / "log")
    folders.log.mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def start(plan: Plan) -> Running:
        plan.save(folders.plan)
        command = [sys.executable, "-m", "infra.local.supervise", folders.run, folders.log, tmp_path]
        process = subprocess.Popen(command, stdout=folders.supervisor_log.open("ab"))
        started.append(process)
        return Running(folders, process)

    yield start
    for process in started:
        process.kill()
        process.wait()
    folders.stop_orphans()


def pid_of(states: dict[str, dict[str, object]], name: str) -> int:
    pid = states[name]["pid"]
    assert isinstance(pid, int)
    return pid


def test_process_is_ready_only_after_its_ready_file(supervise: Callable[[Plan], Running]) -> None:
    plan = Plan(
        {"early": a_program(READY_THEN_WAIT), "never": a_program("import signal; signal.pause()")},
        {"early": 1, "never": 1},
        5.0,
    )
    states = supervise(plan).wait(lambda s: s.get("early.1", {}).get("state") == "ready")
    assert states["never.1"]["state"] == "starting"


def test_killed_process_comes_back(supervise: Callable[[Plan], Running]) -> None:
    running = supervise(Plan({"worker": a_program(READY_THEN_WAIT)}, {"worker": 1}, 5.0))
    first = pid_of(running.wait_ready("worker.1"), "worker.1")
    os.kill(first, signal.SIGKILL)
    states = running.wait(lambda s: s["worker.1"]["state"] == "ready" and s["worker.1"]["pid"] != first)
    assert states["worker.1"]["restarts"] == 1
    assert states["worker.1"]["last_exit"] == -signal.SIGKILL


def test_process_that_ends_by_itself_comes_back_even_with_exit_code_zero(
    supervise: Callable[[Plan], Running],
) -> None:
    running = supervise(Plan({"worker": a_program(READY_THEN_WAIT)}, {"worker": 1}, 5.0))
    first = pid_of(running.wait_ready("worker.1"), "worker.1")
    os.kill(first, signal.SIGTERM)
    states = running.wait(lambda s: s["worker.1"]["state"] == "ready" and s["worker.1"]["pid"] != first)
    assert states["worker.1"]["last_exit"] == 0


def test_new_plan_adds_and_drains_instances_and_leaves_the_others_alone(
    supervise: Callable[[Plan], Running],
) -> None:
    commands = {"worker": a_program(READY_THEN_WAIT)}
    running = supervise(Plan(commands, {"worker": 1}, 5.0))
    first = pid_of(running.wait_ready("worker.1"), "worker.1")

    running.follow(Plan(commands, {"worker": 3}, 5.0))
    more = running.wait_ready("worker.1", "worker.2", "worker.3")
    assert pid_of(more, "worker.1") == first

    running.follow(Plan(commands, {"worker": 1}, 5.0))
    assert pid_of(running.wait_ready("worker.1"), "worker.1") == first
    assert record_of(pid_of(more, "worker.3")) is None


def test_stopped_supervisor_leaves_no_process_and_no_record(supervise: Callable[[Plan], Running]) -> None:
    running = supervise(Plan({"worker": a_program(READY_THEN_WAIT)}, {"worker": 2}, 5.0))
    states = running.wait_ready("worker.1", "worker.2")
    running.process.terminate()
    assert running.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert [record_of(pid_of(states, name)) for name in states] == [None, None]
    assert list(running.folders.run.glob("worker.*")) == []


def test_process_that_does_not_stop_is_killed_when_its_time_is_over(
    supervise: Callable[[Plan], Running],
) -> None:
    running = supervise(Plan({"worker": a_program(IGNORES_STOPPING)}, {"worker": 1}, 0.3))
    pid = pid_of(running.wait_ready("worker.1"), "worker.1")
    running.process.terminate()
    assert running.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert record_of(pid) is None


def test_next_supervisor_stops_what_a_killed_one_left_running(supervise: Callable[[Plan], Running]) -> None:
    """Two supervisors' workers at once would be twice as many as were asked for."""
    plan = Plan({"worker": a_program(READY_THEN_WAIT)}, {"worker": 1}, 5.0)
    killed = supervise(plan)
    killed.wait_ready("worker.1")
    orphan = find_running(killed.folders.instance_record("worker.1"))
    assert orphan is not None
    killed.process.kill()
    killed.process.wait()
    assert is_alive(orphan)

    killed.folders.state.unlink()
    second = supervise(plan)
    assert pid_of(second.wait_ready("worker.1"), "worker.1") != orphan.pid
    assert not is_alive(orphan)


def test_pauses_between_restarts_grow_to_half_a_minute() -> None:
    pauses = [pause_seconds(crashes) for crashes in range(1, 40)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0
