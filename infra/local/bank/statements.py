"""Tells Holdfast of the statement lines that were booked, until its broker has confirmed each of them."""

import json
import random
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.local.bank.book import Book, LineKind
from infra.local.bank.journal import Entry
from infra.rabbitmq.messages import Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.topology import INBOUND_EXCHANGE
from infra.security.signatures import ID_HEADER, sign_v1a
from schemas.envelope import BATCH_CONTENT_TYPE, MAX_BATCH_EVENTS, SINGLE_CONTENT_TYPE

log = structlog.get_logger(__name__)

BANK_ID = "sim"
SOURCE = f"/banks/{BANK_ID}"

_IDLE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_PUBLISH_TIMEOUT_SECONDS = 10.0
# Messages on their way at once: enough to share the broker's disk flushes, few enough to hold in memory.
_MESSAGES_AHEAD = 16


class StatementFeed:
    """
    Publishes what is not confirmed yet, oldest first, for as long as it takes.

    An event's id is made from its statement line, so what is published again after a crash or an outage
    is recognised as the same.
    """

    def __init__(self, book: Book, publisher: Publisher, key: Ed25519PrivateKey) -> None:
        self._book = book
        self._publisher = publisher
        self._key = key

    def run(self, stopping: threading.Event) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not stopping.is_set():
            lines = self._book.wait_for_statement(
                stopping, MAX_BATCH_EVENTS * _MESSAGES_AHEAD, timeout_s=_IDLE_SECONDS
            )
            if not lines or stopping.is_set():
                continue
            if self._publish(lines):
                if pause_seconds > _FIRST_PAUSE_SECONDS:
                    log.info("statement_feed_resumed", unpublished=self._book.unpublished)
                pause_seconds = _FIRST_PAUSE_SECONDS
                continue
            if pause_seconds == _FIRST_PAUSE_SECONDS:
                # One line when it begins, not one for each try.
                log.warning("statement_feed_waits_for_broker", unpublished=self._book.unpublished)
            stopping.wait(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, no secret
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _publish(self, lines: Sequence[Entry]) -> bool:
        """Publish lines of one kind; return whether the broker confirmed all of them."""
        batches = [lines[at : at + MAX_BATCH_EVENTS] for at in range(0, len(lines), MAX_BATCH_EVENTS)]
        messages = [sign_lines(batch, self._key, datetime.now(UTC)) for batch in batches]
        outcomes = self._publisher.publish(messages, timeout_s=_PUBLISH_TIMEOUT_SECONDS)
        for batch, message, outcome in zip(batches, messages, outcomes, strict=True):
            if outcome is PublishOutcome.CONFIRMED:
                self._book.mark_published(
                    [line["statement_line"] for line in batch], str(message.headers[ID_HEADER])
                )
        return all(outcome is PublishOutcome.CONFIRMED for outcome in outcomes)


def sign_lines(lines: Sequence[Entry], key: Ed25519PrivateKey, now: datetime) -> Outgoing:
    """Make one message of up to 256 lines of one kind: an event, or a batch under one signature."""
    type_ = f"bank.{lines[0]['kind']}"
    events = [_event(type_, line) for line in lines]
    if len(events) == 1:
        webhook_id, content_type, document = str(events[0]["id"]), SINGLE_CONTENT_TYPE, json.dumps(events[0])
    else:
        webhook_id, content_type, document = secrets.token_hex(16), BATCH_CONTENT_TYPE, json.dumps(events)
    body = document.encode()
    return Outgoing(
        exchange=INBOUND_EXCHANGE,
        routing_key=type_,
        body=body,
        content_type=content_type,
        headers=sign_v1a(key, webhook_id, int(now.timestamp()), body),
        message_id=webhook_id,
    )


def _event(type_: str, line: Entry) -> dict[str, object]:
    data = {
        "bank_reference": line["bank_reference"],
        "amount": line["amount"],
        "currency": line["currency"],
        "booked_at": line["at"],
        "statement_line": line["statement_line"],
    }
    if line["kind"] == LineKind.DEBITED:
        data["reason"] = line["reason"]
    return {
        "specversion": "1.0",
        "id": f"{line['kind']}-{line['statement_line']}",
        "source": SOURCE,
        "type": type_,
        "time": line["at"],
        "datacontenttype": "application/json",
        "data": data,
    }
