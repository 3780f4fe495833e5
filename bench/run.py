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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import structlog
from contestants import Contestant, Holdfast, Stock
from drain import Drained, MeasurementFailed
from rich.console import Console
from rich.table import Table
from servers import CHECKOUT, Servers, running_servers

from infra.local.errors import LocalServiceError

# Above this, somebody else's work shows in the numbers.
_FOREIGN_SHARE = 0.05
_RESULTS = CHECKOUT / ".local" / "bench" / "results"
_EMPTY, _OBVIOUS = "an empty actor", "the obvious way"
_SINGLES, _BATCHES, _HOT = "singles, HMAC", "batches, Ed25519", "one seller, HMAC"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a ratio: the best of its contestants counts."""

    name: str
    contestants: tuple[Contestant, ...]
    orders: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two sides, and the least that it should be."""

    ours: str
    against: str
    floor: float


@dataclass(frozen=True, slots=True)
class Length:
    """How much to measure."""

    rounds: int
    empty_orders: int
    fast_orders: int
    slow_orders: int


SHORT = Length(rounds=2, empty_orders=30_000, fast_orders=12_000, slow_orders=1_500)
FULL = Length(rounds=5, empty_orders=150_000, fast_orders=60_000, slow_orders=6_000)

RATIOS = (
    Ratio(_SINGLES, _EMPTY, 1.5),
    Ratio(_SINGLES, _OBVIOUS, 15),
    Ratio(_BATCHES, _OBVIOUS, 30),
    Ratio(_HOT, _SINGLES, 0.9),
)


def sides(length: Length) -> tuple[Side, ...]:
    """Name everybody, at the settings that `--tune` found best here."""
    return (
        Side(
            _EMPTY,
            (
                # Threads only fight for the interpreter here; the processor is what limits.
                stock_empty(processes=1, threads=1, prefetch=1024),
                stock_empty(processes=2, threads=1, prefetch=1024),
                stock_empty(processes=2, threads=1, prefetch=1024, queue_type="quorum"),
            ),
            length.empty_orders,
        ),
        Side(
            _OBVIOUS,
            (
                stock_orm(processes=1, threads=8, prefetch=32),
                stock_orm(processes=2, threads=4, prefetch=32),
            ),
            length.slow_orders,
        ),
        Side(_SINGLES, (Holdfast(_SINGLES),), length.fast_orders),
        Side(_BATCHES, (Holdfast(_BATCHES, batch_size=100),), 2 * length.fast_orders),
        Side(_HOT, (Holdfast(_HOT, sellers=1),), length.fast_orders),
    )


def stock_empty(*, processes: int, threads: int, prefetch: int, queue_type: str = "classic") -> Stock:
    name = f"empty actor, {processes}p x {threads}t, {prefetch}" + (
        ", quorum" if queue_type == "quorum" else ""
    )
    return Stock(name, "stock_empty", "stock.empty", processes, threads, prefetch, queue_type=queue_type)


def stock_orm(*, processes: int, threads: int, prefetch: int) -> Stock:
    name = f"obvious way, {processes}p x {threads}t, {prefetch}"
    return Stock(name, "stock_orm", "stock.orm", processes, threads, prefetch, needs_tables=True)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="more orders and rounds; takes several times as long"
    )
    parser.add_argument("--tune", action="store_true", help="look for the baselines' best settings instead")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument(
        "--only", choices=[side.name for side in sides(SHORT)], help="measure this side alone"
    )
    chosen = parser.parse_args(arguments)
    length = FULL if chosen.full else SHORT
    rounds = chosen.rounds or length.rounds
    terminal = Console()
    # Where output is no terminal, nothing is cut to fit one.
    console = terminal if terminal.is_terminal else Console(width=110)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        with running_servers() as servers:
            if chosen.tune:
                tune(servers, console, length)
                return 0
            wanted = [side for side in sides(length) if chosen.only in {None, side.name}]
            results = measure(servers, console, wanted, rounds)
            facts = {**machine(), **servers.versions()}
    except (MeasurementFailed, LocalServiceError) as error:
        console.print(f"[red]not measured:[/red] {error}", highlight=False)
        return 1
    print_speeds(console, wanted, results)
    if chosen.only is None:
        print_ratios(console, results)
    console.print(f"\nOn {facts['processors']} processors ({facts['processor']}), {facts['memory_gib']} GiB:")
    console.print(
        f"RabbitMQ {facts['rabbitmq']}, PostgreSQL {facts['postgresql']}, Python {facts['python']}, "
        f"Dramatiq {facts['dramatiq']}, SQLAlchemy {facts['sqlalchemy']}; {rounds} rounds.",
        highlight=False,
    )
    warn_of_others(console, results)
    path = save(facts, wanted, results)
    console.print(f"Every measurement: {path.relative_to(CHECKOUT)}", highlight=False)
    return 0


def measure(
    servers: Servers, console: Console, wanted: Sequence[Side], rounds: int
) -> list[dict[str, Drained]]:
    """Measure everybody once a round; return what each contestant gave, by its name, round by round."""
    results: list[dict[str, Drained]] = []
    for number in range(rounds):
        this_round: dict[str, Drained] = {}
        # Every other round runs backwards: nobody always comes after the same one.
        for side in wanted if number % 2 == 0 else reversed(wanted):
            for contestant in side.contestants:
                drained = contestant.measure(servers, side.orders)
                this_round[contestant.name] = drained
                console.print(
                    f"round {number + 1}: {contestant.name}: {drained.per_second:,.0f}/s", highlight=False
                )
        results.append(this_round)
    return results


