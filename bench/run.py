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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import structlog
from arrivals import measure_latency
from baselines import OnCelery, OnDbos, Stock
from breakdown import lines_of, measure_breakdown
from drain import Drained, MeasurementFailed
from holdfast_workers import Holdfast, installed
from plots import plot_growth, plot_storm
from prepared_books import book_past
from rich.console import Console
from rich.table import Table
from servers import CHECKOUT, Servers, running_servers
from storm import measure_storm

from infra.local.errors import LocalServiceError

# Above this, somebody else's work shows in the numbers.
_FOREIGN_SHARE = 0.05
_RESULTS = CHECKOUT / ".local" / "bench" / "results"
_EMPTY, _OBVIOUS, _OBVIOUS_LIFE = "an empty actor", "the obvious way", "the obvious way, whole life"
_CELERY, _DBOS = "on Celery, whole life", "on DBOS, whole life"
_SINGLES, _BATCHES, _HOT, _LIFE = "singles, HMAC", "batches, Ed25519", "one seller, HMAC", "whole life, HMAC"
_YOUNG, _GROWN = "empty ledger, HMAC", "large ledger, HMAC"


class Contestant(Protocol):
    """Something that takes paid orders and has them held at the end."""

    @property
    def name(self) -> str: ...

    def measure(self, servers: Servers, orders: int) -> Drained:
        """Measure once, on a vhost and a database that nobody has used."""


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
    # An empty actor and what stands beside it: seconds of it, so that beginning and end weigh little.
    close_orders: int
    fast_orders: int
    slow_orders: int
    # Celery and DBOS: an order of theirs takes that much longer.
    slowest_orders: int
    # Postings booked beforehand; the last one stands in the table.
    ledger_sizes: tuple[int, ...]
    latency_seconds: float
    storm_holds: int


SHORT = Length(
    rounds=1,
    close_orders=30_000,
    fast_orders=12_000,
    slow_orders=1_500,
    slowest_orders=200,
    ledger_sizes=(500_000,),
    latency_seconds=4,
    storm_holds=50_000,
)
FULL = Length(
    rounds=3,
    close_orders=100_000,
    fast_orders=40_000,
    slow_orders=4_000,
    slowest_orders=1_000,
    ledger_sizes=(1_000_000, 10_000_000),
    latency_seconds=15,
    storm_holds=1_000_000,
)
LATENCY_RATES = (10.0, 100.0, 1000.0)
STORM_ORDER_RATE = 50.0
TWO = ("payment", "payment", "escrow", "relay")
PARTS = ("ratios", "breakdown", "scaling", "latency", "storm")

RATIOS = (
    Ratio(_SINGLES, _EMPTY, 1.5),
    Ratio(_SINGLES, _OBVIOUS, 15),
    Ratio(_BATCHES, _OBVIOUS, 30),
    Ratio(_LIFE, _OBVIOUS_LIFE, 15),
    Ratio(_LIFE, _CELERY, 1),
    Ratio(_LIFE, _DBOS, 1),
    Ratio(_HOT, _SINGLES, 0.9),
    Ratio(_GROWN, _YOUNG, 0.9),
)


