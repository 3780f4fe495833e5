"""Resident memory over time, and percentiles."""

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_SECONDS = 0.5


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))

    def kib(one: int) -> int:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        # What is shared, as PostgreSQL's buffers are, counts by its share.
        own = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        return own + sum(kib(child) for child in children.get(one, ()))

    return kib(pid) / 1024


class MemorySampler:
    """Samples the memory of named processes in a thread until it is left; MiB by name, oldest first."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = roots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[str, list[tuple[float, float]]] = {name: [] for name in roots}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self, name: str) -> float:
        return max((mib for _, mib in self.samples[name]), default=0.0)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            for name, pid in self._roots.items():
                self.samples[name].append((time.monotonic(), resident_mib(pid)))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile; of nothing it is not a number."""
    if len(values) < 2:  # noqa: PLR2004 - of one value there are no quantiles
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
