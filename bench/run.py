"""
Measure orders per second, side by side on one broker and one database, and print the ratios.

Rounds alternate between the contestants, so that whatever else the machine does hits all of them; each
ratio is taken within a round, and the table shows the median and the spread over the rounds.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import structlog
from arrivals import measure_latency
from breakdown import measure_breakdown
from contestants import (
    BATCHES,
    FULL,
    SHORT,
    SINGLES,
    Length,
    Side,
    on_a_ledger_of,
    partitioned_sides,
    scaled_sides,
    sides,
    stock_empty,
    stock_orm,
)
from drain import Drained, MeasurementFailed
from holdfast_workers import installed
from plots import plot_growth, plot_storm
from rich.console import Console
from rich.table import Table
from servers import CHECKOUT, Servers, running_servers
from storm import measure_storm
from tables import (
    Round,
    print_breakdown,
    print_latencies,
    print_ratios,
    print_speeds,
    print_storm,
    ratios_of,
    warn_of_others,
)

from infra.local.errors import LocalServiceError

_RESULTS = CHECKOUT / ".local" / "bench" / "results"
_LATENCY_RATES = (10.0, 100.0, 1000.0)
_STORM_ORDER_RATE = 50.0


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: the servers, how much to measure, and where to print and draw what came of it."""

    servers: Servers
    console: Console
    length: Length
    folder: Path
    # Sides of the ratios; all of them where None.
    only: Sequence[str] | None = None

    def ratios(self) -> dict[str, object]:
        wanted = [side for side in sides(self.length) if self.only is None or side.name in self.only]
        results = self._measure(wanted)
        if self.only is None:
            plot_growth(
                self.folder / "speed-by-ledger-size.svg",
                [
                    (size, statistics.median(one[on_a_ledger_of(size).name].per_second for one in results))
                    for size in (0, *self.length.ledger_sizes)
                ],
            )
        return as_data(wanted, results)

    def breakdown(self) -> dict[str, object]:
        found = {
            name: measure_breakdown(self.servers, batch_size=batch_size, orders=self.length.fast_orders)
            for name, batch_size in ((SINGLES, 1), (BATCHES, 100))
        }
        for name, breakdown in found.items():
            print_breakdown(self.console, name, breakdown)
        return {name: asdict(breakdown) for name, breakdown in found.items()}

    def scaling(self) -> dict[str, object]:
        wanted = scaled_sides(self.length)
        return as_data(wanted, self._measure(wanted))

    def latency(self) -> dict[str, object]:
        with installed(self.servers) as there:
            found = measure_latency(
                there,
                _LATENCY_RATES,
                seconds=self.length.latency_seconds,
                at_least_orders=self.length.latency_orders,
            )
        print_latencies(self.console, found)
        return {f"{one.rate:g}": {"p50_ms": one.p50_ms, "p99_ms": one.p99_ms} for one in found}

    def storm(self) -> dict[str, object]:
        with installed(self.servers) as there:
            storm = measure_storm(
                there,
                self.length.storm_holds,
                spread_seconds=self.length.storm_seconds,
                calm_seconds=self.length.calm_seconds,
                rate=_STORM_ORDER_RATE,
            )
        plot_storm(self.folder / "storm.svg", storm)
        print_storm(self.console, storm)
        return asdict(storm)

    def partitions(self) -> dict[str, object]:
        wanted = partitioned_sides(self.length)
        return as_data(wanted, self._measure(wanted))

    def _measure(self, wanted: Sequence[Side]) -> list[Round]:
        """Measure everybody once a round and print what came of it; return it round by round."""
        results: list[Round] = []
        for number in range(self.length.rounds):
            this_round: dict[str, Drained] = {}
            # Every other round runs backwards: nobody always comes after the same one.
            for side in wanted if number % 2 == 0 else reversed(wanted):
                for contestant in side.contestants:
                    drained = contestant.measure(self.servers, side.orders)
                    this_round[contestant.name] = drained
                    self.console.print(
                        f"round {number + 1}: {contestant.name}: {drained.per_second:,.0f}/s", highlight=False
                    )
            results.append(this_round)
        print_speeds(self.console, wanted, results)
        print_ratios(self.console, wanted, results)
        warn_of_others(self.console, results)
        return results


