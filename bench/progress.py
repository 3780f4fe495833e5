"""
How far the baselines' actors are, told at next to no cost: each process counts in a small mapped file.

An empty actor is to be measured, so counting must not be what is measured: one lock and sixteen bytes.
"""

import mmap
import os
import struct
import threading
import time
from pathlib import Path

FOLDER_VARIABLE = "HOLDFAST_BENCH_PROGRESS"
_FORMAT = struct.Struct("<qq")


class Progress:
    """This process's count of finished messages; made on first use, so that forked workers get their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._count = 0

    def one_more(self) -> None:
        with self._lock:
            if self._map is None:
                self._map = _mapped(Path(os.environ[FOLDER_VARIABLE]) / f"{os.getpid()}.count")
            self._count += 1
            _FORMAT.pack_into(self._map, 0, self._count, time.monotonic_ns())


def read_progress(folder: Path) -> tuple[int, float]:
    """Return how many messages all processes finished, and when (`time.monotonic`) the last of them was."""
    count, last_ns = 0, 0
    for path in folder.glob("*.count"):
        raw = path.read_bytes()
        if len(raw) == _FORMAT.size:
            theirs, at_ns = _FORMAT.unpack(raw)
            count += theirs
            last_ns = max(last_ns, at_ns)
    return count, last_ns / 1e9


def _mapped(path: Path) -> mmap.mmap:
    with path.open("w+b") as file:
        file.truncate(_FORMAT.size)
        return mmap.mmap(file.fileno(), _FORMAT.size)
