"""The escrow worker's SQL for disputes and refunds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.tables import dispute_holds, disputes, refund_parts, refunds
from workers.escrow.decisions import HoldState
from workers.escrow.recourse_decisions import ProtectedHold, RefundOf

OrderKey = tuple[str, str]  # shop id, order id


@dataclass(frozen=True, slots=True)
class Order:
    payment_id: UUID
    shop_id: str
    order_id: str
    currency: str
    funded: bool


@dataclass(frozen=True, slots=True)
class NewDispute:
    dispute_key: UUID
    shop_id: str
    dispute_id: str
    order_id: str
    event_id: str
    content_hash: bytes
    complaint: str
    state: str
    reason: str | None
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as it stands, locked."""

    dispute_key: UUID
    shop_id: str
    dispute_id: str
    order_id: str
    content_hash: bytes
    state: str
    resolution_hash: bytes | None


@dataclass(frozen=True, slots=True)
class NewRefund:
    refund_key: UUID
    shop_id: str
    origin: str
    refund_id: str
    order_id: str
    payment_id: UUID | None
    event_id: str
    content_hash: bytes
    state: str
    reason: str | None
    amount_minor: int
    currency: str | None
    end_to_end_id: str | None
    requested_at: datetime
    touched_at: datetime


def lock_orders(connection: Connection, keys: Iterable[OrderKey]) -> dict[OrderKey, Order]:
    """
    Read received orders, in id order; the bank's word on them stays what it is until the transaction ends.

    So a refund that is told to wait for its credit is there to be found when the credit comes.
    """
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.order_id): Order(
            row.payment_id, row.shop_id, row.order_id, row.currency, row.funded_at is not None
        )
        for row in connection.execute(
            text("""
                SELECT payment_id, shop_id, order_id, currency, funded_at FROM payments
                WHERE state = 'received' AND (shop_id, order_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:orders AS text[]))
                )
                ORDER BY payment_id FOR SHARE
            """),
            {"shops": [shop for shop, _ in ordered], "orders": [order for _, order in ordered]},
        )
    }


def lock_holds_of(
    connection: Connection, payment_ids: Iterable[UUID]
) -> dict[UUID, dict[UUID, ProtectedHold]]:
    """
    Lock all holds of some payments, in id order as releases do; return them by payment and id.

    Whoever holds these locks decides alone what becomes of every cent in them.
    """
    ids = list(payment_ids)
    connection.execute(
        text("SELECT 1 FROM holds WHERE payment_id = ANY(CAST(:ids AS uuid[])) ORDER BY hold_id FOR UPDATE"),
        {"ids": ids},
    )
    found: dict[UUID, dict[UUID, ProtectedHold]] = {payment_id: {} for payment_id in ids}
    for row in connection.execute(
        text("""
            SELECT h.payment_id, h.hold_id, h.seller_id, h.currency, h.state, h.amount_minor,
                   h.refunded_minor,
                   ARRAY(SELECT d.dispute_key FROM dispute_holds AS dh
                         JOIN disputes AS d ON d.dispute_key = dh.dispute_key AND d.state = 'open'
                         WHERE dh.hold_id = h.hold_id) AS disputes
            FROM holds AS h WHERE h.payment_id = ANY(CAST(:ids AS uuid[])) ORDER BY h.hold_id
        """),
        {"ids": ids},
    ):
        found[row.payment_id][row.hold_id] = ProtectedHold(
            row.hold_id,
            row.seller_id,
            row.currency,
            HoldState(row.state),
            row.amount_minor,
            row.refunded_minor,
            frozenset(row.disputes),
        )
    return found


