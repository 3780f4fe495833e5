"""Running a worker process: until it is told to stop, or until a part of it has died."""

import signal
import threading
import time
from types import FrameType

import structlog
from dramatiq import Worker

from infra.observability.metrics import WORKER_THREADS
from infra.rabbitmq.broker import HoldfastBroker

log = structlog.get_logger(__name__)

# How soon an idle thread notices that it is to stop.
WORKER_IDLE_MS = 200
WATCH_SECONDS = 0.5
# Beyond the drain itself: closing connections to a broker that may not answer.
CLOSE_SECONDS = 3.0


def run(broker: HoldfastBroker, *, threads: int, drain_seconds: float) -> int:
    """
    Work until SIGTERM or SIGINT, then finish what is in hand, hand back the rest, and return 0.

    Returns 1 when a thread has died or the broker class met what it cannot deal with: a process with a dead
    part looks alive and does nothing, so it has to end and be started again. Never takes longer to stop than
    `drain_seconds` and a few seconds for closing connections. Call it from the main thread.
    """
    asked_to_stop = threading.Event()

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        log.info("worker_stopping", signal=signal.Signals(signal_number).name, drain_seconds=drain_seconds)
        asked_to_stop.set()
        broker.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        broker.batches_ahead = threads + 1
        broker.await_recovery()
        worker = Worker(broker, worker_threads=threads, worker_timeout=WORKER_IDLE_MS)
        if not asked_to_stop.is_set():
            worker.start()
            WORKER_THREADS.set_function(lambda: sum(thread.is_alive() for thread in worker.workers))
            log.info("worker_started", queues=sorted(broker.queues), threads=threads)
        trouble = _watch(broker, worker, asked_to_stop)
        broker.stop()
        _drain(worker, drain_seconds)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    trouble = trouble or broker.fatal_error
    if trouble is not None:
        log.critical("worker_ended", because=trouble)
        return 1
    log.info("worker_stopped")
    return 0


def _watch(broker: HoldfastBroker, worker: Worker, asked_to_stop: threading.Event) -> str | None:
    """Until asked to stop; or what has died."""
    while not asked_to_stop.wait(WATCH_SECONDS):
        if broker.fatal_error is not None:
            return broker.fatal_error
        dead = [thread.name for thread in worker.workers if not thread.is_alive()]
        if dead:
            return f"worker thread died: {', '.join(dead)}"
        dead = [name for name, thread in worker.consumers.items() if not thread.is_alive()]
        if dead:
            return f"consumer thread died: {', '.join(dead)}"
    return None


def _drain(worker: Worker, drain_seconds: float) -> None:
    """In a thread that can be left behind: a hanging handler or a silent broker must not keep us."""
    if not worker.workers:
        return
    drained = threading.Event()

    def stop() -> None:
        worker.stop(timeout=int(drain_seconds * 1000))
        drained.set()

    began = time.monotonic()
    threading.Thread(target=stop, name="holdfast-drain", daemon=True).start()
    drained.wait(drain_seconds + CLOSE_SECONDS)
    stuck = [thread.name for thread in worker.workers if thread.is_alive()]
    if stuck or not drained.is_set():
        # Their transactions roll back with the process, and their messages go to somebody else.
        log.warning("worker_drain_incomplete", threads=stuck, seconds=round(time.monotonic() - began, 1))
