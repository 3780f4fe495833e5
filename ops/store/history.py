"""
SQL for `holdfast trace`: everything that is on record about one order or one withdrawal.

Ids are derived, so nearly all of it is found by primary key. Only refusals of later messages about an
order, and what is in the outbox and among the dead letters, are looked for by their content.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from ledger.ids import attempt_suffix, derive_id, key_id, order_answer_id, refund_part_id
from ledger.money import format_minor
from ledger.postings import PostingKind
from schemas.currencies import CURRENCY_DIGITS
from workers.payout.handlers.withdrawals import other_event_ids, withdrawal_answer_id

Row = dict[str, Any]

# How long after the last thing that happened a message about it may have been published.
_PUBLISHED_WITHIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of a timeline."""

    at: datetime
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What is known; `states` are rows as they stand now, by table."""

    states: dict[str, list[Row]]
    messages: list[Row]
    entries: list[Row]
    events: list[Row]
    published: list[Row]
    dead_letters: list[Row]
    actions: list[Row]

    @property
    def is_empty(self) -> bool:
        return not any(self.states.values()) and not self.events

    def timeline(self) -> list[Happening]:
        """Put everything in the order in which it happened."""
        happenings = [
            Happening(row["received_at"], f"{row['type']} arrived", f"event {row['event_id']}")
            for row in self.messages
        ]
        for table, rows in self.states.items():
            for row in rows:
                happenings += _state_changes(table, row)
        happenings += [
            Happening(
                row["booked_at"],
                f"booked {row['kind']}",
                f"{row['debit']} -> {row['credit']} {_shown(row['amount_minor'], row['currency'])}",
            )
            for row in self.entries
        ]
        happenings += [
            Happening(row["occurred_at"], f"told {row['type']}", f"event {row['event_id']}")
            for row in self.events
        ]
        for row in self.published:
            delay = f", to arrive {row['delay_ms'] / 1000:g} s later" if row["delay_ms"] else ""
            what = f"{row['command']} to {row['queue']}" if row["command"] else f"{row['type']} to the shop"
            if row["published_at"] is not None:
                happenings.append(
                    Happening(row["published_at"], f"published {what}", f"outbox {row['outbox_id']}{delay}")
                )
        happenings += [
            Happening(
                row["first_seen_at"], f"dead letter in {row['queue']}", f"{row['reason']} ({row['state']})"
            )
            for row in self.dead_letters
        ]
        happenings += [
            Happening(row["acted_at"], f"{row['operator']} did {row['action']}", row["reason"])
            for row in self.actions
        ]
        # Sorting keeps the order of equal times: what arrived, what became of it, what was said.
        return sorted(happenings, key=lambda happening: happening.at)


def find_order(connection: Connection, shop_id: str, order_id: str) -> History:
    """Collect what is known about an order."""
    key: Row = {"shop": shop_id, "order": order_id}
    payments = _rows(
        connection,
        """
        SELECT payment_id, order_id, event_id, state, reason, buyer_id, amount_minor, currency,
               bank_reference, protection_days, paid_at, received_at, funded_at, charged_back_at
        FROM payments WHERE shop_id = :shop AND order_id = :order
        """,
        key,
    )
    payment_ids = [row["payment_id"] for row in payments]
    holds = _rows(
        connection,
        """
        SELECT hold_id, seller_id, state, amount_minor, refunded_minor, fee_minor, currency,
               protection_days, held_at, release_at, released_at, rearmed_at
        FROM holds WHERE payment_id = ANY(CAST(:ids AS uuid[])) ORDER BY seller_id
        """,
        {"ids": payment_ids},
    )
    hold_ids = [row["hold_id"] for row in holds]
    # By reference, not by payment: a credit that does not fit is what an operator looks for.
    bank = {
        "references": [row["bank_reference"] for row in payments if row["state"] == "received"],
        "payments": payment_ids,
    }
    credits_ = _rows(
        connection,
        """
        SELECT credit_id, bank_id, statement_line, amount_minor, currency, payment_id, booked_at,
               received_at, matched_at, taken_back_at
        FROM bank_credits
        WHERE bank_reference = ANY(CAST(:references AS text[]))
           OR (assigned_payment_id IS NOT NULL AND assigned_payment_id = ANY(CAST(:payments AS uuid[])))
        ORDER BY received_at
        """,
        bank,
    )
    debits = _rows(
        connection,
        """
        SELECT debit_id, bank_id, statement_line, amount_minor, currency, reason, booked_at, received_at,
               credit_id, payment_id
        FROM bank_debits
        WHERE bank_reference = ANY(CAST(:references AS text[]))
           OR credit_id = ANY(CAST(:credits AS uuid[]))
        ORDER BY received_at
        """,
        bank | {"credits": [row["credit_id"] for row in credits_]},
    )
    disputes = _rows(
        connection,
        """
        SELECT dispute_key, dispute_id, event_id, complaint, state, reason, opened_at, resolved_at
        FROM disputes WHERE shop_id = :shop AND order_id = :order ORDER BY opened_at
        """,
        key,
    )
    refunds = _rows(
        connection,
        """
        SELECT refund_key, refund_id, origin, event_id, state, reason, amount_minor, currency,
               end_to_end_id, attempt, requested_at, ended_at
        FROM refunds WHERE shop_id = :shop AND order_id = :order ORDER BY requested_at
        """,
        key,
    )
    claims = _rows(
        connection,
        """
        SELECT claim_id, seller_id, currency, amount_minor, taken_minor, cause, reason, hold_id, made_at,
               returned_at
        FROM claims WHERE hold_id = ANY(CAST(:ids AS uuid[])) ORDER BY made_at
        """,
        {"ids": hold_ids},
    )
    refund_keys = [row["refund_key"] for row in refunds]
    part_ids = [
        refund_part_id(row["refund_key"], hold, attempt)
        for row in refunds
        for attempt in range(row["attempt"] + 1)
        for hold in hold_ids
    ]
    causes = [
        *payment_ids,
        *hold_ids,
        *part_ids,
        *(row["credit_id"] for row in credits_),
        *(row["debit_id"] for row in debits),
        *(row["claim_id"] for row in claims),
    ]
    events = _find_events(
        connection,
        shop_id,
        _order_event_ids(
            shop_id, order_id, credits_=credits_, hold_ids=hold_ids, disputes=disputes, refunds=refunds
        ),
        min((row["received_at"] for row in payments), default=None),
        type_="order.rejected",
        field="order_id",
        value=order_id,
    )
    return _history(
        connection,
        source=f"/shops/{shop_id}",
        subject=f"{shop_id}/{order_id}",
        states={
            "payments": payments,
            "bank_credits": credits_,
            "bank_debits": debits,
            "holds": holds,
            "disputes": disputes,
            "refunds": refunds,
            "claims": claims,
        },
        causes=causes,
        events=events,
        named=[*payment_ids, *hold_ids, *refund_keys],
    )


def find_withdrawal(connection: Connection, shop_id: str, withdrawal_id: str) -> History:
    """Collect what is known about a withdrawal; of its destination only what may be shown."""
    withdrawals = _rows(
        connection,
        """
        SELECT w.payout_id, w.withdrawal_id, w.event_id, w.seller_id, w.state, w.reason, w.amount_minor,
               w.currency, w.destination_id, d.masked AS destination, w.requested_at, w.reserved_at,
               w.pending_reason, w.over_limit, w.pending_until, w.decided_at, w.adopted_at
        FROM withdrawals AS w
        LEFT JOIN destinations AS d ON (d.shop_id, d.seller_id, d.destination_id)
                                     = (w.shop_id, w.seller_id, w.destination_id)
        WHERE w.shop_id = :shop AND w.withdrawal_id = :withdrawal
        """,
        {"shop": shop_id, "withdrawal": withdrawal_id},
    )
    payout_ids = [row["payout_id"] for row in withdrawals]
    attempt_ids = [derive_id("password_attempt", payout_id) for payout_id in payout_ids]
    attempts = _rows(
        connection,
        """
        SELECT attempt_id, state, requested_at, counted_at, decided_at
        FROM password_attempts WHERE attempt_id = ANY(CAST(:ids AS uuid[]))
        """,
        {"ids": attempt_ids},
    )
    transfers = _rows(
        connection,
        """
        SELECT payout_id, end_to_end_id, state, reason, created_at, sent_at, submitted_at, settled_at,
               ended_at
        FROM transfers WHERE payout_id = ANY(CAST(:ids AS uuid[]))
        """,
        {"ids": payout_ids},
    )
    reviews = _rows(
        connection,
        """
        SELECT payout_id, verdict, proposed_by, proposed_why, proposed_at, decided_by, decided_why, decided_at
        FROM withdrawal_reviews WHERE payout_id = ANY(CAST(:ids AS uuid[]))
        """,
        {"ids": payout_ids},
    )
    answer_id = withdrawal_answer_id(shop_id, withdrawal_id)
    event_ids = [answer_id, *other_event_ids(answer_id)] + [
        derive_id(f"payout.{word}", payout_id)
        for word in ("submitted", "settled", "failed", "returned")
        for payout_id in payout_ids
    ]
    since = min((row["requested_at"] for row in withdrawals), default=None)
    events = _find_events(
        connection,
        shop_id,
        event_ids,
        since,
        type_="withdrawal.rejected",
        field="withdrawal_id",
        value=withdrawal_id,
    )
    return _history(
        connection,
        source=f"/shops/{shop_id}",
        subject=f"{shop_id}/{withdrawal_id}",
        states={
            "withdrawals": withdrawals,
            "password_attempts": attempts,
            "withdrawal_reviews": reviews,
            "transfers": transfers,
        },
        causes=payout_ids,
        events=events,
        named=[*payout_ids, *attempt_ids],
    )


def _history(
    connection: Connection,
    *,
    source: str,
    subject: str,
    states: dict[str, list[Row]],
    causes: Sequence[UUID],
    events: list[Row],
    named: Sequence[UUID],
) -> History:
    asked = {row["event_id"] for rows in states.values() for row in rows if "event_id" in row}
    asked |= {row["data"]["event_id"] for row in events if "event_id" in row["data"]}
    moments = [row["occurred_at"] for row in events] + [
        value
        for rows in states.values()
        for row in rows
        for value in row.values()
        if isinstance(value, datetime)
    ]
    return History(
        states=states,
        messages=_find_messages(connection, source, asked),
        entries=_find_entries(connection, causes),
        events=events,
        published=_find_published(connection, [row["event_id"] for row in events], named, moments),
        dead_letters=_find_dead_letters(connection, named),
        actions=_find_actions(connection, subject),
    )


def _order_event_ids(
    shop_id: str,
    order_id: str,
    *,
    credits_: Iterable[Row],
    hold_ids: Sequence[UUID],
    disputes: Iterable[Row],
    refunds: Iterable[Row],
) -> list[UUID]:
    """Name every event that handlers may have emitted about an order; see where they emit them."""
    ids = [order_answer_id(shop_id, order_id)]
    ids += [derive_id("order_funded", row["credit_id"]) for row in credits_]
    ids += [derive_id("hold_released", hold_id) for hold_id in hold_ids]
    for row in disputes:
        ids += [
            key_id(f"answer:{type_}", shop_id, row["dispute_id"])
            for type_ in ("dispute.opened", "dispute.resolved")
        ]
        ids += [
            derive_id(f"{what}:{hold_id}", row["dispute_key"])
            for what in ("hold_frozen", "hold_unfrozen")
            for hold_id in hold_ids
        ]
    for row in refunds:
        ids.append(key_id("answer:refund.requested", shop_id, row["refund_id"]))
        ids += [derive_id(f"hold_refunded:{hold_id}", row["refund_key"]) for hold_id in hold_ids]
        ids += [
            derive_id(name + attempt_suffix(attempt), row["refund_key"])
            for name in ("refund.settled:settled", "refund.failed:failed", "refund.failed:returned")
            for attempt in range(row["attempt"] + 1)
        ]
    return ids


def _find_events(
    connection: Connection,
    shop_id: str,
    event_ids: Sequence[UUID],
    since: datetime | None,
    *,
    type_: str,
    field: str,
    value: str,
) -> list[Row]:
    """Read events by id, and the refusals that name the same thing: those are few and of one type."""
    return _rows(
        connection,
        """
        SELECT event_id, type, occurred_at, data::jsonb AS data FROM events
        WHERE event_id = ANY(CAST(:ids AS uuid[]))
        UNION
        SELECT event_id, type, occurred_at, data::jsonb FROM events
        WHERE shop_id = :shop AND occurred_at >= coalesce(CAST(:since AS timestamptz), '-infinity')
          AND CASE WHEN type = :type THEN data ->> CAST(:field AS text) = :value ELSE false END
        ORDER BY occurred_at, event_id
        """,
        {
            "ids": list(event_ids),
            "shop": shop_id,
            "since": since,
            "type": type_,
            "field": field,
            "value": value,
        },
    )


def _find_messages(connection: Connection, source: str, event_ids: Iterable[str]) -> list[Row]:
    return _rows(
        connection,
        """
        SELECT source, event_id, type, received_at, answer_id FROM inbox
        WHERE source = :source AND event_id = ANY(CAST(:ids AS text[])) ORDER BY received_at
        """,
        {"source": source, "ids": sorted(event_ids)},
    )


def _find_entries(connection: Connection, causes: Sequence[UUID]) -> list[Row]:
    return _rows(
        connection,
        """
        SELECT posting_id, kind, cause_id, shop_id, seller_id, debit, credit, amount_minor, currency,
               booked_at
        FROM postings WHERE posting_id = ANY(CAST(:ids AS uuid[])) ORDER BY booked_at, posting_id
        """,
        {"ids": [derive_id(kind, cause) for cause in causes for kind in PostingKind]},
    )


def _find_published(
    connection: Connection, event_ids: Sequence[UUID], named: Sequence[UUID], moments: Sequence[datetime]
) -> list[Row]:
    """Find outbox rows; they are kept for a while only."""
    if not moments:
        return []
    return _rows(
        connection,
        """
        SELECT outbox_id, queue, command, type, delay_ms, attempts, created_at, published_at FROM outbox
        WHERE (published_at IS NULL OR published_at BETWEEN :first AND :last)
          AND (event_ids && CAST(:events AS uuid[])
               OR (command IS NOT NULL AND arguments::text LIKE ANY(CAST(:patterns AS text[]))))
        ORDER BY outbox_id
        """,
        {
            "events": list(event_ids),
            "patterns": [f"%{id_}%" for id_ in named],
            "first": min(moments),
            "last": max(moments) + _PUBLISHED_WITHIN,
        },
    )


def _find_dead_letters(connection: Connection, named: Sequence[UUID]) -> list[Row]:
    """Find commands that failed; quarantine names no rows of ours."""
    return _rows(
        connection,
        """
        SELECT record_id, kind, queue, reason, state, times_seen, first_seen_at, last_seen_at
        FROM recorded_messages
        WHERE kind <> 'quarantine' AND encode(body, 'escape') LIKE ANY(CAST(:patterns AS text[]))
        ORDER BY first_seen_at
        """,
        {"patterns": [f"%{id_}%" for id_ in named]},
    )


def _find_actions(connection: Connection, subject: str) -> list[Row]:
    return _rows(
        connection,
        """
        SELECT acted_at, operator, action, reason, details FROM operator_actions
        WHERE subject = :subject ORDER BY action_id
        """,
        {"subject": subject},
    )


def _shown(amount_minor: int, currency: str | None) -> str:
    if currency is None:
        return str(amount_minor)
    return f"{format_minor(amount_minor, CURRENCY_DIGITS.get(currency, 0))} {currency}"


def _rows(connection: Connection, statement: str, values: Row) -> list[Row]:
    return [dict(row) for row in connection.execute(text(statement), values).mappings()]


# Which times of which table mean that something happened, and what.
_CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "payments": (("received_at", "payment {state}"), ("charged_back_at", "payment charged back")),
    "bank_credits": (
        ("received_at", "credit {statement_line} of bank {bank_id}"),
        ("matched_at", "credit {statement_line} confirms the payment"),
        ("taken_back_at", "credit {statement_line} taken back"),
    ),
    "bank_debits": (("received_at", "debit {statement_line} of bank {bank_id}"),),
    "holds": (
        ("held_at", "held for {seller_id}"),
        ("release_at", "due for {seller_id}"),
        ("released_at", "released to {seller_id}"),
        ("rearmed_at", "alarm set again for {seller_id}"),
    ),
    "disputes": (
        ("opened_at", "dispute {dispute_id} opened"),
        ("resolved_at", "dispute {dispute_id} resolved"),
    ),
    "refunds": (("requested_at", "refund {refund_id} requested"), ("ended_at", "refund {refund_id} {state}")),
    "claims": (
        ("made_at", "claimed from {seller_id}"),
        ("returned_at", "claim given back to {seller_id}"),
    ),
    "withdrawals": (
        ("requested_at", "withdrawal requested"),
        ("reserved_at", "money set aside"),
        ("decided_at", "withdrawal {state}"),
        ("adopted_at", "taken back into the books after a restore"),
    ),
    "withdrawal_reviews": (
        ("proposed_at", "{proposed_by} proposed to {verdict}"),
        ("decided_at", "{decided_by} said so too: {verdict}"),
    ),
    "password_attempts": (
        ("counted_at", "password attempt counted"),
        ("decided_at", "password attempt {state}"),
    ),
    "transfers": (
        ("created_at", "instruction {end_to_end_id} written"),
        ("sent_at", "instruction handed to the bank"),
        ("submitted_at", "bank accepted it"),
        ("settled_at", "bank settled it"),
        ("ended_at", "transfer {state}"),
    ),
}


def _state_changes(table: str, row: Row) -> list[Happening]:
    amount = _shown(row["amount_minor"], row["currency"]) if row.get("amount_minor") is not None else ""
    reason = f" ({row['reason']})" if row.get("reason") else ""
    return [
        Happening(row[column], what.format(**row), amount + reason)
        for column, what in _CHANGES[table]
        if row[column] is not None
    ]
