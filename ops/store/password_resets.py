"""SQL about forgotten passwords: which event of the platform asked, and what operators have said."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.tables import password_resets
from ledger.ids import new_id

# After so long nobody remembers who asked; the platform asks again.
ASKED_WITHIN = timedelta(days=7)
# Long enough for a seller to choose a password, short enough not to be forgotten.
OPEN_FOR = timedelta(hours=72)


@dataclass(frozen=True, slots=True)
class Asked:
    """An event of the platform, as far as it may have asked for a reset."""

    type: str
    received_at: datetime
    seller_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Reset:
    """What was said about one event; nothing decided while `valid_until` is None."""

    reset_id: UUID
    seller_id: str
    proposed_by: str
    valid_until: datetime | None
    cancelled: bool


def find_asked(connection: Connection, shop_id: str, event_id: str) -> Asked | None:
    """Return what Holdfast answered to an authentic event; None where there was none."""
    row = connection.execute(
        text("""
            SELECT i.type, i.received_at, e.data ->> 'seller_id' AS seller_id, e.data ->> 'reason' AS reason
            FROM inbox AS i
            LEFT JOIN events AS e ON e.event_id = i.answer_id AND e.type = 'seller.rejected'
            WHERE (i.source, i.event_id) = ('/shops/' || CAST(:shop AS text), :event)
        """),
        {"shop": shop_id, "event": event_id},
    ).one_or_none()
    return None if row is None else Asked(row.type, row.received_at, row.seller_id, row.reason)


def find_reset(connection: Connection, shop_id: str, event_id: str) -> Reset | None:
    """Return what was said about an event; lock the seller before."""
    row = connection.execute(
        text("""
            SELECT reset_id, seller_id, proposed_by, valid_until, cancelled_at FROM password_resets
            WHERE (shop_id, event_id) = (:shop, :event)
        """),
        {"shop": shop_id, "event": event_id},
    ).one_or_none()
    if row is None:
        return None
    return Reset(
        row.reset_id, row.seller_id, row.proposed_by, row.valid_until, cancelled=row.cancelled_at is not None
    )


def propose_reset(
    connection: Connection, shop_id: str, seller_id: str, event_id: str, *, by: str, why: str, now: datetime
) -> None:
    insert_rows(
        connection,
        password_resets,
        [
            {
                "reset_id": new_id(),
                "shop_id": shop_id,
                "seller_id": seller_id,
                "event_id": event_id,
                "proposed_by": by,
                "proposed_why": why,
                "proposed_at": now,
            }
        ],
    )


def open_reset(
    connection: Connection,
    shop_id: str,
    seller_id: str,
    reset_id: UUID,
    *,
    by: str,
    why: str,
    now: datetime,
) -> datetime:
    """Let a locked seller enrol anew, and lift what wrong passwords have locked; return until when."""
    until = now + OPEN_FOR
    connection.execute(
        text("""
            UPDATE password_resets
            SET decided_by = :by, decided_why = :why, decided_at = :now, valid_until = :until
            WHERE reset_id = :id
        """),
        {"id": reset_id, "by": by, "why": why, "now": now, "until": until},
    )
    connection.execute(
        text("""
            UPDATE sellers SET password_reset_until = :until, failed_attempts = 0, locked_until = NULL,
                               locked_by_failures = false
            WHERE (shop_id, seller_id) = (:shop, :seller)
        """),
        {"shop": shop_id, "seller": seller_id, "until": until},
    )
    return until


def cancel_resets(connection: Connection, shop_id: str, seller_id: str, *, now: datetime) -> int:
    """
    End what was proposed or is open for a locked seller, so that the old password is good again.

    Returns how many were ended.
    """
    connection.execute(
        text("""
            UPDATE sellers SET password_reset_until = NULL WHERE (shop_id, seller_id) = (:shop, :seller)
        """),
        {"shop": shop_id, "seller": seller_id},
    )
    return connection.execute(
        text("""
            UPDATE password_resets AS r SET cancelled_at = :now
            FROM sellers AS s
            WHERE (s.shop_id, s.seller_id) = (:shop, :seller)
              AND (r.shop_id, r.seller_id) = (s.shop_id, s.seller_id) AND r.cancelled_at IS NULL
              AND (r.decided_at IS NULL OR (r.valid_until > :now AND s.password_changed_at < r.decided_at))
        """),
        {"shop": shop_id, "seller": seller_id, "now": now},
    ).rowcount


def find_proposals(connection: Connection, shop_id: str, seller_id: str) -> list[dict[str, Any]]:
    """Return what one operator has proposed and no second one has decided, the latest first."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT event_id, proposed_by, proposed_why, proposed_at FROM password_resets
                WHERE (shop_id, seller_id) = (:shop, :seller) AND decided_at IS NULL
                  AND cancelled_at IS NULL
                ORDER BY proposed_at DESC
            """),
            {"shop": shop_id, "seller": seller_id},
        ).mappings()
    ]


def count_waiting(connection: Connection, shop_id: str, seller_id: str) -> int:
    """Return how many withdrawals of a seller wait with their money set aside."""
    count: int = connection.execute(
        text("""
            SELECT count(*) FROM withdrawals
            WHERE (shop_id, seller_id, state) = (:shop, :seller, 'pending')
        """),
        {"shop": shop_id, "seller": seller_id},
    ).scalar_one()
    return count
