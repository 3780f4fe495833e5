"""SQL about withdrawals that wait and payouts that are paused, for operators."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from workers.payout.withdrawal_store import ALL_SHOPS


def find_pending(connection: Connection, shop_id: str | None = None) -> list[dict[str, Any]]:
    """Return withdrawals that wait, oldest first, with destinations as they may be shown."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT w.shop_id AS shop, w.withdrawal_id AS withdrawal, w.seller_id AS seller,
                       w.amount_minor AS amount, w.currency, w.destination_id, d.masked AS destination,
                       w.pending_reason AS reason, w.over_limit,
                       CASE w.pending_reason WHEN 'cooling_off' THEN w.pending_until END AS until,
                       w.reserved_at AS since, r.verdict AS proposed, r.proposed_by, r.proposed_why
                FROM withdrawals AS w
                LEFT JOIN withdrawal_reviews AS r ON r.payout_id = w.payout_id AND r.decided_at IS NULL
                LEFT JOIN destinations AS d ON (d.shop_id, d.seller_id, d.destination_id)
                                             = (w.shop_id, w.seller_id, w.destination_id)
                WHERE w.state = 'pending' AND (CAST(:shop AS text) IS NULL OR w.shop_id = :shop)
                ORDER BY w.reserved_at, w.payout_id
            """),
            {"shop": shop_id},
        ).mappings()
    ]


def find_withdrawal_state(
    connection: Connection, shop_id: str, withdrawal_id: str
) -> tuple[UUID, str] | None:
    """Return payout id and state of a withdrawal."""
    row = connection.execute(
        text("""
            SELECT payout_id, state FROM withdrawals WHERE (shop_id, withdrawal_id) = (:shop, :withdrawal)
        """),
        {"shop": shop_id, "withdrawal": withdrawal_id},
    ).one_or_none()
    return None if row is None else (row.payout_id, row.state)


def count_in_review(connection: Connection) -> tuple[int, datetime | None]:
    """Return how many withdrawals wait for people, and since when the oldest does."""
    row = connection.execute(
        text("""
            SELECT count(*) AS waiting, min(w.reserved_at) AS oldest FROM withdrawals AS w
            WHERE w.state = 'pending' AND (w.pending_reason = 'over_limit' OR EXISTS (
                SELECT FROM withdrawal_reviews AS r WHERE r.payout_id = w.payout_id AND r.decided_at IS NULL))
        """)
    ).one()
    return row.waiting, row.oldest


def find_pauses(connection: Connection) -> list[dict[str, Any]]:
    """Return what is paused; `shop` is None where it is everybody."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT nullif(shop_id, :all) AS shop, paused_at, paused_by, reason FROM payout_pauses
                ORDER BY shop_id
            """),
            {"all": ALL_SHOPS},
        ).mappings()
    ]


def insert_pause(connection: Connection, shop_id: str | None, *, by: str, why: str) -> bool:
    """Pause a shop's payouts, or everybody's; False if they are paused already."""
    return (
        connection.execute(
            text("""
                INSERT INTO payout_pauses (shop_id, paused_by, reason) VALUES (:shop, :by, :why)
                ON CONFLICT (shop_id) DO NOTHING
            """),
            {"shop": shop_id or ALL_SHOPS, "by": by, "why": why},
        ).rowcount
        == 1
    )


def delete_pause(connection: Connection, shop_id: str | None) -> bool:
    """Lift a pause; False if there was none."""
    return (
        connection.execute(
            text("DELETE FROM payout_pauses WHERE shop_id = :shop"), {"shop": shop_id or ALL_SHOPS}
        ).rowcount
        == 1
    )


def touch_waiting(connection: Connection, shop_id: str | None, *, now: datetime) -> Mapping[str, list[UUID]]:
    """
    Return what may be handed to the bank after a pause, marked as being on its way from now on.

    Transfers and refunds that were never sent, and those of which it is not known whether they were. A
    shop that is still paused on its own account is left out.
    """
    return {
        "ready_transfers": _touch(connection, _TRANSFERS, "'ready'", shop_id, now),
        "unknown_transfers": _touch(connection, _TRANSFERS, "'sending', 'unknown'", shop_id, now),
        "ready_refunds": _touch(connection, _REFUNDS, "'ready'", shop_id, now),
        "unknown_refunds": _touch(connection, _REFUNDS, "'sending', 'unknown'", shop_id, now),
    }


_TRANSFERS = """
    UPDATE transfers AS t SET touched_at = :now FROM payouts AS of_shop
    WHERE of_shop.payout_id = t.payout_id AND t.state IN ({states}) AND {not_paused} RETURNING t.payout_id
"""
_REFUNDS = """
    UPDATE refunds AS of_shop SET touched_at = :now
    WHERE of_shop.state IN ({states}) AND {not_paused} RETURNING of_shop.refund_key
"""
_NOT_PAUSED = """
    (CAST(:shop AS text) IS NULL OR of_shop.shop_id = :shop)
    AND NOT EXISTS (SELECT FROM payout_pauses AS p WHERE p.shop_id IN ('*', of_shop.shop_id))
"""


def _touch(
    connection: Connection, statement: str, states: str, shop_id: str | None, now: datetime
) -> list[UUID]:
    rows = connection.execute(
        text(statement.format(states=states, not_paused=_NOT_PAUSED)), {"shop": shop_id, "now": now}
    )
    return sorted(row[0] for row in rows)
