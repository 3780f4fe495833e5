"""
A release storm: a great many holds come due within a minute, while new orders go on arriving.

The alarms lie in the broker as they would: one message for up to 512 holds, in the delay lanes.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from arrivals import Answers, Arrivals
from drain import MeasurementFailed, Workers, publish_all
from holdfast_workers import WORKERS, Installation
from prepared_books import book_holds
from sampling import MemorySampler, percentile, resident_mib

from infra.rabbitmq.messages import command_message
from infra.rabbitmq.topology import ESCROW_RELEASE
from infra.settings import DAY_SECONDS
from schemas.commands import MAX_IDS

_STALLED_SECONDS = 180.0
# Booking the holds and starting the workers: what it takes whatever their number, and how many a second.
_START_SECONDS = 15.0
_BOOKED_A_SECOND = 4_000
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Storm:
    """What became of it; lags are seconds from a hold's time to its release."""

    holds: int
    spread_seconds: float
    early: int
    lag_p50: float
    lag_p99: float
    lag_max: float
    # By second of the storm: how many came due, how many were released, and the worst lag.
    by_second: Sequence[tuple[int, int, int, float]]
    memory_at_rest_mib: Mapping[str, float]
    memory_pending_mib: Mapping[str, float]
    memory_peak_mib: Mapping[str, float]
    order_p99_before_ms: float
    order_p99_during_ms: float
    order_rate: float


def measure_storm(
    there: Installation, holds: int, *, spread_seconds: float, calm_seconds: float, rate: float
) -> Storm:
    """
    Prepare the holds, let them come due within `spread_seconds`, and measure until the last is released.

    New orders arrive at `rate` a second all the while, alone for about `calm_seconds` before.
    """
    with there.running() as workers:
        # A fresh process, before it knows of any hold.
        time.sleep(2)
        at_rest = _memory(workers, there)
    # Long enough to book them all, to start, and to measure new orders in peace before.
    began = time.monotonic()
    due = datetime.now(UTC) + timedelta(seconds=_START_SECONDS + calm_seconds + holds / _BOOKED_A_SECOND)
    book_holds(there.database_url, holds, due=due, spread_seconds=spread_seconds, day_seconds=DAY_SECONDS)
    _arm(there, due)
    answers = Answers(there.broker_url)
    with there.running() as workers, answers.reading():
        until_due = (due - datetime.now(UTC)).total_seconds()
        if until_due < calm_seconds / 2:
            raise MeasurementFailed(
                f"booking {holds:,} holds took {time.monotonic() - began:.0f} s: the storm has begun before"
            )
        storm_at = time.monotonic() + until_due
        pending = _memory(workers, there)
        arrivals = Arrivals(there, rate=rate, seconds=until_due + spread_seconds)
        with MemorySampler(_roots(workers, there)) as sampler:
            arrivals.run()
            _wait_until_released(there, holds, workers)
            ended = time.monotonic()
        arrivals.latencies(answers, workers)
        before = arrivals.between(answers, storm_at - until_due, storm_at)
        during = arrivals.between(answers, storm_at, ended)
        lags, by_second, early = _read_lags(there.database_url, due)
        return Storm(
            holds=holds,
            spread_seconds=spread_seconds,
            early=early,
            lag_p50=percentile(lags, 50),
            lag_p99=percentile(lags, 99),
            lag_max=max(lags),
            by_second=by_second,
            memory_at_rest_mib=at_rest,
            memory_pending_mib=pending,
            memory_peak_mib={name: sampler.peak(name) for name in sampler.samples},
            order_p99_before_ms=percentile(before, 99) * 1000,
            order_p99_during_ms=percentile(during, 99) * 1000,
            order_rate=rate,
        )


def _arm(there: Installation, due: datetime) -> None:
    """Publish the alarms, one for up to 512 holds of the same moment, as `release_hold` would be."""
    with psycopg.connect(there.database_url) as database:
        ids = database.execute(
            "SELECT release_at, array_agg(CAST(hold_id AS text)) FROM holds GROUP BY release_at"
        ).fetchall()
    messages = []
    for release_at, of_moment in ids:
        wait_ms = max(0, round((release_at - datetime.now(UTC)).total_seconds() * 1000))
        for start in range(0, len(of_moment), MAX_IDS):
            body = json.dumps({"hold_ids": of_moment[start : start + MAX_IDS]}).encode()
            messages.append(command_message(ESCROW_RELEASE, "release_hold", body, delay_ms=wait_ms))
    publish_all(there.broker_url, messages)
    if datetime.now(UTC) > due:
        raise MeasurementFailed("the alarms were not published before the first hold was due")


def _wait_until_released(there: Installation, holds: int, workers: Workers) -> None:
    seen, moved_at = -1, time.monotonic()
    with psycopg.connect(there.database_url, autocommit=True) as database:
        while True:
            row = database.execute(
                "SELECT count(*) FROM holds WHERE state = 'held' AND order_id LIKE 'old-%'"
            ).fetchone()
            left = int(row[0]) if row else holds
            if left == 0:
                return
            if left != seen:
                seen, moved_at = left, time.monotonic()
            elif time.monotonic() - moved_at > _STALLED_SECONDS:
                raise MeasurementFailed(f"{left} holds were not released:\n{workers.said()}")
            workers.check()
            time.sleep(_POLL_SECONDS)


def _read_lags(
    database_url: str, due: datetime
) -> tuple[list[float], list[tuple[int, int, int, float]], int]:
    with psycopg.connect(database_url) as database:
        lags = [
            float(lag)
            for (lag,) in database.execute(
                "SELECT extract(epoch FROM released_at - release_at) FROM holds WHERE order_id LIKE 'old-%'"
            )
        ]
        rows = database.execute(
            """
            SELECT second, coalesce(came_due, 0), coalesce(released, 0), coalesce(worst, 0)
            FROM (SELECT floor(extract(epoch FROM release_at - %(due)s)) AS second, count(*) AS came_due
                  FROM holds WHERE order_id LIKE 'old-%%' GROUP BY 1) AS a
            FULL JOIN (SELECT floor(extract(epoch FROM released_at - %(due)s)) AS second,
                              count(*) AS released,
                              max(extract(epoch FROM released_at - release_at)) AS worst
                       FROM holds WHERE order_id LIKE 'old-%%' GROUP BY 1) AS b USING (second)
            ORDER BY second
            """,
            {"due": due},
        ).fetchall()
    by_second = [(int(second), int(came), int(gone), float(worst)) for second, came, gone, worst in rows]
    return lags, by_second, sum(lag < 0 for lag in lags)


def _roots(workers: Workers, there: Installation) -> dict[str, int]:
    servers = {name: pids[0] for name, pids in there.servers.roots().items()}
    return {**dict(zip(WORKERS, workers.roots, strict=True)), **servers}


def _memory(workers: Workers, there: Installation) -> dict[str, float]:
    return {name: resident_mib(pid) for name, pid in _roots(workers, there).items()}