def lock_disputes(connection: Connection, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Dispute]:
    """Lock known disputes in key order; keys are (shop, dispute)."""
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.dispute_id): Dispute(
            row.dispute_key,
            row.shop_id,
            row.dispute_id,
            row.order_id,
            bytes(row.content_hash),
            row.state,
            bytes(row.resolution_hash) if row.resolution_hash is not None else None,
        )
        for row in connection.execute(
            text("""
                SELECT dispute_key, shop_id, dispute_id, order_id, content_hash, state, resolution_hash
                FROM disputes
                WHERE (shop_id, dispute_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:ids AS text[]))
                )
                ORDER BY shop_id, dispute_id FOR UPDATE
            """),
            {"shops": [shop for shop, _ in ordered], "ids": [id_ for _, id_ in ordered]},
        )
    }


def insert_dispute(connection: Connection, row: NewDispute, hold_ids: Sequence[UUID]) -> bool:
    """Book a dispute and the holds that it froze; False if its id was booked at this moment."""
    written = insert_rows(
        connection,
        disputes,
        [{name: getattr(row, name) for name in row.__slots__}],
        skip_existing=True,
        returning=("dispute_key",),
    )
    if written:
        insert_rows(
            connection,
            dispute_holds,
            [{"dispute_key": row.dispute_key, "hold_id": hold_id} for hold_id in hold_ids],
        )
    return bool(written)


def mark_resolved(
    connection: Connection, dispute_key: UUID, *, resolution_hash: bytes, now: datetime
) -> None:
    connection.execute(
        text("""
            UPDATE disputes SET state = 'resolved', resolved_at = :now, resolution_hash = :hash
            WHERE dispute_key = :key
        """),
        {"key": dispute_key, "hash": resolution_hash, "now": now},
    )


def find_disputed_holds(connection: Connection, dispute_key: UUID) -> set[UUID]:
    return {
        row.hold_id
        for row in connection.execute(
            text("SELECT hold_id FROM dispute_holds WHERE dispute_key = :key"), {"key": dispute_key}
        )
    }


def update_holds(connection: Connection, changed: Sequence[ProtectedHold]) -> None:
    """Write back what recourse made of locked holds."""
    if changed:
        connection.execute(
            text("""
                UPDATE holds SET state = given.state, refunded_minor = given.refunded
                FROM unnest(CAST(:ids AS uuid[]), CAST(:states AS text[]), CAST(:refunded AS bigint[]))
                    AS given(hold_id, state, refunded)
                WHERE holds.hold_id = given.hold_id
            """),
            {
                "ids": [hold.hold_id for hold in changed],
                "states": [hold.state.value for hold in changed],
                "refunded": [hold.refunded_minor for hold in changed],
            },
        )


def find_release_times(connection: Connection, hold_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    return {
        row.hold_id: row.release_at
        for row in connection.execute(
            text("SELECT hold_id, release_at FROM holds WHERE hold_id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": list(hold_ids)},
        )
    }


def find_refund_contents(
    connection: Connection, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], bytes]:
    """Return the content hash of each known refund request; keys are (shop, refund)."""
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.refund_id): bytes(row.content_hash)
        for row in connection.execute(
            text("""
                SELECT shop_id, refund_id, content_hash FROM refunds
                WHERE origin = 'refund' AND (shop_id, refund_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:ids AS text[]))
                )
            """),
            {"shops": [shop for shop, _ in ordered], "ids": [id_ for _, id_ in ordered]},
        )
    }


def insert_refund(connection: Connection, row: NewRefund, parts: Sequence[RefundOf]) -> bool:
    """Book a refund and its parts; False if its id was booked at this moment."""
    written = insert_rows(
        connection,
        refunds,
        [{name: getattr(row, name) for name in row.__slots__}],
        skip_existing=True,
        returning=("refund_key",),
    )
    if written:
        insert_rows(
            connection,
            refund_parts,
            [
                {
                    "refund_key": row.refund_key,
                    "hold_id": part.hold.hold_id,
                    "seller_id": part.hold.seller_id,
                    "amount_minor": part.amount_minor,
                }
                for part in parts
            ],
        )
    return bool(written)