def sides(length: Length) -> tuple[Side, ...]:
    """
    Name everybody, at the settings that `--tune` found best here.

    What is compared most narrowly is measured close together: the machine's speed changes with the minutes.
    """
    return (
        Side(
            _EMPTY,
            (
                # Threads only fight for the interpreter here; the processor is what limits.
                stock_empty(processes=1, threads=1, prefetch=1024),
                stock_empty(processes=2, threads=1, prefetch=1024),
                stock_empty(processes=2, threads=1, prefetch=1024, queue_type="quorum"),
            ),
            length.close_orders,
        ),
        Side(
            _SINGLES,
            in_three_ways(_SINGLES),
            length.close_orders,
        ),
        Side(
            _HOT,
            in_three_ways(_HOT, sellers=1),
            length.close_orders,
        ),
        Side(
            _OBVIOUS,
            (
                stock_orm(processes=1, threads=8, prefetch=32),
                stock_orm(processes=2, threads=4, prefetch=32),
            ),
            length.slow_orders,
        ),
        Side(
            _BATCHES,
            in_three_ways(_BATCHES, batch_size=100),
            2 * length.fast_orders,
        ),
        Side(
            _OBVIOUS_LIFE,
            (stock_orm(processes=2, threads=4, prefetch=32, releases=True),),
            length.slow_orders,
        ),
        Side(_CELERY, (OnCelery("Celery, 2p", 2, 1, releases=True),), length.slowest_orders),
        Side(_DBOS, (OnDbos("DBOS, 1p", 1, 1, releases=True),), length.slowest_orders),
        Side(
            _LIFE,
            in_three_ways(_LIFE, releases=True),
            length.fast_orders,
        ),
        Side(_YOUNG, (on_a_ledger_of(0),), length.fast_orders),
        Side(_GROWN, (on_a_ledger_of(length.ledger_sizes[-1]),), length.fast_orders),
        *(
            Side(f"ledger of {size:,}", (on_a_ledger_of(size),), length.fast_orders)
            for size in length.ledger_sizes[:-1]
        ),
    )


def in_three_ways(
    name: str, *, batch_size: int = 1, sellers: int = 10_000, releases: bool = False
) -> tuple[Holdfast, ...]:
    """Name the ways in which somebody with two processors could start the workers."""
    one = Holdfast(name, batch_size=batch_size, sellers=sellers, releases=releases)
    return (
        one,
        replace(one, name=f"{name}, 2 of payment", workers=TWO),
        # Threads of one process share one interpreter. A second one helps where a batch waits for something.
        replace(one, name=f"{name}, 2 of payment, 1 thread", workers=TWO, settings={"worker_threads": "1"}),
    )


def on_a_ledger_of(postings: int) -> Holdfast:
    return Holdfast(f"on {postings:,} postings", prepare=partial(book_past, postings=postings), workers=TWO)


def scaled_sides(length: Length) -> tuple[Side, ...]:
    """Name one, two and four processes that take orders in."""
    return tuple(
        Side(
            f"{count} of payment",
            (Holdfast(f"{count} of payment", workers=("payment",) * count + ("escrow", "relay")),),
            length.fast_orders,
        )
        for count in (1, 2, 4)
    )


def stock_empty(*, processes: int, threads: int, prefetch: int, queue_type: str = "classic") -> Stock:
    name = f"empty actor, {processes}p x {threads}t, {prefetch}" + (
        ", quorum" if queue_type == "quorum" else ""
    )
    return Stock(
        name,
        processes,
        threads,
        module="stock_empty",
        queue="stock.empty",
        prefetch=prefetch,
        queue_type=queue_type,
    )


