"""What is printed: speeds, ratios, where the time goes; and a warning where the machine was not idle."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from arrivals import Latencies
from breakdown import Breakdown, lines_of
from contestants import RATIOS, Ratio, Side
from drain import Drained
from holdfast_workers import Holdfast
from rich.console import Console
from rich.table import Table
from storm import Storm

# What each contestant gave in one round, by its name.
Round = Mapping[str, Drained]

# Above this, somebody else's work shows in the numbers.
_FOREIGN_SHARE = 0.05
# Headings of columns that hold words; all others hold numbers.
_WORDS = ("", "Holdfast", "against", "what for")
_WHO = ("workers", "broker", "database")


def print_speeds(console: Console, wanted: Sequence[Side], results: Sequence[Round]) -> None:
    table = _table(
        "Orders per second, from a full queue to the last commit", "", "median", "spread", "MiB", *_WHO
    )
    for contestant in (contestant for side in wanted for contestant in side.contestants):
        drained = [this_round[contestant.name] for this_round in results]
        speeds = [one.per_second for one in drained]
        table.add_row(
            f"Holdfast, {contestant.name}" if isinstance(contestant, Holdfast) else contestant.name,
            f"{statistics.median(speeds):,.0f}",
            f"{min(speeds):,.0f} - {max(speeds):,.0f}",
            f"{max(one.peak_rss_mib for one in drained):,.0f}",
            *(f"{statistics.median(_micros(one, who) for one in drained):,.0f}" for who in _WHO),
        )
    console.print(table)
    console.print(
        "[dim]p x t, n: processes x threads, prefetch. Workers, broker, database: CPU µs an order.[/dim]"
    )


def print_ratios(console: Console, wanted: Sequence[Side], results: Sequence[Round]) -> None:
    """Print those whose both sides were measured."""
    table = _table(
        "Ratios, each within one round", "Holdfast", "against", "median", "spread", "by CPU", "at least", ""
    )
    for ratio, values, by_cpu in ratios_of(wanted, results):
        median = statistics.median(values)
        table.add_row(
            ratio.ours,
            ratio.against,
            f"{median:.2f} x",
            f"{min(values):.2f} - {max(values):.2f}",
            f"{statistics.median(by_cpu):.2f} x",
            *(
                ("", "")
                if ratio.floor is None
                else (f"{ratio.floor:g} x", "reached" if median >= ratio.floor else "[red]below[/red]")
            ),
        )
    if table.row_count:
        console.print(table)


def ratios_of(
    wanted: Sequence[Side], results: Sequence[Round]
) -> list[tuple[Ratio, list[float], list[float]]]:
    """
    Return each ratio whose both sides were measured, round by round: by the clock, and by processor time.

    The latter says by how much less of it an order costs, and is nearly the same on a busy machine.
    """
    measured = {side.name: side for side in wanted}
    return [
        (
            ratio,
            [_fastest(ours, one) / _fastest(against, one) for one in results],
            [_cheapest(against, one) / _cheapest(ours, one) for one in results],
        )
        for ratio in RATIOS
        for ours, against in [(measured.get(ratio.ours), measured.get(ratio.against))]
        if ours is not None and against is not None
    ]


def print_breakdown(console: Console, name: str, breakdown: Breakdown) -> None:
    table = _table(f"Where the time goes, {name}: µs an order", "", "what for", "µs")
    table.caption = "Workers: processor time, by samples. PostgreSQL: by the clock, with its waits."
    before = ""
    for who, what, spent in lines_of(breakdown):
        table.add_row(who if who != before else "", what, f"{spent:,.1f}")
        before = who
    console.print(table)
    used = ", ".join(f"{who} {_micros(breakdown.drained, who):,.0f}" for who in _WHO)
    console.print(
        f"In all, CPU µs an order: {used}. Written an order: "
        f"{breakdown.log_bytes:,.0f} bytes of log, {breakdown.disk_bytes:,.0f} of tables and indexes.",
        highlight=False,
    )


def print_latencies(console: Console, found: Sequence[Latencies]) -> None:
    table = _table(
        "From published to the answer `order.held` at the shop, fixed arrival rate",
        "orders a second",
        "p50 ms",
        "p99 ms",
    )
    for one in found:
        table.add_row(f"{one.rate:,.0f}", f"{one.p50_ms:,.0f}", f"{one.p99_ms:,.0f}")
    console.print(table)


def print_storm(console: Console, storm: Storm) -> None:
    console.print(
        f"Storm: {storm.holds:,} holds due within {storm.spread_seconds:g} s, all released, "
        f"{storm.early} early; lag p50 {storm.lag_p50:,.1f} s, p99 {storm.lag_p99:,.1f} s, "
        f"worst {storm.lag_max:,.1f} s. "
        f"New orders at {storm.order_rate:g}/s: p99 {storm.order_p99_before_ms:,.0f} ms before, "
        f"{storm.order_p99_during_ms:,.0f} ms during.",
        highlight=False,
    )
    stages = {
        "at rest": storm.memory_at_rest_mib,
        "all pending": storm.memory_pending_mib,
        "peak in the storm": storm.memory_peak_mib,
    }
    table = _table("Memory (PSS), MiB", "", *stages)
    for name in storm.memory_at_rest_mib:
        table.add_row(name, *(f"{mib[name]:,.1f}" for mib in stages.values()))
    console.print(table)


def warn_of_others(console: Console, results: Sequence[Round]) -> None:
    """Say so where something else used the machine: speeds then mean little, CPU time still something."""
    share = statistics.mean(
        drained.foreign_share for this_round in results for drained in this_round.values()
    )
    if share > _FOREIGN_SHARE:
        console.print(
            f"[red]Other programs used {share:.0%} of the processors meanwhile:[/red] these speeds and "
            "ratios are not to be trusted; measure again on an idle machine."
        )


def _table(title: str, *headings: str) -> Table:
    """Make a table whose words stand on the left, and whose numbers on the right."""
    table = Table(title=title)
    for heading in headings:
        side: Literal["left", "right"] = "left" if heading in _WORDS else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    return table


def _fastest(side: Side, this_round: Round) -> float:
    return max(this_round[contestant.name].per_second for contestant in side.contestants)


def _cheapest(side: Side, this_round: Round) -> float:
    return min(
        sum(this_round[contestant.name].cpu_seconds.values()) / this_round[contestant.name].orders
        for contestant in side.contestants
    )


def _micros(drained: Drained, who: str) -> float:
    return drained.cpu_seconds[who] / drained.orders * 1e6
