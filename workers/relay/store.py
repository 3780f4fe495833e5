"""The relay's SQL: what is overdue. Each query is bounded and reads an index made for it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

# Any number; the same one for every relay, so that one sweeps at a time.
_SWEEP_LOCK = 5_120_883_641

# Far longer than any of our transactions may take.
_COMMIT_MARGIN_SECONDS = 300


@dataclass(frozen=True, slots=True)
class StuckTransfer:
    payout_id: UUID
    sent: bool


@dataclass(frozen=True, slots=True)
class StuckRefund:
    refund_key: UUID
    sent: bool


def try_sweep_lock(connection: Connection) -> bool:
    """Become the one relay that sweeps, until the transaction ends."""
    return bool(
        connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _SWEEP_LOCK}).scalar_one()
    )


def find_overdue_holds(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """
    Return holds whose alarm should have rung a while ago and that may be released, oldest first.

    Left out: holds that wait for the bank's credit, which will call them itself, and holds that were
    armed again a moment ago.
    """
    return [
        row.hold_id
        for row in connection.execute(
            text("""
                SELECT h.hold_id
                FROM holds AS h
                JOIN payments AS p ON p.payment_id = h.payment_id
                JOIN shops AS s ON s.shop_id = h.shop_id
                WHERE h.state = 'held'
                  AND h.release_at < clock_timestamp() - make_interval(secs => :grace)
                  AND (h.rearmed_at IS NULL
                       OR h.rearmed_at < clock_timestamp() - make_interval(secs => :grace))
                  AND (s.funding = 'announced' OR p.funded_at IS NOT NULL)
                  AND p.charged_back_at IS NULL
                ORDER BY h.release_at LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def mark_rearmed(connection: Connection, hold_ids: list[UUID], *, now: datetime) -> None:
    connection.execute(
        text("UPDATE holds SET rearmed_at = :now WHERE hold_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": hold_ids, "now": now},
    )


