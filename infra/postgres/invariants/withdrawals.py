"""Withdrawals and payouts: the right password, the right names, and what the bank said."""

from typing import Final

from infra.postgres.invariants.check import Check, listed
from ledger.postings import PostingKind

# The money is set aside when the password was right: also of one that waits, or was given up after it had.
_WITHDRAWALS_HAD_ONE_PASSWORD = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state IN ('accepted', 'pending') OR w.pending_reason IS NOT NULL THEN
               reserved.amount_minor IS DISTINCT FROM w.amount_minor
               OR (reserved.shop_id, reserved.seller_id, reserved.currency)
                  IS DISTINCT FROM (w.shop_id, w.seller_id, w.currency)
               -- One that was adopted is an operator's word; that has a check of its own.
               OR (w.adopted_at IS NULL AND (coalesce(checked.accepted, 0) <> 1 OR checked.others <> 0))
           ELSE reserved.posting_id IS NOT NULL
           END AS broken
    FROM withdrawals AS w
    LEFT JOIN postings AS reserved
        ON reserved.cause_id = w.payout_id AND reserved.kind = '{PostingKind.PAYOUT_RESERVED}'
    LEFT JOIN (
        SELECT a.payout_id, count(*) FILTER (WHERE a.state = 'accepted') AS accepted,
               count(*) FILTER (
                   WHERE (a.shop_id, a.seller_id, a.event_id, a.destination_id)
                         IS DISTINCT FROM (x.shop_id, x.seller_id, x.event_id, x.destination_id)
               ) AS others
        FROM password_attempts AS a JOIN withdrawals AS x ON x.payout_id = a.payout_id
        WHERE a.purpose = 'withdrawal'
        GROUP BY a.payout_id
    ) AS checked ON checked.payout_id = w.payout_id
"""

# Only what was not withdrawable is owed, and only while the bank has kept the money.
_ADOPTIONS_ARE_ON_RECORD = f"""
    SELECT coalesce(w.shop_id || '/' || w.withdrawal_id, advanced.cause_id::text) AS example,
           w.adopted_at IS NULL OR t.payout_id IS NULL OR t.state = 'ready'
           OR NOT EXISTS (SELECT FROM operator_actions AS o
                          WHERE o.action = 'payout_adopted' AND o.details ->> 'payout_id' = w.payout_id::text)
           OR coalesce(advanced.amount_minor, 0) > w.amount_minor AS broken
    FROM (SELECT * FROM withdrawals WHERE adopted_at IS NOT NULL) AS w
    LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    FULL JOIN (SELECT * FROM postings WHERE kind = '{PostingKind.PAYOUT_ADVANCED}') AS advanced
        ON advanced.cause_id = w.payout_id
"""

_DEBTS_ARE_REPAID_BY_WHAT_CAME_BACK = f"""
    SELECT coalesce(w.shop_id || '/' || w.withdrawal_id, repaid.cause_id::text) AS example,
           w.payout_id IS NULL OR repaid.amount_minor > w.amount_minor
           OR NOT coalesce(t.state IN ('failed', 'returned'),
                           w.state = 'rejected' AND w.pending_reason IS NOT NULL) AS broken
    FROM postings AS repaid
    LEFT JOIN withdrawals AS w ON w.payout_id = repaid.cause_id
    LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    WHERE repaid.kind = '{PostingKind.DEBT_REPAID}'
"""

_CANCELLED_MONEY_IS_BACK = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state = 'rejected' AND w.pending_reason IS NOT NULL
                THEN cancelled.amount_minor IS DISTINCT FROM w.amount_minor
                ELSE cancelled.posting_id IS NOT NULL END AS broken
    FROM withdrawals AS w
    LEFT JOIN postings AS cancelled
        ON cancelled.cause_id = w.payout_id AND cancelled.kind = '{PostingKind.PAYOUT_CANCELLED}'
    WHERE w.pending_reason IS NOT NULL OR cancelled.posting_id IS NOT NULL
"""