def warn_of_others(console: Console, results: Sequence[Mapping[str, Drained]]) -> None:
    """Say so where something else used the machine: speeds then mean little, CPU time still something."""
    share = statistics.mean(
        drained.foreign_share for this_round in results for drained in this_round.values()
    )
    if share > _FOREIGN_SHARE:
        console.print(
            f"[red]Other programs used {share:.0%} of the processors meanwhile:[/red] these speeds and "
            "ratios are not to be trusted; measure again on an idle machine."
        )


def best(side: Side, this_round: Mapping[str, Drained]) -> float:
    return max(this_round[contestant.name].per_second for contestant in side.contestants)


def print_speeds(console: Console, wanted: Sequence[Side], results: Sequence[Mapping[str, Drained]]) -> None:
    table = Table(title="Orders per second, from a full queue to the last commit")
    for heading, justify in (
        ("", "left"),
        ("median", "right"),
        ("spread", "right"),
        ("MiB", "right"),
        ("workers", "right"),
        ("broker", "right"),
        ("database", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type] # a literal
    for side in wanted:
        for contestant in side.contestants:
            speeds = [this_round[contestant.name].per_second for this_round in results]
            memory = max(this_round[contestant.name].peak_rss_mib for this_round in results)
            name = contestant.name if isinstance(contestant, Stock) else f"Holdfast, {contestant.name}"
            spread = f"{min(speeds):,.0f} - {max(speeds):,.0f}"
            drained = [this_round[contestant.name] for this_round in results]
            used = [
                f"{statistics.median(micros(one, who) for one in drained):,.0f}"
                for who in ("workers", "broker", "database")
            ]
            table.add_row(name, f"{statistics.median(speeds):,.0f}", spread, f"{memory:,.0f}", *used)
    console.print(table)
    console.print(
        "[dim]p x t, n: processes x threads, prefetch. Workers, broker, database: CPU µs an order.[/dim]"
    )


def micros(drained: Drained, who: str) -> float:
    return drained.cpu_seconds[who] / drained.orders * 1e6


def print_ratios(console: Console, results: Sequence[Mapping[str, Drained]]) -> None:
    table = Table(title="Ratios, each within one round")
    for heading, justify in (
        ("Holdfast", "left"),
        ("against", "left"),
        ("median", "right"),
        ("spread", "right"),
        ("by CPU", "right"),
        ("at least", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type] # a literal
    for ratio in RATIOS:
        values = ratio_values(ratio, results)
        if values:
            median = statistics.median(values)
            table.add_row(
                ratio.ours,
                ratio.against,
                f"{median:.2f} x",
                f"{min(values):.2f} - {max(values):.2f}",
                f"{statistics.median(cpu_ratio_values(ratio, results)):.2f} x",
                f"{ratio.floor:g} x",
                "reached" if median >= ratio.floor else "[red]below[/red]",
            )
    console.print(table)


def ratio_values(ratio: Ratio, results: Sequence[Mapping[str, Drained]]) -> list[float]:
    """Return the ratio in each round in which both sides were measured."""
    by_name = {side.name: side for side in sides(SHORT)}
    ours, against = by_name[ratio.ours], by_name[ratio.against]
    names = [contestant.name for contestant in (*ours.contestants, *against.contestants)]
    return [
        best(ours, this_round) / best(against, this_round)
        for this_round in results
        if all(name in this_round for name in names)
    ]


def cpu_ratio_values(ratio: Ratio, results: Sequence[Mapping[str, Drained]]) -> list[float]:
    """Return by how much less processor time an order costs; nearly the same on a busy machine."""
    by_name = {side.name: side for side in sides(SHORT)}

    def cheapest(side: Side, this_round: Mapping[str, Drained]) -> float:
        return min(
            sum(this_round[contestant.name].cpu_seconds.values()) / this_round[contestant.name].orders
            for contestant in side.contestants
        )

    return [
        cheapest(by_name[ratio.against], this_round) / cheapest(by_name[ratio.ours], this_round)
        for this_round in results
    ]


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
                    if prefetch > 32 and contestant.needs_tables:  # noqa: PLR2004 - the database is what limits
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
    }


def save(
    facts: Mapping[str, object], wanted: Sequence[Side], results: Sequence[Mapping[str, Drained]]
) -> Path:
    """Write everything that was measured as JSON; return the file."""
    now = datetime.now(UTC)
    document = {
        "measured_at": now.isoformat(),
        "command": " ".join(["python", "bench", *sys.argv[1:]]),
        "facts": facts,
        "orders": {side.name: side.orders for side in wanted},
        "rounds": [
            {
                name: {**asdict(drained), "per_second": drained.per_second}
                for name, drained in this_round.items()
            }
            for this_round in results
        ],
        "ratios": [
            {
                **asdict(ratio),
                "values": ratio_values(ratio, results),
                "by_cpu": cpu_ratio_values(ratio, results) if ratio_values(ratio, results) else [],
            }
            for ratio in RATIOS
        ],
    }
    _RESULTS.mkdir(parents=True, exist_ok=True)
    path = _RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', now.timetuple())}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