def find_unheld_payments(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """
    Return received payments without holds that are older than the grace, oldest first.

    Reads only what came after the mark up to which all payments are known to be held, and moves the
    mark. It stays a few minutes behind: a payment's time is taken when its transaction begins, and it
    may become visible that much later.
    """
    rows = connection.execute(
        text("""
            SELECT p.payment_id, p.received_at FROM payments AS p
            WHERE p.state = 'received'
              AND p.received_at >= coalesce(
                    (SELECT settled_until FROM sweep_marks WHERE what = 'payments'), '-infinity')
              AND p.received_at < clock_timestamp() - make_interval(secs => :grace)
              AND NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.payment_id = p.payment_id)
            ORDER BY p.received_at LIMIT :limit
        """),
        {"grace": grace_seconds, "limit": limit},
    ).all()
    connection.execute(
        text("""
            INSERT INTO sweep_marks AS old (what, settled_until)
            VALUES ('payments', least(
                CAST(:oldest AS timestamptz), clock_timestamp() - make_interval(secs => :grace + :margin)))
            ON CONFLICT (what) DO UPDATE
            SET settled_until = greatest(old.settled_until, excluded.settled_until)
        """),
        {
            "oldest": rows[0].received_at if rows else None,
            "grace": grace_seconds,
            "margin": _COMMIT_MARGIN_SECONDS,
        },
    )
    return [row.payment_id for row in rows]


def find_matchable_credits(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """Return credits in suspense for which a payment waits."""
    return [
        row.credit_id
        for row in connection.execute(
            text("""
                SELECT c.credit_id FROM bank_credits AS c
                JOIN payments AS p ON p.bank_reference = c.bank_reference AND p.state = 'received'
                  AND p.funded_at IS NULL AND (p.amount_minor, p.currency) = (c.amount_minor, c.currency)
                WHERE c.payment_id IS NULL AND c.taken_back_at IS NULL
                  AND c.received_at < clock_timestamp() - make_interval(secs => :grace)
                GROUP BY c.bank_reference, c.amount_minor, c.currency, c.credit_id
                HAVING count(*) <= (
                    SELECT count(*) FROM bank_credits AS same
                    WHERE same.payment_id IS NULL AND same.taken_back_at IS NULL
                      AND same.bank_reference = c.bank_reference
                      AND (same.amount_minor, same.currency) = (c.amount_minor, c.currency)
                )
                ORDER BY c.credit_id LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def find_credits_of_open_debits(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """Return standing credits that a debit, booked before they came, takes back."""
    return [
        row.credit_id
        for row in connection.execute(
            text("""
                SELECT c.credit_id FROM bank_debits AS d
                JOIN bank_credits AS c ON c.bank_reference = d.bank_reference AND c.bank_id = d.bank_id
                  AND (c.amount_minor, c.currency) = (d.amount_minor, d.currency)
                WHERE d.credit_id IS NULL AND c.taken_back_at IS NULL
                  AND d.received_at < clock_timestamp() - make_interval(secs => :grace)
                ORDER BY c.credit_id LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def find_resting_attempts(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """Return password attempts that nobody has decided for a while."""
    return [
        row.attempt_id
        for row in connection.execute(
            text("""
                SELECT attempt_id FROM password_attempts
                WHERE state IN ('waiting', 'counted')
                  AND coalesce(counted_at, requested_at) < clock_timestamp() - make_interval(secs => :grace)
                ORDER BY requested_at LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def find_cooled_off(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """Return withdrawals whose cooling-off was over a while ago, and that nobody has proposed to reject."""
    return [
        row.payout_id
        for row in connection.execute(
            text("""
                SELECT w.payout_id FROM withdrawals AS w
                WHERE w.state = 'pending' AND w.pending_reason = 'cooling_off'
                  AND w.pending_until < clock_timestamp() - make_interval(secs => :grace)
                  AND NOT EXISTS (SELECT FROM withdrawal_reviews AS r
                                  WHERE r.payout_id = w.payout_id AND r.decided_at IS NULL)
                ORDER BY w.pending_until LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def find_resting_transfers(
    connection: Connection, *, grace_seconds: float, submitted_grace_seconds: float, limit: int
) -> list[StuckTransfer]:
    """
    Return transfers of which nobody has asked the bank for a while, though its last word is missing.

    Left out: what is ready while its payouts are paused.
    """
    return [
        StuckTransfer(row.payout_id, row.state != "ready")
        for row in connection.execute(
            text("""
                SELECT t.payout_id, t.state FROM transfers AS t
                WHERE t.state IN ('ready', 'sending', 'unknown', 'submitted')
                  AND t.touched_at < clock_timestamp() - make_interval(
                        secs => CASE t.state WHEN 'submitted' THEN :submitted WHEN 'unknown' THEN :submitted
                                ELSE :grace END)
                  AND NOT (t.state = 'ready' AND EXISTS (
                        SELECT FROM payout_pauses AS p
                        JOIN payouts AS o ON o.payout_id = t.payout_id AND p.shop_id IN ('*', o.shop_id)))
                ORDER BY t.touched_at LIMIT :limit
            """),
            {"grace": grace_seconds, "submitted": submitted_grace_seconds, "limit": limit},
        )
    ]


def find_resting_refunds(
    connection: Connection, *, grace_seconds: float, submitted_grace_seconds: float, limit: int
) -> list[StuckRefund]:
    """Return refunds that nobody has moved for a while: never sent, unanswered, or their credit has come."""
    return [
        StuckRefund(row.refund_key, row.state not in {"waiting", "ready"})
        for row in connection.execute(
            text("""
                SELECT r.refund_key, r.state
                FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
                WHERE r.state IN ('waiting', 'ready', 'sending', 'unknown', 'submitted')
                  AND (r.state <> 'waiting' OR p.funded_at IS NOT NULL)
                  AND r.touched_at < clock_timestamp() - make_interval(
                        secs => CASE WHEN r.state IN ('unknown', 'submitted') THEN :submitted ELSE :grace END)
                  AND NOT (r.state IN ('waiting', 'ready') AND EXISTS (
                        SELECT FROM payout_pauses AS paused WHERE paused.shop_id IN ('*', r.shop_id)))
                ORDER BY r.touched_at LIMIT :limit
            """),
            {"grace": grace_seconds, "submitted": submitted_grace_seconds, "limit": limit},
        )
    ]


def touch_refunds(connection: Connection, refund_keys: list[UUID], *, now: datetime) -> None:
    connection.execute(
        text("UPDATE refunds SET touched_at = :now WHERE refund_key = ANY(CAST(:ids AS uuid[]))"),
        {"ids": refund_keys, "now": now},
    )


def find_unsettled_claims(connection: Connection, *, grace_seconds: float, limit: int) -> list[UUID]:
    """
    Return payments whose claims do not fit the bank's word of a while ago.

    Taken back, but what was released of it is not claimed; or confirmed again, and still claimed.
    """
    return [
        row.payment_id
        for row in connection.execute(
            text("""
                SELECT DISTINCT p.payment_id
                FROM bank_debits AS d
                JOIN payments AS p ON p.payment_id = d.payment_id
                JOIN holds AS h ON h.payment_id = p.payment_id AND h.state = 'released'
                LEFT JOIN claims AS c ON c.hold_id = h.hold_id AND c.cause = 'chargeback'
                  AND c.returned_at IS NULL
                WHERE CASE WHEN c.claim_id IS NULL
                        THEN p.charged_back_at < clock_timestamp() - make_interval(secs => :grace)
                             AND h.amount_minor > h.refunded_minor
                        ELSE p.funded_at < clock_timestamp() - make_interval(secs => :grace) END
                LIMIT :limit
            """),
            {"grace": grace_seconds, "limit": limit},
        )
    ]


def count_stale_disputes(connection: Connection, *, older_than_seconds: float) -> int:
    """Return how many disputes have been open for longer than that."""
    return int(
        connection.execute(
            text("""
                SELECT count(*) FROM disputes
                WHERE state = 'open'
                  AND opened_at < clock_timestamp() - make_interval(secs => :age)
            """),
            {"age": older_than_seconds},
        ).scalar_one()
    )


def count_withdrawals_in_review(connection: Connection) -> int:
    """Return how many withdrawals wait for two operators."""
    return int(
        connection.execute(
            text("""
                SELECT count(*) FROM withdrawals AS w
                WHERE w.state = 'pending' AND (w.pending_reason = 'over_limit' OR EXISTS (
                    SELECT FROM withdrawal_reviews AS r
                    WHERE r.payout_id = w.payout_id AND r.decided_at IS NULL))
            """)
        ).scalar_one()
    )


def count_payout_pauses(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM payout_pauses")).scalar_one())


def touch_transfers(connection: Connection, payout_ids: list[UUID], *, now: datetime) -> None:
    connection.execute(
        text("UPDATE transfers SET touched_at = :now WHERE payout_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": payout_ids, "now": now},
    )