# The names are compared as the database compares them when they are written.
_REVIEWS_HAD_TWO_NAMES = """
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           CASE WHEN w.state = 'pending' AND w.pending_reason = 'over_limit' THEN r.decided_at IS NOT NULL
           ELSE r.decided_at IS NULL
                OR r.verdict IS DISTINCT FROM CASE w.state WHEN 'rejected' THEN 'reject' ELSE 'approve' END
                OR lower(trim(r.proposed_by)) = lower(trim(r.decided_by)) END AS broken
    FROM withdrawals AS w LEFT JOIN withdrawal_reviews AS r ON r.payout_id = w.payout_id
    -- One that only cools off needs nobody's word, unless it was rejected or somebody has spoken.
    WHERE w.over_limit IS NOT NULL AND NOT (w.state = 'pending' AND w.pending_reason = 'cooling_off')
       OR w.state = 'rejected' AND w.pending_reason IS NOT NULL
"""

_NOTHING_LEFT_BEFORE_ITS_COOLING_OFF = """
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           w.state = 'accepted' AND (w.decided_at < w.pending_until OR t.created_at < w.pending_until)
           AS broken
    FROM withdrawals AS w LEFT JOIN transfers AS t ON t.payout_id = w.payout_id
    WHERE w.pending_until IS NOT NULL
"""

# The change and the attempt that made it are written in one step, under one time.
_PASSWORDS_CHANGED_RIGHTLY = """
    SELECT s.shop_id || '/' || s.seller_id AS example,
           CASE WHEN s.password_changed_at > s.enrolled_at THEN NOT EXISTS (
               SELECT FROM password_attempts AS a
               WHERE (a.shop_id, a.seller_id, a.state) = (s.shop_id, s.seller_id, 'accepted')
                 AND a.decided_at = s.password_changed_at
                 AND (a.purpose = 'password_change' OR (a.purpose = 'enrolment' AND EXISTS (
                     SELECT FROM password_resets AS r
                     WHERE (r.shop_id, r.seller_id) = (s.shop_id, s.seller_id) AND r.decided_by IS NOT NULL
                       AND lower(trim(r.proposed_by)) <> lower(trim(r.decided_by))
                       AND s.password_changed_at BETWEEN r.decided_at
                           AND least(r.valid_until, r.cancelled_at))))
           ) ELSE false END
           OR (s.password_reset_until IS NOT NULL AND NOT EXISTS (
               SELECT FROM password_resets AS r
               WHERE (r.shop_id, r.seller_id, r.valid_until)
                   = (s.shop_id, s.seller_id, s.password_reset_until)
                 AND r.decided_by IS NOT NULL AND r.cancelled_at IS NULL
                 AND lower(trim(r.proposed_by)) <> lower(trim(r.decided_by)))) AS broken
    FROM sellers AS s
    WHERE s.password_changed_at <> s.enrolled_at OR s.password_reset_until IS NOT NULL
"""

_ONE_INSTRUCTION_PER_WITHDRAWAL = """
    SELECT coalesce(p.example, t.payout_id::text) AS example,
           CASE WHEN p.goes
                THEN t.end_to_end_id IS DISTINCT FROM replace(p.payout_id::text, '-', '')
                ELSE t.payout_id IS NOT NULL END AS broken
    FROM (
        SELECT payout_id, shop_id || '/' || withdrawal_id AS example, state = 'accepted' AS goes
        FROM withdrawals
        UNION ALL
        SELECT payout_id, shop_id || '/' || reference, state = 'approved' FROM shop_payouts
    ) AS p FULL JOIN transfers AS t ON t.payout_id = p.payout_id
"""

_SHOP_PAYOUTS_HAD_TWO_NAMES = f"""
    SELECT p.shop_id || '/' || p.reference AS example,
           CASE WHEN p.state = 'approved' THEN
               lower(trim(p.decided_by)) = lower(trim(p.proposed_by))
               OR (reserved.amount_minor, reserved.shop_id, reserved.currency)
                  IS DISTINCT FROM (p.amount_minor, p.shop_id, p.currency)
               OR reserved.kind IS DISTINCT FROM CASE p.source
                   WHEN 'fees' THEN '{PostingKind.FEES_PAYOUT_RESERVED}'
                   ELSE '{PostingKind.RECOVERED_PAYOUT_RESERVED}' END
           ELSE reserved.posting_id IS NOT NULL END AS broken
    FROM shop_payouts AS p
    LEFT JOIN postings AS reserved ON reserved.cause_id = p.payout_id
        AND reserved.kind IN ('{PostingKind.FEES_PAYOUT_RESERVED}',
                              '{PostingKind.RECOVERED_PAYOUT_RESERVED}')
"""

