"""Make two transactions really run beside each other, instead of hoping that they do."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, text

PATIENCE_SECONDS = 20.0


def side_by_side(*acts: Callable[[], Any]) -> list[Any]:
    """Start all at one moment, each in a thread; return their results, or raise what one raised."""
    barrier = threading.Barrier(len(acts))

    def act_at_once(act: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE_SECONDS)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        started = [pool.submit(act_at_once, act) for act in acts]
        return [future.result(PATIENCE_SECONDS) for future in started]


@contextmanager
def locked(engine: Engine, statement: str, **values: object) -> Iterator[Connection]:
    """Hold the locks that a statement takes for the length of the block."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)
        yield connection


def met_at_a_lock(
    engine: Engine,
    statement: str,
    *acts: Callable[[], Any],
    meanwhile: Callable[[], Any] = lambda: None,
    **values: object,
) -> list[Any]:
    """
    Let all acts run up to a lock that they need, do something meanwhile, and only then let go of it.

    So every one of them has begun, and read what it reads first, before any of them can finish.
    """
    with ThreadPoolExecutor(len(acts)) as pool:
        with locked(engine, statement, **values):
            started = [pool.submit(act) for act in acts]
            _wait_for_waiters(engine, len(acts))
            meanwhile()
        return [future.result(PATIENCE_SECONDS) for future in started]


def _wait_for_waiters(engine: Engine, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with engine.connect() as connection:
            waiting = connection.execute(
                text("""
                    SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'
                """)
            ).scalar_one()
        if waiting >= count:
            return
        assert time.monotonic() < deadline, f"{waiting} of {count} transactions came to the lock"
        time.sleep(0.01)
