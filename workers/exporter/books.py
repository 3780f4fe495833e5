"""
What the exporter reads of the books, as metrics.

Every query reads sealed subtotals or a small partial index, so it stays cheap however large the ledger is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import Connection, text

# Counting further would read more than a gauge is worth; what is above shows as this much.
COUNT_AT_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric and how it is read: rows of label values, then the value."""

    name: str
    help: str
    labels: tuple[str, ...]
    query: str

    def read(self, connection: Connection) -> GaugeMetricFamily:
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for *labels, value in connection.execute(text(self.query), {"most": COUNT_AT_MOST}):
            family.add_metric([str(label) for label in labels], float(value))
        return family


def _count_of(table: str, state: str) -> str:
    return f"(SELECT count(*) FROM (SELECT FROM {table} WHERE state = '{state}' LIMIT :most) AS counted)"


def _counts(table: str, states: tuple[str, ...]) -> str:
    return " UNION ALL ".join(f"SELECT '{state}', {_count_of(table, state)}" for state in states)


GAUGES = (
    Gauge(
        "holdfast_balance_minor",
        "What the ledger holds in each account, in minor units; credits are positive.",
        ("account", "currency"),
        "SELECT account, currency, sum(net_minor) FROM balance_lines GROUP BY account, currency",
    ),
    Gauge(
        "holdfast_ledger_imbalance_minor",
        "How far the withdrawable balances are from the sum of their postings, in minor units; must be 0.",
        ("currency",),
        """
        SELECT currency, abs(coalesce(kept, 0) - coalesce(posted, 0))
        FROM (SELECT currency, sum(available_minor) AS kept FROM available_balances GROUP BY currency) AS a
        FULL JOIN (SELECT currency, sum(net_minor) AS posted FROM balance_lines
                   WHERE account = 'available' GROUP BY currency) AS b USING (currency)
        """,
    ),
    Gauge(
        "holdfast_holds",
        f"Open holds by state, counted up to {COUNT_AT_MOST}.",
        ("state",),
        f"""
        SELECT 'held', {_count_of("holds", "held")}
        UNION ALL
        SELECT 'frozen', (SELECT count(DISTINCT hold_id) FROM dispute_holds JOIN disputes USING (dispute_key)
                          WHERE disputes.state = 'open')
        """,
    ),
    Gauge(
        "holdfast_oldest_due_hold_seconds",
        "For how long the oldest hold that may be released has been due; 0 where none is.",
        (),
        """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - (
            SELECT h.release_at FROM holds AS h
            JOIN payments AS p ON p.payment_id = h.payment_id JOIN shops AS s ON s.shop_id = h.shop_id
            WHERE h.state = 'held' AND h.release_at < clock_timestamp() AND p.charged_back_at IS NULL
              AND (s.funding = 'announced' OR p.funded_at IS NOT NULL)
            ORDER BY h.release_at LIMIT 1)), 0)
        """,
    ),
    Gauge(
        "holdfast_holds_due_without_credit",
        f"Holds that are due and wait for the bank's credit, counted up to {COUNT_AT_MOST}.",
        (),
        """
        SELECT count(*) FROM (
            SELECT FROM holds AS h
            JOIN payments AS p ON p.payment_id = h.payment_id JOIN shops AS s ON s.shop_id = h.shop_id
            WHERE h.state = 'held' AND h.release_at < clock_timestamp()
              AND (p.charged_back_at IS NOT NULL OR (s.funding = 'confirmed' AND p.funded_at IS NULL))
            LIMIT :most) AS counted
        """,
    ),
    Gauge(
        "holdfast_outbox_unpublished",
        f"Outbox rows that nobody has published yet, counted up to {COUNT_AT_MOST}.",
        (),
        "SELECT count(*) FROM (SELECT FROM outbox WHERE published_at IS NULL LIMIT :most) AS counted",
    ),
    Gauge(
        "holdfast_outbox_oldest_seconds",
        "Age of the oldest outbox row that nobody has published; 0 where there is none.",
        (),
        """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)
        FROM outbox WHERE published_at IS NULL
        """,
    ),
    Gauge(
        "holdfast_recorded_messages_open",
        "Quarantined, dead and orphaned messages that nobody has replayed or discarded.",
        ("kind",),
        """
        SELECT kinds.kind, count(m.kind)
        FROM (VALUES ('quarantine'), ('dead_letter'), ('orphan')) AS kinds(kind)
        LEFT JOIN recorded_messages AS m ON m.kind = kinds.kind AND m.state = 'open' GROUP BY kinds.kind
        """,
    ),
    Gauge(
        "holdfast_withdrawals_open",
        "Withdrawals that wait: pending ones for their cooling-off or for a review.",
        ("state",),
        _counts("withdrawals", ("pending",)),
    ),
    Gauge(
        "holdfast_transfers_open",
        "Transfers that wait for the bank's last word, by state.",
        ("state",),
        _counts("transfers", ("ready", "sending", "unknown", "submitted")),
    ),
    Gauge(
        "holdfast_oldest_transfer_seconds",
        "For how long the oldest transfer without the bank's last word has been on its way; 0 where none is.",
        (),
        """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0) FROM transfers
        WHERE state IN ('ready', 'sending', 'unknown', 'submitted')
        """,
    ),
    Gauge(
        "holdfast_suspense_credits",
        "Credits of a bank that explain no payment and were not taken back.",
        (),
        "SELECT count(*) FROM bank_credits WHERE payment_id IS NULL AND taken_back_at IS NULL",
    ),
    Gauge(
        "holdfast_seal_age_seconds",
        "Time since the relay last folded postings into the subtotals.",
        (),
        "SELECT extract(epoch FROM clock_timestamp() - sealed_at) FROM seal",
    ),
)


def read_gauges(connection: Connection) -> list[GaugeMetricFamily]:
    """Read all of them, in one transaction and so of one moment."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    return [gauge.read(connection) for gauge in GAUGES]


class Snapshot:
    """The last reading, and how old it is; answers a scrape at once, whatever the database does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._families: list[GaugeMetricFamily] = []
        self._read_at = clock()
        self._failures = 0

    def take(self, families: list[GaugeMetricFamily]) -> None:
        self._families, self._read_at = families, self._clock()

    def fail(self) -> None:
        """Keep the old reading; its age tells that it is old."""
        self._failures += 1

    @property
    def age_seconds(self) -> float:
        return self._clock() - self._read_at

    @property
    def empty(self) -> bool:
        return not self._families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield GaugeMetricFamily(
            "holdfast_snapshot_age_seconds",
            "Age of what this exporter last read; the gauges beside it are of that moment.",
            value=self.age_seconds,
        )
        yield CounterMetricFamily(
            "holdfast_snapshot_failures",
            "Readings of the database that failed since this exporter started.",
            value=self._failures,
        )
