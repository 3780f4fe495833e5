"""Who is measured against whom, with how many orders, and the least that each ratio should be."""

from dataclasses import dataclass, replace
from typing import Protocol

from baselines import OnCelery, OnDbos, Stock
from drain import Drained
from holdfast_workers import Holdfast, Past
from servers import Servers

SINGLES, BATCHES = "singles, HMAC", "batches, Ed25519"
_HOT, _LIFE = "one seller, HMAC", "whole life, HMAC"
_EMPTY, _OBVIOUS, _OBVIOUS_LIFE = "an empty actor", "the obvious way", "the obvious way, whole life"
_CELERY, _DBOS = "on Celery, whole life", "on DBOS, whole life"
_YOUNG, _GROWN, _PARTITIONED = "empty ledger, HMAC", "large ledger, HMAC", "large ledger, partitioned"
_TWO = ("payment", "payment", "escrow", "relay")


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
    """A ratio of two sides, and the least that it should be; None where it only answers a question."""

    ours: str
    against: str
    floor: float | None


@dataclass(frozen=True, slots=True)
class Length:
    """How much to measure."""

    rounds: int
    # Of each side, from the first: the best of so many counts.
    contestants: int
    # An empty actor and what stands beside it: seconds of it, so that beginning and end weigh little.
    close_orders: int
    fast_orders: int
    slow_orders: int
    # Celery and DBOS: an order of theirs takes that much longer.
    slowest_orders: int
    # Postings booked beforehand; the last one stands in the table.
    ledger_sizes: tuple[int, ...]
    latency_seconds: float
    # At a low rate it takes longer, to have so many.
    latency_orders: int
    storm_holds: int
    storm_seconds: float
    # New orders alone, before the storm.
    calm_seconds: float


SHORT = Length(
    rounds=1,
    contestants=1,
    close_orders=60_000,
    fast_orders=12_000,
    slow_orders=1_000,
    slowest_orders=200,
    ledger_sizes=(500_000,),
    latency_seconds=4,
    latency_orders=100,
    storm_holds=50_000,
    storm_seconds=20,
    calm_seconds=10,
)
FULL = Length(
    rounds=3,
    contestants=3,
    close_orders=100_000,
    fast_orders=40_000,
    slow_orders=4_000,
    slowest_orders=1_000,
    ledger_sizes=(1_000_000, 10_000_000),
    latency_seconds=15,
    latency_orders=200,
    storm_holds=1_000_000,
    storm_seconds=60,
    calm_seconds=20,
)

RATIOS = (
    Ratio(SINGLES, _EMPTY, 1.5),
    Ratio(SINGLES, _OBVIOUS, 15),
    Ratio(BATCHES, _OBVIOUS, 30),
    Ratio(_LIFE, _OBVIOUS_LIFE, 15),
    Ratio(_LIFE, _CELERY, 1),
    Ratio(_LIFE, _DBOS, 1),
    Ratio(_HOT, SINGLES, 0.9),
    Ratio(_GROWN, _YOUNG, 0.9),
    Ratio(_PARTITIONED, _GROWN, None),
)


def sides(length: Length) -> tuple[Side, ...]:
    """
    Name everybody, the best first, at the settings that `--tune` found best here.

    What is compared most narrowly is measured close together: the machine's speed changes with the minutes.
    """
    of = length.contestants
    return (
        Side(
            _EMPTY,
            (
                # Threads only fight for the interpreter here; the processor is what limits.
                stock_empty(processes=2, threads=1, prefetch=1024),
                stock_empty(processes=2, threads=1, prefetch=1024, queue_type="quorum"),
                stock_empty(processes=1, threads=1, prefetch=1024),
            )[:of],
            length.close_orders,
        ),
        Side(SINGLES, in_three_ways(SINGLES)[:of], length.close_orders),
        Side(_HOT, in_three_ways(_HOT, sellers=1)[:of], length.close_orders),
        Side(
            _OBVIOUS,
            (
                stock_orm(processes=2, threads=4, prefetch=32),
                stock_orm(processes=1, threads=8, prefetch=32),
            )[:of],
            length.slow_orders,
        ),
        Side(BATCHES, in_three_ways(BATCHES, batch_size=100)[:of], 2 * length.fast_orders),
        Side(
            _OBVIOUS_LIFE,
            (stock_orm(processes=2, threads=4, prefetch=32, releases=True),),
            length.slow_orders,
        ),
        Side(_CELERY, (OnCelery("Celery, 2p", 2, 1, releases=True),), length.slowest_orders),
        Side(_DBOS, (OnDbos("DBOS, 1p", 1, 1, releases=True),), length.slowest_orders),
        Side(_LIFE, in_three_ways(_LIFE, releases=True)[:of], length.fast_orders),
        *(
            Side(
                {0: _YOUNG, length.ledger_sizes[-1]: _GROWN}.get(size, f"ledger of {size:,}"),
                (on_a_ledger_of(size, beside=length.ledger_sizes[-1]),),
                length.close_orders,
            )
            for size in (*length.ledger_sizes[:-1], 0, length.ledger_sizes[-1])
        ),
    )


def partitioned_sides(length: Length) -> tuple[Side, ...]:
    """Name the large ledger in one table and in partitions."""
    size = length.ledger_sizes[-1]
    plain, partitioned = (on_a_ledger_of(size, partitioned=either) for either in (False, True))
    return (
        Side(_GROWN, (plain,), length.close_orders),
        Side(_PARTITIONED, (partitioned,), length.close_orders),
    )


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


def in_three_ways(
    name: str, *, batch_size: int = 1, sellers: int = 10_000, releases: bool = False
) -> tuple[Holdfast, ...]:
    """Name the ways in which somebody with two processors could start the workers."""
    one = Holdfast(name, batch_size=batch_size, sellers=sellers, releases=releases)
    return (
        one,
        replace(one, name=f"{name}, 2 of payment", workers=_TWO),
        # Threads of one process share one interpreter. A second one helps where a batch waits for something.
        replace(one, name=f"{name}, 2 of payment, 1 thread", workers=_TWO, settings={"worker_threads": "1"}),
    )


def on_a_ledger_of(postings: int, *, partitioned: bool = False, beside: int = 0) -> Holdfast:
    """
    Name two of payment on a ledger with a past.

    Where sizes are compared, a copy of the largest ledger is made for each: on a virtual machine what follows
    the writing of gigabytes is slower for a while, for everything that runs, whatever it has to do with them.
    """
    name = f"on {postings:,} postings{', partitioned' if partitioned else ''}"
    return Holdfast(
        name,
        past=Past(postings, partitioned),
        beside=Past(beside) if beside > postings else None,
        workers=_TWO,
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
