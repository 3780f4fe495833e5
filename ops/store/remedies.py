"""SQL for what operators look at before they remedy it: credits in suspense, refunds that failed."""

from typing import Any

from sqlalchemy import Connection, text


def find_suspense(connection: Connection, *, limit: int) -> list[dict[str, Any]]:
    """
    Return credits that confirm nothing, and debits without their credit, the oldest first.

    `fits` names the orders that wait for the same amount and currency, up to five: hints, not matches.
    """
    return [
        dict(row)
        for row in connection.execute(
            text("""
                WITH open_ AS (
                    SELECT 'credit' AS kind, bank_id, statement_line, bank_reference, amount_minor,
                           currency, booked_at, received_at
                    FROM bank_credits WHERE payment_id IS NULL AND taken_back_at IS NULL
                    UNION ALL
                    SELECT 'debit', bank_id, statement_line, bank_reference, amount_minor,
                           currency, booked_at, received_at
                    FROM bank_debits WHERE credit_id IS NULL
                    ORDER BY received_at LIMIT :limit
                ),
                near AS (
                    SELECT amount_minor, currency,
                           (array_agg(shop_id || '/' || order_id ORDER BY received_at))[1:5] AS fits
                    FROM payments
                    WHERE state = 'received' AND funded_at IS NULL
                      AND (amount_minor, currency) IN (SELECT amount_minor, currency FROM open_)
                    GROUP BY amount_minor, currency
                )
                SELECT open_.*, CASE open_.kind WHEN 'credit' THEN near.fits END AS fits
                FROM open_ LEFT JOIN near USING (amount_minor, currency)
                ORDER BY open_.received_at
            """),
            {"limit": limit},
        ).mappings()
    ]


def count_unremedied(connection: Connection) -> tuple[int, int]:
    """Return how many refunds have failed, and how many lines lie in suspense."""
    row = connection.execute(
        text("""
            SELECT (SELECT count(*) FROM refunds WHERE state = 'failed') AS refunds,
                   (SELECT count(*) FROM bank_credits WHERE payment_id IS NULL AND taken_back_at IS NULL)
                   + (SELECT count(*) FROM bank_debits WHERE credit_id IS NULL) AS lines
        """)
    ).one()
    return int(row.refunds), int(row.lines)


def find_credit_amount(connection: Connection, bank_id: str, statement_line: str) -> tuple[int, str] | None:
    """Return amount and currency of a credit; None if the bank has reported no such line."""
    row = connection.execute(
        text("""
            SELECT amount_minor, currency FROM bank_credits
            WHERE bank_id = :bank AND statement_line = :line
        """),
        {"bank": bank_id, "line": statement_line},
    ).one_or_none()
    return None if row is None else (int(row.amount_minor), str(row.currency))


def find_refunds(
    connection: Connection, *, shop_id: str | None, state: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return refunds, the latest first; None leaves a filter out."""
    return [
        dict(row)
        for row in connection.execute(
            text("""
                SELECT shop_id, origin, refund_id, order_id, state, reason, amount_minor, currency,
                       end_to_end_id, attempt, requested_at, ended_at
                FROM refunds
                WHERE (CAST(:shop AS text) IS NULL OR shop_id = :shop)
                  AND (CAST(:state AS text) IS NULL OR state = :state)
                ORDER BY requested_at DESC LIMIT :limit
            """),
            {"shop": shop_id, "state": state, "limit": limit},
        ).mappings()
    ]


def find_refund_amount(
    connection: Connection, shop_id: str, origin: str, refund_id: str
) -> tuple[int, str] | None:
    """Return amount and currency of a refund; None if the shop has none of that name."""
    row = connection.execute(
        text("""
            SELECT amount_minor, currency FROM refunds
            WHERE shop_id = :shop AND origin = :origin AND refund_id = :refund AND state <> 'rejected'
        """),
        {"shop": shop_id, "origin": origin, "refund": refund_id},
    ).one_or_none()
    return None if row is None else (int(row.amount_minor), str(row.currency))
