"""Counters and histograms of the workers: base units, bounded labels, no label by seller or order."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram


def begin_at_zero(counter: Counter, *labels: Iterable[str]) -> None:
    """
    Show a counter as 0 before anything was counted, for all combinations of these values of its labels.

    Prometheus takes no notice of a first value that is not 0: without this the first event of its kind is
    in no `rate` or `increase`. Call it where the counting is, so that only those processes show it.
    """
    for values in itertools.product(*labels):
        counter.labels(*values)


def observe_alike(histogram: Histogram, value: float, *, times: int) -> None:
    """
    Observe the same value so many times at the cost of once; `histogram` has all its labels.

    The library offers only one at a time. A test compares the two, should its insides change.
    """
    bucket = bisect_left(histogram._upper_bounds, value)  # noqa: SLF001 - see above
    histogram._sum.inc(value * times)  # noqa: SLF001
    histogram._buckets[bucket].inc(times)  # noqa: SLF001


BATCH_SECONDS = Histogram(
    "holdfast_batch_seconds",
    "Time that a batch took, with its retries one by one, by actor.",
    ["actor"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300),
)
BATCH_MESSAGES = Histogram(
    "holdfast_batch_messages",
    "Messages in a batch, by actor.",
    ["actor"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
)
MESSAGES = Counter(
    "holdfast_messages_total",
    "Messages that came to an end in this process: done, retried or dead_letter.",
    ["queue", "becomes"],
)
INBOUND_WAIT_SECONDS = Histogram(
    "holdfast_inbound_wait_seconds",
    "Time from an authentic message's signed time-stamp until a worker first took it, by queue.",
    ["queue"],
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 3600, 86400),
)
QUARANTINED = Counter(
    "holdfast_quarantined_total",
    "Inbound messages put into quarantine, by the reason.",
    ["reason"],
)
WORKER_THREADS = Gauge("holdfast_worker_threads", "Worker threads of this process that are alive.")
CONSUMER_CONNECTED = Gauge(
    "holdfast_consumer_connected",
    "1 while the queue is being consumed by this process, else 0.",
    ["queue"],
)
DATABASE_AVAILABLE = Gauge(
    "holdfast_database_available",
    "1 while this process takes messages, 0 while it waits for its database or the broker.",
)
RELEASE_LAG_SECONDS = Histogram(
    "holdfast_release_lag_seconds",
    "Time from a hold's release_at to the commit of its release.",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
HOLDS_AWAITING_CREDIT = Counter(
    "holdfast_holds_awaiting_credit_total",
    "Alarms that found a hold due whose payment no bank has confirmed.",
)
SWEPT = Counter(
    "holdfast_swept_total",
    "What the sweep found stuck and put back on its way; should stay 0.",
    ["what"],
)
STALE_DISPUTES = Gauge(
    "holdfast_stale_disputes",
    "Disputes that have been open for longer than HOLDFAST_DISPUTE_ALARM_SECONDS.",
)
WITHDRAWALS_IN_REVIEW = Gauge(
    "holdfast_withdrawals_in_review",
    "Withdrawals that wait for two operators.",
)
PAYOUT_PAUSES = Gauge(
    "holdfast_payout_pauses",
    "Pauses of payouts that stand: one for each shop, one for all.",
)
PASSWORD_LOCKS = Counter(
    "holdfast_password_locks_total",
    "Sellers locked by wrong passwords, by how long: 15_minutes, 24_hours, operator.",
    ["until"],
)
PASSWORD_CHECKS = Counter(
    "holdfast_password_checks_total",
    "Withdrawal passwords checked, by result.",
    ["result"],
)
PAYOUTS = Counter("holdfast_payouts_total", "Transfers that ended, by the bank's last word.", ["result"])
QUARANTINE_OVERFLOW = Counter(
    "holdfast_quarantine_overflow_total",
    "Messages that were counted and let go because quarantine was full.",
    ["bound"],
)
RECORDED_MESSAGES = Counter(
    "holdfast_recorded_messages_total",
    "Messages that were taken out of quarantine, dead-letter and orphan queues into the database.",
    ["kind"],
)
