"""
Baseline: the same job on DBOS: a durable workflow an order, which sleeps durably and then releases.

Asynchronous workflows, so that one that sleeps holds no thread.
"""

import asyncio
import os
import signal
import threading
from pathlib import Path

from dbos import DBOS
from obvious_books import PERIOD_SECONDS, book, release
from progress import Progress

QUEUE = "orders"
_IN_PROGRESS = 1_000

DBOS(
    config={
        "name": "bench",
        "system_database_url": "postgresql+psycopg://"
        + os.environ["HOLDFAST_DATABASE_URL"].split("://", 1)[1],
        "sys_db_pool_size": 16,
        "log_level": "ERROR",
        "run_migrations": True,
        "enable_otlp": False,
        "application_version": "bench",
    }
)
progress = Progress()


@DBOS.step()
async def book_order(order: dict[str, object]) -> list[int]:
    return await asyncio.to_thread(book, order)


@DBOS.step()
async def release_hold(hold_id: int) -> None:
    await asyncio.to_thread(release, hold_id)


@DBOS.workflow(name="order_paid")
async def order_paid(order: dict[str, object]) -> None:
    hold_ids = await book_order(order)
    if PERIOD_SECONDS:
        await DBOS.sleep_async(PERIOD_SECONDS)
        for hold_id in hold_ids:
            await release_hold(hold_id)
    progress.one_more()


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=_IN_PROGRESS, polling_interval_sec=0.05)
    Path(os.environ["HOLDFAST_READY_FILE"]).touch()
    stop.wait()
    DBOS.destroy()
