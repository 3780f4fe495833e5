"""The payout worker's SQL for refunds: the bank instructions that send buyers' money back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from workers.payout.decisions import TransferState


@dataclass(frozen=True, slots=True)
class RefundPart:
    hold_id: UUID
    seller_id: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund that the bank may hear of, locked; minor units."""

    refund_key: UUID
    end_to_end_id: str
    state: TransferState
    shop_id: str
    origin: str
    refund_id: str
    order_id: str
    event_id: str
    amount_minor: int
    currency: str
    bank_reference: str
    funded: bool
    attempt: int
    parts: tuple[RefundPart, ...]


def lock_refunds(connection: Connection, refund_keys: Iterable[UUID]) -> list[Refund]:
    """
    Lock refunds in id order; those that were refused or still wait for their credit are left out.

    One that waited for a credit which has come is ready.
    """
    keys = list(refund_keys)
    connection.execute(
        text("""
            SELECT 1 FROM refunds WHERE refund_key = ANY(CAST(:keys AS uuid[]))
            ORDER BY refund_key FOR UPDATE
        """),
        {"keys": keys},
    )
    parts: dict[UUID, list[RefundPart]] = {}
    for row in connection.execute(
        text("""
            SELECT refund_key, hold_id, seller_id, amount_minor FROM refund_parts
            WHERE refund_key = ANY(CAST(:keys AS uuid[])) ORDER BY refund_key, hold_id
        """),
        {"keys": keys},
    ):
        parts.setdefault(row.refund_key, []).append(RefundPart(row.hold_id, row.seller_id, row.amount_minor))
    return [
        Refund(
            row.refund_key,
            row.end_to_end_id,
            TransferState(row.state),
            row.shop_id,
            row.origin,
            row.refund_id,
            row.order_id,
            row.event_id,
            row.amount_minor,
            row.currency,
            row.bank_reference,
            row.funded_at is not None,
            row.attempt,
            tuple(parts.get(row.refund_key, ())),
        )
        for row in connection.execute(
            text("""
                SELECT r.refund_key, r.end_to_end_id,
                       CASE r.state WHEN 'waiting' THEN 'ready' ELSE r.state END AS state,
                       r.shop_id, r.origin, r.refund_id, r.order_id, r.event_id,
                       r.amount_minor, r.currency, r.attempt, p.bank_reference, p.funded_at
                FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
                WHERE r.refund_key = ANY(CAST(:keys AS uuid[])) AND r.state <> 'rejected'
                  AND (r.state <> 'waiting' OR p.funded_at IS NOT NULL)
                ORDER BY r.refund_key
            """),
            {"keys": keys},
        )
    ]


def mark_refunds(
    connection: Connection, changes: Sequence[tuple[UUID, TransferState, str | None]], *, now: datetime
) -> None:
    """Set the state of locked refunds; `failed` also stands for one that came back after it had settled."""
    connection.execute(
        text("""
            UPDATE refunds
            SET state = given.state, reason = coalesce(given.reason, refunds.reason), touched_at = :now,
                ended_at = CASE WHEN given.state IN ('settled', 'failed') THEN :now ELSE ended_at END
            FROM unnest(CAST(:keys AS uuid[]), CAST(:states AS text[]), CAST(:reasons AS text[]))
                AS given(refund_key, state, reason)
            WHERE refunds.refund_key = given.refund_key
        """),
        {
            "keys": [key for key, _, _ in changes],
            "states": [
                TransferState.FAILED.value if state is TransferState.RETURNED else state.value
                for _, state, _ in changes
            ],
            "reasons": [reason for _, _, reason in changes],
            "now": now,
        },
    )


def touch_refunds(connection: Connection, refund_keys: Sequence[UUID], *, now: datetime) -> None:
    connection.execute(
        text("UPDATE refunds SET touched_at = :now WHERE refund_key = ANY(CAST(:keys AS uuid[]))"),
        {"keys": list(refund_keys), "now": now},
    )


def find_refund_keys(connection: Connection, end_to_end_ids: Sequence[str]) -> dict[str, UUID]:
    return {
        row.end_to_end_id: row.refund_key
        for row in connection.execute(
            text("""
                SELECT end_to_end_id, refund_key FROM refunds
                WHERE end_to_end_id = ANY(CAST(:ids AS text[]))
            """),
            {"ids": list(end_to_end_ids)},
        )
    }