def stock_orm(*, processes: int, threads: int, prefetch: int, releases: bool = False) -> Stock:
    name = f"obvious{' life' if releases else ' way'}, {processes}p x {threads}t, {prefetch}"
    return Stock(
        name,
        processes,
        threads,
        releases=releases,
        module="stock_orm",
        queue="stock.orm",
        prefetch=prefetch,
    )


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="more orders and rounds; takes several times as long"
    )
    parser.add_argument("--tune", action="store_true", help="look for the baselines' best settings instead")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--part", choices=PARTS, help="measure this part alone")
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
    parts = [chosen.part] if chosen.part else ["ratios"] if chosen.only else PARTS
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
            for part in parts:
                document[part] = _MEASURE[part](servers, console, length, chosen.only, folder)
                # After each part, so that what was measured is kept whatever comes.
                (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except (MeasurementFailed, LocalServiceError) as error:
        console.print(f"[red]not measured:[/red] {error}", highlight=False)
        return 1
    console.print(
        f"\nOn {facts['processors']} processors ({facts['processor']}), {facts['memory_gib']} GiB: "
        f"RabbitMQ {facts['rabbitmq']}, PostgreSQL {facts['postgresql']}, Python {facts['python']}, "
        f"Dramatiq {facts['dramatiq']}, Celery {facts['celery']}, DBOS {facts['dbos']}; "
        f"{length.rounds} rounds.",
        highlight=False,
    )
    console.print(f"Every measurement and the plots: {folder.relative_to(CHECKOUT)}", highlight=False)
    return 0


def measure_ratios(
    servers: Servers, console: Console, length: Length, only: Sequence[str] | None, folder: Path
) -> dict[str, object]:
    wanted = [side for side in sides(length) if only is None or side.name in only]
    results = measure(servers, console, wanted, length.rounds)
    print_speeds(console, wanted, results)
    print_ratios(console, results, length)
    if only is None:
        plot_growth(
            folder / "speed-by-ledger-size.svg",
            [
                (size, statistics.median(one[on_a_ledger_of(size).name].per_second for one in results))
                for size in (0, *length.ledger_sizes)
            ],
        )
    warn_of_others(console, results)
    return {
        "orders": {side.name: side.orders for side in wanted},
        "rounds": as_data(results),
        "ratios": [
            {
                **asdict(ratio),
                "values": ratio_values(ratio, results, length),
                "by_cpu": cpu_ratio_values(ratio, results, length),
            }
            for ratio in RATIOS
        ],
    }


def measure_where_time_goes(
    servers: Servers, console: Console, length: Length, _only: Sequence[str] | None, _folder: Path
) -> dict[str, object]:
    found = {
        name: measure_breakdown(servers, batch_size=batch_size, orders=length.fast_orders)
        for name, batch_size in ((_SINGLES, 1), (_BATCHES, 100))
    }
    for name, breakdown in found.items():
        table = Table(
            title=f"Where the time goes, {name}: µs an order",
            caption="Workers: processor time, by samples. PostgreSQL: by the clock, with its waits.",
        )
        for heading in ("", "what for"):
            table.add_column(heading)
        table.add_column("µs", justify="right")
        before = ""
        for who, what, spent in lines_of(breakdown):
            table.add_row(who if who != before else "", what, f"{spent:,.1f}")
            before = who
        console.print(table)
        console.print(
            f"In all, CPU µs an order: workers {micros(breakdown.drained, 'workers'):,.0f}, "
            f"broker {micros(breakdown.drained, 'broker'):,.0f}, "
            f"database {micros(breakdown.drained, 'database'):,.0f}. Written an order: "
            f"{breakdown.log_bytes:,.0f} bytes of log, {breakdown.disk_bytes:,.0f} of tables and indexes.",
            highlight=False,
        )
    return {name: asdict(breakdown) for name, breakdown in found.items()}


def measure_scaling(
    servers: Servers, console: Console, length: Length, _only: Sequence[str] | None, _folder: Path
) -> dict[str, object]:
    wanted = scaled_sides(length)
    results = measure(servers, console, wanted, length.rounds)
    print_speeds(console, wanted, results)
    warn_of_others(console, results)
    return {"rounds": as_data(results)}


def measure_latencies(
    servers: Servers, console: Console, length: Length, _only: Sequence[str] | None, _folder: Path
) -> dict[str, object]:
    with installed(servers) as there:
        found = measure_latency(there, LATENCY_RATES, length.latency_seconds)
    table = Table(title="From published to the answer `order.held` at the shop, fixed arrival rate")
    for heading in ("orders a second", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(f"{one.rate:,.0f}", f"{one.p50_ms:,.0f}", f"{one.p99_ms:,.0f}")
    console.print(table)
    return {f"{one.rate:g}": {"p50_ms": one.p50_ms, "p99_ms": one.p99_ms} for one in found}


def measure_release_storm(
    servers: Servers, console: Console, length: Length, _only: Sequence[str] | None, folder: Path
) -> dict[str, object]:
    with installed(servers) as there:
        storm = measure_storm(there, length.storm_holds, rate=STORM_ORDER_RATE)
    plot_storm(folder / "storm.svg", storm)
    console.print(
        f"Storm: {storm.holds:,} holds due within a minute, all released, {storm.early} early; lag "
        f"p50 {storm.lag_p50:,.1f} s, p99 {storm.lag_p99:,.1f} s, worst {storm.lag_max:,.1f} s. "
        f"New orders at {storm.order_rate:g}/s: p99 {storm.order_p99_before_ms:,.0f} ms before, "
        f"{storm.order_p99_during_ms:,.0f} ms during.",
        highlight=False,
    )
    table = Table(title="Memory (PSS), MiB")
    table.add_column("")
    for heading in ("at rest", "all pending", "peak in the storm"):
        table.add_column(heading, justify="right")
    for name in storm.memory_at_rest_mib:
        table.add_row(
            name,
            f"{storm.memory_at_rest_mib[name]:,.1f}",
            f"{storm.memory_pending_mib[name]:,.1f}",
            f"{storm.memory_peak_mib[name]:,.1f}",
        )
    console.print(table)
    return asdict(storm)


_MEASURE: dict[str, Callable[[Servers, Console, Length, Sequence[str] | None, Path], dict[str, object]]] = {
    "ratios": measure_ratios,
    "breakdown": measure_where_time_goes,
    "scaling": measure_scaling,
    "latency": measure_latencies,
    "storm": measure_release_storm,
}


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
            name = f"Holdfast, {contestant.name}" if isinstance(contestant, Holdfast) else contestant.name
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


def print_ratios(console: Console, results: Sequence[Mapping[str, Drained]], length: Length) -> None:
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
        values = ratio_values(ratio, results, length)
        if values:
            median = statistics.median(values)
            table.add_row(
                ratio.ours,
                ratio.against,
                f"{median:.2f} x",
                f"{min(values):.2f} - {max(values):.2f}",
                f"{statistics.median(cpu_ratio_values(ratio, results, length)):.2f} x",
                f"{ratio.floor:g} x",
                "reached" if median >= ratio.floor else "[red]below[/red]",
            )
    if table.row_count:
        console.print(table)


def ratio_values(ratio: Ratio, results: Sequence[Mapping[str, Drained]], length: Length) -> list[float]:
    """Return the ratio in each round in which both sides were measured."""
    by_name = {side.name: side for side in sides(length)}
    ours, against = by_name[ratio.ours], by_name[ratio.against]
    names = [contestant.name for contestant in (*ours.contestants, *against.contestants)]
    return [
        best(ours, this_round) / best(against, this_round)
        for this_round in results
        if all(name in this_round for name in names)
    ]


def cpu_ratio_values(ratio: Ratio, results: Sequence[Mapping[str, Drained]], length: Length) -> list[float]:
    """Return by how much less processor time an order costs; nearly the same on a busy machine."""
    by_name = {side.name: side for side in sides(length)}

    def cheapest(side: Side, this_round: Mapping[str, Drained]) -> float:
        return min(
            sum(this_round[contestant.name].cpu_seconds.values()) / this_round[contestant.name].orders
            for contestant in side.contestants
        )

    return [
        cheapest(by_name[ratio.against], this_round) / cheapest(by_name[ratio.ours], this_round)
        for this_round in results
        if all(
            contestant.name in this_round
            for side in (by_name[ratio.ours], by_name[ratio.against])
            for contestant in side.contestants
        )
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


def as_data(results: Sequence[Mapping[str, Drained]]) -> list[dict[str, dict[str, object]]]:
    """Everything that was measured, round by round."""
    return [
        {name: {**asdict(drained), "per_second": drained.per_second} for name, drained in this_round.items()}
        for this_round in results
    ]