# Of a seller's money, and of a shop's own.
_SETTLED: Final = listed([PostingKind.PAYOUT_SETTLED, PostingKind.SHOP_PAYOUT_SETTLED])
_FAILED: Final = listed(
    [PostingKind.PAYOUT_FAILED, PostingKind.FEES_PAYOUT_FAILED, PostingKind.RECOVERED_PAYOUT_FAILED]
)
_RETURNED: Final = listed(
    [PostingKind.PAYOUT_RETURNED, PostingKind.FEES_PAYOUT_RETURNED, PostingKind.RECOVERED_PAYOUT_RETURNED]
)

_PAYOUTS_FOLLOW_THE_BANK = f"""
    SELECT t.end_to_end_id AS example,
           (coalesce(booked.settled, 0), coalesce(booked.failed, 0), coalesce(booked.returned, 0))
           <> (CASE WHEN t.state IN ('settled', 'returned') THEN p.amount_minor ELSE 0 END,
               CASE WHEN t.state = 'failed' THEN p.amount_minor ELSE 0 END,
               CASE WHEN t.state = 'returned' THEN p.amount_minor ELSE 0 END)
           OR (t.settled_at IS NOT NULL) <> (t.state IN ('settled', 'returned'))
           OR (t.ended_at IS NOT NULL) <> (t.state IN ('settled', 'failed', 'returned'))
           OR (t.state <> 'ready' AND t.sent_at IS NULL) AS broken
    FROM transfers AS t
    LEFT JOIN payouts AS p ON p.payout_id = t.payout_id
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind IN ({_SETTLED})) AS settled,
               sum(amount_minor) FILTER (WHERE kind IN ({_FAILED})) AS failed,
               sum(amount_minor) FILTER (WHERE kind IN ({_RETURNED})) AS returned
        FROM postings
        WHERE kind IN ({_SETTLED}, {_FAILED}, {_RETURNED})
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = t.payout_id
"""

CHECKS: Final = (
    Check(
        7,
        "withdrawals_had_one_password",
        "money was reserved only after one accepted password for just that",
        _WITHDRAWALS_HAD_ONE_PASSWORD,
    ),
    Check(
        7,
        "cancelled_money_is_back",
        "what was given up in review is withdrawable again, once",
        _CANCELLED_MONEY_IS_BACK,
    ),
    Check(
        7,
        "reviews_had_two_names",
        "nothing over a limit left, and nothing was given up, on one name's word",
        _REVIEWS_HAD_TWO_NAMES,
    ),
    Check(
        7,
        "nothing_left_before_its_cooling_off",
        "no withdrawal went on before its time",
        _NOTHING_LEFT_BEFORE_ITS_COOLING_OFF,
    ),
    Check(
        7,
        "passwords_changed_rightly",
        "no password was replaced without the old one or the word of two names",
        _PASSWORDS_CHANGED_RIGHTLY,
    ),
    Check(
        7,
        "adoptions_are_on_record",
        "what was taken into the books after a restore, an operator took, and the bank was asked about it",
        _ADOPTIONS_ARE_ON_RECORD,
    ),
    Check(
        7,
        "debts_are_repaid_by_what_came_back",
        "what was kept of a payout for a debt had come back, and was no more than that",
        _DEBTS_ARE_REPAID_BY_WHAT_CAME_BACK,
    ),
    Check(
        7,
        "shop_payouts_had_two_names",
        "no money of a shop's own left on one name's word, or more than agreed",
        _SHOP_PAYOUTS_HAD_TWO_NAMES,
    ),
    Check(
        7,
        "one_instruction_per_withdrawal",
        "every payout that was accepted has one bank instruction, no other any",
        _ONE_INSTRUCTION_PER_WITHDRAWAL,
    ),
    Check(
        7,
        "payouts_follow_the_bank",
        "payouts are booked as the bank settled, rejected or returned them",
        _PAYOUTS_FOLLOW_THE_BANK,
    ),
)
