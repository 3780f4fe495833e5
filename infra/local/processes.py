"""
Background processes that outlive the command which started them.

A process id alone proves nothing: it may belong to somebody else by now. A record therefore also keeps
the moment at which the kernel started the process and the boot it happened in.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.local.files import read_json_object, write_whole

_POLL_SECONDS = 0.02
_STATE_FIELD = 0
_PARENT_FIELD = 1
_START_TICKS_FIELD = 19


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Who exactly a process is. Each leads a process group of its own."""

    pid: int
    started_ticks: int
    boot_id: str


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat that follow the command's name, or None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may contain anything, parentheses and spaces too.
    return stat.rpartition(")")[2].split()


def record_of(pid: int) -> ProcessRecord | None:
    """Return the record of a process that exists and has not ended."""
    fields = _stat_fields(pid)
    if fields is None or fields[_STATE_FIELD] in "ZX":
        return None
    return ProcessRecord(pid, int(fields[_START_TICKS_FIELD]), _boot_id())


def is_alive(record: ProcessRecord) -> bool:
    """Tell whether this very process still runs."""
    # Ours to reap if this process started it; otherwise init does it.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(record.pid, os.WNOHANG)
    return record_of(record.pid) == record


def save_record(path: Path, record: ProcessRecord) -> None:
    write_whole(path, json.dumps(asdict(record)) + "\n")


def find_running(path: Path) -> ProcessRecord | None:
    """Return the process recorded in a file, if it still runs."""
    match read_json_object(path):
        case {"pid": int(pid), "started_ticks": int(ticks), "boot_id": str(boot_id)}:
            record = ProcessRecord(pid, ticks, boot_id)
            return record if is_alive(record) else None
    return None


def start_background(
    command: Sequence[str | Path],
    *,
    record: Path,
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to `log`, recorded in `record`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # The record outlives this Popen; is_alive() reaps.
        child = subprocess.Popen(  # noqa: S603 - the command is ours, no shell is involved
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    started = record_of(child.pid)
    # It ended at once; keep what there is, the caller sees it when it waits for readiness.
    saved = started if started is not None else ProcessRecord(child.pid, 0, "")
    save_record(record, saved)
    # Nobody waits for this object; without this Python warns when it is collected.
    child.returncode = 0
    return saved


def send_signal(record: ProcessRecord, number: signal.Signals) -> None:
    """Signal the process, if it is still there."""
    if is_alive(record):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)


def wait_for_end(record: ProcessRecord, *, timeout_s: float) -> bool:
    """Tell whether the process ended within the time."""
    deadline = time.monotonic() + timeout_s
    while is_alive(record):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def kill_group(record: ProcessRecord) -> None:
    """End the process and whatever it started that is still in its group."""
    if is_alive(record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, signal.SIGKILL)
        wait_for_end(record, timeout_s=5)


def children_of(parent: ProcessRecord) -> list[ProcessRecord]:
    """Return the processes that a process has started itself and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _stat_fields(int(entry.name)) if entry.name.isdecimal() else None
        if fields is not None and int(fields[_PARENT_FIELD]) == parent.pid:
            found.append(record_of(int(entry.name)))
    return [record for record in found if record is not None]


def stop_recorded(path: Path, number: signal.Signals = signal.SIGTERM, *, timeout_s: float) -> bool:
    """
    Stop the process recorded in a file and forget it.

    Returns:
        Whether it ended in good order; False where it had to be killed.
    """
    running = find_running(path)
    in_good_order = True
    if running is not None:
        send_signal(running, number)
        in_good_order = wait_for_end(running, timeout_s=timeout_s)
        if not in_good_order:
            kill_group(running)
    path.unlink(missing_ok=True)
    return in_good_order


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log, for an error that has to explain itself."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(lines[-count:])
