"""
Where the time of an order goes: what each worker computes meanwhile, and what each statement takes.

A worker is sampled by py-spy while it holds the interpreter, which needs the right to trace processes (root
has it). PostgreSQL counts its statements itself, by the clock: waiting for the disk and for a processor is
in it.
"""

import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drain import Drained, MeasurementFailed, Workers, cpu_seconds
from holdfast_workers import WORKERS, Holdfast
from servers import Servers, Written

# The first folder or file that a frame lies in says what it was for; the innermost frame that lies in one
# of them decides, and above all whether something was being published.
_PUBLISHING = ("infra/rabbitmq/publisher.py", "infra/rabbitmq/outbox_publisher.py")
_PURPOSES = (
    ("check the sender and the signature", ("infra/security/", "infra/postgres/key_store.py")),
    ("read and check the event", ("schemas/", "infra/rabbitmq/ingress.py")),
    ("decide, make ids and postings", ("ledger/", "workers/")),
    ("write and run SQL", ("infra/postgres/",)),
    ("measure and log", ("infra/observability/", "structlog/")),
    ("take from the queue and acknowledge", ("infra/rabbitmq/", "dramatiq/", "pika/")),
)
_PUBLISH = "publish what follows"
_FRAME = re.compile(r"\((?P<path>[^()]+?)(?::\d+)?\)$")
_TABLE = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) (\w+)")
_SECONDS_TO_STOP = 20
_WORTH_TELLING = 0.5


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Microseconds an order: of each worker by purpose, of each statement; and the drain as a whole."""

    drained: Drained
    workers: Mapping[str, Mapping[str, float]]
    statements: Sequence[tuple[str, float]]
    # Bytes of write-ahead log, and of tables with their indexes.
    log_bytes: float
    disk_bytes: float


def measure_breakdown(servers: Servers, *, batch_size: int, orders: int) -> Breakdown:
    """
    Drain once with everything watched.

    Raises:
        MeasurementFailed: py-spy may not trace the workers, or has not seen them at work.
    """
    used: dict[str, float] = {}
    written: list[Written] = []
    samples = [servers.folder / f"samples-{name}.txt" for name in WORKERS]

    @contextmanager
    def watch(workers: Workers) -> Iterator[None]:
        roots = {name: [pid] for name, pid in zip(WORKERS, workers.roots, strict=True)}
        servers.forget_statements()
        written.append(servers.written())
        before = cpu_seconds(roots)
        with _sampled(workers.roots, samples):
            yield
        used.update({name: seconds - before[name] for name, seconds in cpu_seconds(roots).items()})
        written.append(servers.written())

    with servers.counting_statements():
        drained = Holdfast("watched", batch_size=batch_size, meanwhile=watch).measure(servers, orders)
        statements = servers.statements()
    return Breakdown(
        drained,
        {
            name: {
                purpose: share * used[name] / orders * 1e6
                for purpose, share in _shares(path.read_text(encoding="utf-8")).items()
            }
            for name, path in zip(WORKERS, samples, strict=True)
        },
        _by_statement(statements, orders),
        log_bytes=written[1].since(written[0]).log / orders,
        disk_bytes=written[1].since(written[0]).disk / orders,
    )


@contextmanager
def _sampled(pids: Sequence[int], files: Sequence[Path]) -> Iterator[None]:
    options = ["--gil", "--rate", "250", "--format", "raw"]
    samplers = [
        subprocess.Popen(
            [Path(sys.prefix) / "bin" / "py-spy", "record", *options, "--output", file, "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pid, file in zip(pids, files, strict=True)
    ]
    try:
        yield
    finally:
        for sampler in samplers:
            sampler.send_signal(signal.SIGINT)
        said = [sampler.communicate(timeout=_SECONDS_TO_STOP)[1] for sampler in samplers]
    for file, words in zip(files, said, strict=True):
        if not file.is_file():
            raise MeasurementFailed(f"py-spy has seen nothing (it needs the right to trace): {words.strip()}")


def _shares(samples: str) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_purpose_of(stack.split(";"))] += int(count)
    total = counts.total()
    return {purpose: count / total for purpose, count in counts.most_common()}


def _purpose_of(stack: Sequence[str]) -> str:
    paths = [found["path"] for frame in stack if (found := _FRAME.search(frame))]
    if any(path.endswith(_PUBLISHING) for path in paths):
        return _PUBLISH
    for path in reversed(paths):
        for purpose, places in _PURPOSES:
            if any(path.startswith(place) or f"/{place}" in path for place in places):
                return purpose
    return "everything else"


def _by_statement(statements: Sequence[tuple[str, float]], orders: int) -> list[tuple[str, float]]:
    micros: dict[str, float] = defaultdict(float)
    for statement, spent_ms in statements:
        micros[_name_of(statement)] += spent_ms * 1000 / orders
    return sorted(micros.items(), key=lambda item: -item[1])


def _name_of(statement: str) -> str:
    written = _TABLE.findall(statement)
    if written:
        return " ".join(written[0])
    return " ".join(statement.split())[:60]


def lines_of(breakdown: Breakdown) -> Iterator[tuple[str, str, float]]:
    """Yield who, what and how many microseconds an order, for everything that takes half of one."""
    for worker, purposes in breakdown.workers.items():
        for purpose, spent in purposes.items():
            if spent >= _WORTH_TELLING:
                yield worker, purpose, spent
    for statement, spent in breakdown.statements:
        if spent >= _WORTH_TELLING:
            yield "PostgreSQL", statement, spent
