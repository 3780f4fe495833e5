"""What the relay does by the clock: publish left-over outbox rows, seal, chain, sweep, tidy."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import structlog
from sqlalchemy.exc import SQLAlchemyError

from infra.crash_points import reach
from infra.postgres.ledger_store import seal_postings
from infra.postgres.outbox import delete_published, lease_unpublished
from infra.postgres.quarantine_bounds import delete_discarded
from infra.postgres.trace_contexts import forget_traces
from infra.rabbitmq.availability import Availability
from infra.rabbitmq.messages import Failure
from infra.rabbitmq.queue_depth import QueueDepth
from workers.failures import classify_failure
from workers.process import WorkerProcess
from workers.relay.chain import extend_chain, sign_and_export_head
from workers.relay.sweep import ask_for_returns, report_what_waits_for_people, sweep

log = structlog.get_logger(__name__)

_LEASE_SECONDS = 30.0
_ROWS_AT_ONCE = 1_000
_BYTES_AT_ONCE = 1024 * 1024
_IDLE_SECONDS = 0.5
_AFTER_ERROR_SECONDS = 1.0
# The longer, the less often a busy subtotal is written. What is not sealed is read from its postings.
_SEAL_SECONDS = 10.0
_CHAIN_SECONDS = 10.0
_TIDY_SECONDS = 60.0
_TIDY_ROWS = 10_000
# Longer than a protection period, a dispute and the weeks in which a bank may return a payout.
_TRACE_DAYS = 90
# Long enough to find out that something was discarded by mistake.
_DISCARDED_DAYS = 30
_REPORT_SECONDS = 60.0


def build_loops(process: WorkerProcess, stopping: threading.Event) -> Sequence[threading.Thread]:
    """Return the relay's threads; each goes on until the process stops, whatever is away meanwhile."""
    settings = process.settings
    depth = QueueDepth(str(settings.broker_url))

    def publish() -> bool:
        return publish_left_over(process) > 0

    def seal() -> bool:
        with process.engine.begin() as connection:
            seal_postings(connection)
        return False

    def chain() -> bool:
        if extend_chain(process):
            return True
        sign_and_export_head(process)
        return False

    def sweep_once() -> bool:
        sweep(process.steps, grace_seconds=settings.sweep_grace_seconds, queue_depth=depth)
        return False

    def returns() -> bool:
        ask_for_returns(process.steps)
        return False

    def report() -> bool:
        report_what_waits_for_people(process.steps, dispute_alarm_seconds=settings.dispute_alarm_seconds)
        return False

    def tidy() -> bool:
        with process.engine.begin() as connection:
            deleted = delete_published(
                connection, retention_seconds=settings.outbox_retention_seconds, limit=_TIDY_ROWS
            )
            forgotten = forget_traces(connection, older_than_days=_TRACE_DAYS, limit=_TIDY_ROWS)
            discarded = delete_discarded(connection, older_than_days=_DISCARDED_DAYS, limit=_TIDY_ROWS)
        return _TIDY_ROWS in {deleted, forgotten, discarded}

    plan: list[tuple[str, Callable[[], bool], float]] = [
        ("publish", publish, _IDLE_SECONDS),
        ("seal", seal, _SEAL_SECONDS),
        ("chain", chain, min(_CHAIN_SECONDS, settings.chain_head_seconds)),
        ("sweep", sweep_once, settings.sweep_seconds),
        ("returns", returns, settings.bank_poll_seconds),
        ("report", report, _REPORT_SECONDS),
        ("tidy", tidy, _TIDY_SECONDS),
    ]
    return [
        threading.Thread(
            target=repeat,
            args=(name, act, pause, stopping, process.broker.availability),
            name=name,
            daemon=True,
        )
        for name, act, pause in plan
    ]


def publish_left_over(process: WorkerProcess) -> int:
    """Publish the oldest rows that their own process did not get to publish; return how many."""
    with process.engine.begin() as connection:
        rows = lease_unpublished(
            connection, limit=_ROWS_AT_ONCE, lease_seconds=_LEASE_SECONDS, max_bytes=_BYTES_AT_ONCE
        )
    reach("relay: leased")
    if not rows:
        return 0
    published = process.outbox.publish(rows)
    log.info("outbox_relayed", leased=len(rows), published=published)
    return published


def repeat(
    name: str,
    act: Callable[[], bool],
    pause_seconds: float,
    stopping: threading.Event,
    availability: Availability,
) -> None:
    """
    Act, at once again while there is more to do; log an outage when it starts and when it ends.

    A database that is away closes the process meanwhile. Relays always ask something of it, so they notice
    also while no message comes; the metric and its alert go by that.
    """
    failing_since: float | None = None
    with ExitStack() as waiting:
        while not stopping.is_set():
            try:
                more = act()
            except Exception as error:
                if failing_since is None:
                    failing_since = time.monotonic()
                    away = isinstance(error, SQLAlchemyError | OSError)
                    log.warning("loop_failing", loop=name, error=type(error).__name__, exc_info=not away)
                    if classify_failure(error) is Failure.UNAVAILABLE:
                        waiting.enter_context(availability.suspended(type(error).__name__))
                stopping.wait(_AFTER_ERROR_SECONDS)
                continue
            if failing_since is not None:
                log.info("loop_recovered", loop=name, seconds=round(time.monotonic() - failing_since, 1))
                failing_since = None
                waiting.close()
            if not more:
                stopping.wait(pause_seconds)
