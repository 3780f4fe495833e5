"""
One measurement: warm workers, standing still, before a full queue; then how long until it is drained.

Filling the queue costs the same two processors that the workers need, so it is done while they are
stopped (SIGSTOP), for everybody alike. The clock runs from the moment they go on to the last commit.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from orders import Order
from servers import Servers

from infra.rabbitmq.messages import Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher

_POLL_SECONDS = 0.02
# Asking may cost the contestant something, so not as often as files are looked at.
_ASK_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 0.5
_READY_SECONDS = 60.0
_STALLED_SECONDS = 60.0
_STOP_SECONDS = 40.0
_PUBLISH_CHUNK = 5_000


class MeasurementFailed(Exception):
    """Something did not finish; a number would mean nothing."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What one measurement gave."""

    orders: int
    seconds: float
    peak_rss_mib: float
    # Processor time by who used it. Unlike the speed, other work on the machine hardly changes it.
    cpu_seconds: Mapping[str, float]
    # What part of the machine's processors went to anything else meanwhile.
    foreign_share: float

    @property
    def per_second(self) -> float:
        return self.orders / self.seconds


class Workers:
    """The processes under measurement, each leading a group of its own."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
        self._processes = processes
        self._log = log

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def check(self) -> None:
        """Raise if one has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise MeasurementFailed(
                    f"a worker ended ({process.returncode}), see {self._log}:\n{self.said()}"
                )

    def said(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])

    def peak_rss_mib(self) -> float:
        """Return the highest resident memory of any of the processes and their children."""
        peak = 0
        groups = {process.pid for process in self._processes}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getpgid(int(status.parent.name)) in groups:
                    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
                    peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
            except (OSError, ValueError):
                continue
        return peak / 1024

    @property
    def roots(self) -> list[int]:
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        self.resume()
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


@contextmanager
def started(
    commands: Sequence[Sequence[str]], *, environments: Sequence[Mapping[str, str]], log: Path, folder: Path
) -> Iterator[Workers]:
    """Start processes; stop them afterwards, whatever happened."""
    log.parent.mkdir(parents=True, exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    workers = Workers(running, log)
    try:
        with log.open("ab") as output:
            for command, environment in zip(commands, environments, strict=True):
                running.append(
                    subprocess.Popen(
                        command,
                        env=dict(environment),
                        cwd=folder,
                        stdout=output,
                        stderr=output,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
        yield workers
    finally:
        workers.stop()


def publish_all(broker_url: str, messages: Sequence[Outgoing]) -> None:
    """Publish with confirms, many at a time."""
    publisher = Publisher(broker_url, name="bench")
    try:
        for start in range(0, len(messages), _PUBLISH_CHUNK):
            chunk = messages[start : start + _PUBLISH_CHUNK]
            outcomes = publisher.publish(chunk, timeout_s=60)
            if any(outcome is not PublishOutcome.CONFIRMED for outcome in outcomes):
                raise MeasurementFailed(f"the broker did not take a message: {set(outcomes)}")
    finally:
        publisher.close()


def wait_until_done(done: Callable[[], int], wanted: int, workers: Workers) -> None:
    """Return some time after the last was finished; `done` says how many are."""
    seen, asked_at = -1, time.monotonic()
    moved_at = asked_at
    while True:
        count = done()
        if count >= wanted:
            return
        now = time.monotonic()
        pause = _ASK_SECONDS
        if count != seen:
            if seen >= 0:
                left_seconds = (wanted - count) * (now - asked_at) / (count - seen)
                pause = max(pause, min(_LONGEST_PAUSE_SECONDS, left_seconds / 2))
            seen, moved_at = count, now
        elif now - moved_at > _STALLED_SECONDS:
            raise MeasurementFailed(f"stalled at {count} of {wanted}:\n{workers.said()}")
        workers.check()
        asked_at = now
        time.sleep(pause)


def drain(
    workers: Workers,
    *,
    fill: Callable[[Sequence[Order]], None],
    warm_up: Sequence[Order],
    orders: Sequence[Order],
    done: Callable[[], int],
    ended_at: Callable[[], float],
    servers: Servers,
    waiting_seconds: float = 0,
    meanwhile: Callable[[Workers], AbstractContextManager[None]] = nullcontext,
) -> Drained:
    """
    Warm up, stand still, fill the queue, and measure how long it takes to drain.

    `done` says how many are finished, and `ended_at` in the end when the last one was, by the monotonic
    clock. `waiting_seconds` is what every order has to wait by the rules, whoever carries it out; it is
    taken off.
    """
    fill(warm_up)
    wait_until_done(done, len(warm_up), workers)
    workers.pause()
    fill(orders)
    servers.settle()
    roots = {"workers": workers.roots, **servers.roots()}
    used_before, busy_before = cpu_seconds(roots), _busy_seconds()
    began = time.monotonic()
    workers.resume()
    with meanwhile(workers):
        wait_until_done(done, len(warm_up) + len(orders), workers)
    used = {name: seconds - used_before[name] for name, seconds in cpu_seconds(roots).items()}
    busy = _busy_seconds() - busy_before
    processor_seconds = (time.monotonic() - began) * len(os.sched_getaffinity(0))
    foreign = max(0.0, busy - sum(used.values())) / processor_seconds
    seconds = ended_at() - began - waiting_seconds
    return Drained(len(orders), seconds, workers.peak_rss_mib(), used, foreign)


def _busy_seconds() -> float:
    """Return the processor time that anybody on this machine used since it started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts = map(int, fields[:7])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(roots: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the processor time that processes and all their descendants used, those that ended too."""
    own: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold anything.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        own[pid] = sum(map(int, fields[11:15]))
        children.setdefault(int(fields[1]), []).append(pid)

    def ticks(pid: int) -> int:
        return own.get(pid, 0) + sum(ticks(child) for child in children.get(pid, ()))

    per_second = os.sysconf("SC_CLK_TCK")
    return {name: sum(map(ticks, pids)) / per_second for name, pids in roots.items()}


def wait_for_files(paths: Sequence[Path], workers: Workers) -> None:
    """Return when each process has made its file to say that it is ready."""
    deadline = time.monotonic() + _READY_SECONDS
    while not all(path.exists() for path in paths):
        workers.check()
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"workers did not get ready:\n{workers.said()}")
        time.sleep(_POLL_SECONDS)