_PARTS: dict[str, Callable[[Bench], dict[str, object]]] = {
    "ratios": Bench.ratios,
    "breakdown": Bench.breakdown,
    "scaling": Bench.scaling,
    "latency": Bench.latency,
    "storm": Bench.storm,
    "partitions": Bench.partitions,
}
# It answers a question about the design, not about the release: run when it is asked for.
_UNLESS_ASKED = ("partitions",)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="more orders and rounds; takes several times as long"
    )
    parser.add_argument("--tune", action="store_true", help="look for the baselines' best settings instead")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument(
        "--part", choices=_PARTS, help=f"measure this part alone; not among all: {', '.join(_UNLESS_ASKED)}"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[side.name for side in sides(SHORT)],
        help="measure this side of the ratios alone; may be given again, for a ratio of two",
    )
    chosen = parser.parse_args(arguments)
    length = FULL if chosen.full else SHORT
    if chosen.rounds:
        length = replace(length, rounds=chosen.rounds)
    terminal = Console()
    # Where output is no terminal, nothing is cut to fit one.
    console = terminal if terminal.is_terminal else Console(width=140)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if chosen.part:
        parts = [chosen.part]
    else:
        parts = ["ratios"] if chosen.only else [part for part in _PARTS if part not in _UNLESS_ASKED]
    began = time.monotonic()
    try:
        with running_servers() as servers:
            if chosen.tune:
                tune(servers, console, length)
                return 0
            facts = {**machine(), **servers.versions()}
            document = {
                "measured_at": datetime.now(UTC).isoformat(),
                "command": " ".join(["python", "bench", *sys.argv[1:]]),
                "facts": facts,
                "length": asdict(length),
            }
            folder = _RESULTS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            folder.mkdir(parents=True, exist_ok=True)
            bench = Bench(servers, console, length, folder, chosen.only)
            for part in parts:
                document[part] = _PARTS[part](bench)
                # After each part, so that what was measured is kept whatever comes.
                (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except (MeasurementFailed, LocalServiceError) as error:
        console.print(f"[red]not measured:[/red] {error}", highlight=False)
        return 1
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    console.print(
        f"\nOn {facts['processors']} processors ({facts['processor']}), {facts['memory_gib']} GiB: "
        f"RabbitMQ {facts['rabbitmq']}, PostgreSQL {facts['postgresql']}, Python {facts['python']}, "
        f"Dramatiq {facts['dramatiq']}, Celery {facts['celery']}, DBOS {facts['dbos']}; "
        f"rounds: {length.rounds}; {minutes} min {seconds} s.",
        highlight=False,
    )
    console.print(f"Every measurement and the plots: {folder.relative_to(CHECKOUT)}", highlight=False)
    return 0


def tune(servers: Servers, console: Console, length: Length) -> None:
    """Print every setting of the baselines that was thought worth trying."""
    table = Table(title="Baselines, orders per second")
    table.add_column("")
    table.add_column("/s", justify="right")
    for processes in (1, 2):
        for threads in (1, 2, 4, 8):
            for prefetch in (2 * threads, 32, 256, 1024):
                for contestant, orders in (
                    (
                        stock_empty(processes=processes, threads=threads, prefetch=prefetch),
                        length.fast_orders // 2,
                    ),
                    (stock_orm(processes=processes, threads=threads, prefetch=prefetch), length.slow_orders),
                ):
                    if prefetch > 32 and contestant.module == "stock_orm":  # noqa: PLR2004 - the database is what limits
                        continue
                    drained = contestant.measure(servers, orders)
                    console.print(f"{contestant.name}: {drained.per_second:,.0f}/s", highlight=False)
                    table.add_row(contestant.name, f"{drained.per_second:,.0f}")
    console.print(table)


def machine() -> dict[str, object]:
    """Say what this was measured on."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpu if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": models[0] if models else platform.machine(),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "dramatiq": version("dramatiq"),
        "sqlalchemy": version("sqlalchemy"),
        "psycopg": version("psycopg"),
        "pika": version("pika"),
        "celery": version("celery"),
        "dbos": version("dbos"),
    }


def as_data(wanted: Sequence[Side], results: Sequence[Round]) -> dict[str, object]:
    """Everything that was measured, round by round, and the ratios."""
    return {
        "orders": {side.name: side.orders for side in wanted},
        "rounds": [
            {
                name: {**asdict(drained), "per_second": drained.per_second}
                for name, drained in this_round.items()
            }
            for this_round in results
        ],
        "ratios": [
            {**asdict(ratio), "values": values, "by_cpu": by_cpu}
            for ratio, values, by_cpu in ratios_of(wanted, results)
        ],
    }
