"""
What became of everything, looked up afterwards: in the tables, in the queues, at the bank, at the shops.

Plain SQL beside the product's own code, and the diary of each shop beside the tables.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import pika
import pika.exceptions
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from workflow_support.books import what_is_wrong
from workflow_support.system import DAY_SECONDS

from chaos.accounting import Fate, Findings, Release
from chaos.load import Speaker
from infra.rabbitmq import topology
from infra.rabbitmq.messages import dead_letter_queue

# What may be told once of each thing; how the thing is named in the event.
_ONCE = {
    "order.held": "order_id",
    "order.funded": "order_id",
    "hold.released": "hold_id",
    "withdrawal.accepted": "withdrawal_id",
    "payout.submitted": "withdrawal_id",
    "payout.settled": "withdrawal_id",
}

_UNFINISHED = {
    "outbox rows unpublished": "SELECT count(*) FROM outbox WHERE published_at IS NULL",
    "holds still held": "SELECT count(*) FROM holds WHERE state = 'held'",
    "payments not held": """
        SELECT count(*) FROM payments AS p WHERE state = 'received'
        AND NOT EXISTS (SELECT FROM holds AS h WHERE h.payment_id = p.payment_id)
    """,
    "password checks open": """
        SELECT count(*) FROM password_attempts WHERE state IN ('waiting', 'counted')
    """,
    "withdrawals waiting": "SELECT count(*) FROM withdrawals WHERE state NOT IN ('accepted', 'rejected')",
    "transfers on their way": """
        SELECT count(*) FROM transfers WHERE state IN ('ready', 'sending', 'unknown', 'submitted')
    """,
}

QUEUES = (
    *topology.WORK_QUEUES,
    *map(dead_letter_queue, topology.WORK_QUEUES),
    topology.QUARANTINE_QUEUE,
    topology.ORPHANS_QUEUE,
)


class Inspector:
    """Looks at everything; changes nothing, but for reading queues out at the very end."""

    interruptions = (pika.exceptions.AMQPError, OSError, OperationalError, httpx.HTTPError)

    def __init__(self, engine: Engine, broker_url: str, bank_url: str, speakers: Sequence[Speaker]) -> None:
        self._engine = engine
        self._broker_url = broker_url
        self._bank_url = bank_url
        self._speakers = speakers

    def still_to_do(self) -> dict[str, int]:
        """Return what has not come to its end yet, by name; empty when all is at rest."""
        with self._engine.connect() as connection:
            left = {
                name: int(connection.execute(text(count)).scalar_one()) for name, count in _UNFINISHED.items()
            }
            fates = self._fates(connection)
            for speaker in self._speakers:
                written = self._written(connection, speaker)
                left[f"{speaker.shop.id}: answers not heard"] = len(written - set(speaker.diary.heard))
                known = {event_id for fate in fates.values() for event_id in fate}
                left[f"{speaker.shop.id}: confirmed events without a fate"] = sum(
                    one.confirmed > 0 and one.event_id not in known for one in speaker.diary.said.values()
                )
        left |= {f"messages in {queue}": count for queue, count in self._depths().items()}
        left["credits not published by the bank"] = int(self._bank("/journal/counts")["unpublished"])
        return {name: count for name, count in left.items() if count}

    def money(self) -> str:
        """Say in one line how much money moved at the bank."""
        totals = self._bank("/journal/counts")["totals"]
        return f"at the bank, minor units: credited {totals['credited']}, paid out {totals['settled']}"

    def find(self, contradictions: Iterable[str]) -> Findings:
        """Return all that is there to be accounted for. The workers must have stopped."""
        with self._engine.connect() as connection:
            fates = self._fates(connection)
            fates[Fate.QUEUED] = self._queued()
            written = {e for speaker in self._speakers for e in self._written(connection, speaker)}
            effects = self._effects(connection)
            releases = self._releases(connection)
            ledger = {
                row.currency: int(row.minor)
                for row in connection.execute(
                    text("""
                        SELECT currency, sum(debit_minor) - sum(credit_minor) AS minor FROM entries
                        WHERE account = 'bank_cash' GROUP BY currency
                    """)
                )
            }
        return Findings(
            fates=fates,
            effects=effects,
            releases=releases,
            events_written=written,
            events_heard={event_id for speaker in self._speakers for event_id in speaker.diary.heard},
            contradictions=[*contradictions, *self._compare_with_the_bank(ledger), *self._audit_twice()],
        )

    # In the tables.

    def _fates(self, connection: Any) -> dict[Fate, set[str]]:
        fates: dict[Fate, set[str]] = {fate: set() for fate in Fate}
        for speaker in self._speakers:
            shop = speaker.shop.id
            rows = connection.execute(
                text("""
                    SELECT i.event_id, e.type FROM inbox AS i JOIN events AS e ON e.event_id = i.answer_id
                    WHERE i.source = :source
                    UNION
                    SELECT data ->> 'event_id', type FROM events
                    WHERE shop_id = :shop AND type LIKE '%.rejected'
                """),
                {"source": f"/shops/{shop}", "shop": shop},
            )
            for event_id, answer in rows:
                fates[Fate.REJECTED if answer.endswith(".rejected") else Fate.APPLIED].add(event_id)
        for body, headers in connection.execute(text("SELECT body, headers FROM recorded_messages")):
            fates[Fate.QUARANTINED] |= event_ids_of(bytes(body), headers)
        return fates

    def _written(self, connection: Any, speaker: Speaker) -> set[str]:
        rows = connection.execute(
            text("SELECT event_id FROM events WHERE shop_id = :shop"), {"shop": speaker.shop.id}
        )
        return {str(row.event_id) for row in rows}

    def _effects(self, connection: Any) -> Counter[str]:
        effects: Counter[str] = Counter()
        for speaker in self._speakers:
            for event in speaker.diary.heard.values():
                if event.type in _ONCE:
                    effects[f"{event.type} of {speaker.shop.id}/{event.data[_ONCE[event.type]]}"] += 1
        rows = connection.execute(
            text("SELECT shop_id, order_id, seller_id, count(*) FROM holds GROUP BY 1, 2, 3")
        )
        for shop, order, seller, count in rows:
            effects[f"hold of {shop}/{order} for {seller}"] += count
        for entry in self._bank("/journal"):
            if entry["kind"] == "transfer_accepted":
                effects[f"transfer {entry['end_to_end_id']}"] += 1
        return effects

    def _releases(self, connection: Any) -> list[Release]:
        """By the row's own time, and by the shop's watch, which knows nothing of ours."""
        releases = [
            Release(str(row.hold_id), row.release_at, row.released_at)
            for row in connection.execute(
                text("SELECT hold_id, release_at, released_at FROM holds WHERE released_at IS NOT NULL")
            )
        ]
        for speaker in self._speakers:
            for event in list(speaker.diary.heard.values()):
                if event.type == "hold.released":
                    order = speaker.diary.orders[event.data["order_id"]]
                    not_before = order.said_at + timedelta(seconds=order.days * DAY_SECONDS)
                    released_at = datetime.fromisoformat(event.data["released_at"])
                    releases.append(Release(event.data["hold_id"], not_before, released_at))
        return releases

    def _audit_twice(self) -> list[str]:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # All of these rows are new; without statistics the accountant's questions take minutes.
            connection.execute(text("ANALYZE"))
        return [f"{name}: {rows[:3]}" for name, rows in what_is_wrong(self._engine).items()]

    # In the queues.

    def _depths(self) -> dict[str, int]:
        connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        try:
            channel = connection.channel()
            return {
                queue: channel.queue_declare(queue, passive=True).method.message_count for queue in QUEUES
            }
        finally:
            connection.close()

    def _queued(self) -> set[str]:
        found: set[str] = set()
        connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        try:
            channel = connection.channel()
            for queue in QUEUES:
                while True:
                    method, properties, body = channel.basic_get(queue)
                    if method is None:
                        break
                    found |= event_ids_of(body, properties.headers or {})
        finally:
            connection.close()
        return found

    # At the bank.

    def _bank(self, path: str) -> Any:
        return httpx.get(f"{self._bank_url}{path}", timeout=30).raise_for_status().json()

    def _compare_with_the_bank(self, ledger: dict[str, int]) -> list[str]:
        totals = self._bank("/journal/counts")["totals"]
        currencies = {*ledger, *(currency for total in totals.values() for currency in total)}
        found = []
        for currency in sorted(currencies):
            at_the_bank = (
                totals["credited"].get(currency, 0)
                - totals["debited"].get(currency, 0)
                - totals["settled"].get(currency, 0)
                + totals["returned"].get(currency, 0)
            )
            if at_the_bank != ledger.get(currency, 0):
                found.append(
                    f"the bank holds {at_the_bank} {currency}, the ledger says {ledger.get(currency, 0)}"
                )
        return found


def event_ids_of(body: bytes, headers: Any) -> set[str]:
    """Return the ids of the events in a message, or the signed id of one that cannot be read."""
    try:
        told = json.loads(body)
        return {str(event["id"]) for event in (told if isinstance(told, list) else [told])}
    except (ValueError, TypeError, KeyError):
        return {str(headers["webhook-id"])} if "webhook-id" in headers else set()
