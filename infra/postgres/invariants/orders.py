"""Orders, their holds, and the bank's credits that confirm them: the money adds up."""

from typing import Final

from infra.postgres.invariants.check import Check
from ledger.accounts import AccountKind
from ledger.postings import PostingKind

# --- orders ---------------------------------------------------------------------------------------

_ORDERS_ADD_UP = f"""
    SELECT concat_ws('/', p.shop_id, p.order_id) AS example,
           CASE p.state
               WHEN 'received' THEN
                   received.amount_minor IS DISTINCT FROM p.amount_minor
                   OR coalesce(held.amount_minor, p.amount_minor) <> p.amount_minor
                   OR split.amount_minor <> p.amount_minor
                   OR coalesce(held.sellers, split.sellers) <> split.sellers
               ELSE received.amount_minor IS NOT NULL OR held.amount_minor IS NOT NULL
           END AS broken
    FROM payments AS p
    CROSS JOIN LATERAL (
        SELECT sum((part ->> 'amount')::numeric) AS amount_minor, count(*) AS sellers
        FROM json_array_elements(p.splits) AS part
    ) AS split
    LEFT JOIN postings AS received
        ON received.cause_id = p.payment_id AND received.kind = '{PostingKind.PAYMENT_RECEIVED}'
    LEFT JOIN (
        SELECT payment_id, sum(amount_minor) AS amount_minor, count(*) AS sellers
        FROM holds GROUP BY payment_id
    ) AS held ON held.payment_id = p.payment_id
"""

_HOLDS_ADD_UP = f"""
    SELECT h.hold_id::text AS example,
           coalesce(booked.held, 0) <> h.amount_minor
           OR coalesce(booked.fee, 0) <> h.fee_minor
           OR coalesce(booked.released, 0)
              <> CASE h.state WHEN 'released' THEN h.amount_minor - h.refunded_minor - h.fee_minor ELSE 0 END
           OR (h.state <> 'released' AND h.fee_minor <> 0)
           OR (h.state = 'refunded') <> (h.refunded_minor = h.amount_minor)
           AS broken
    FROM holds AS h
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.HELD}') AS held,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.RELEASED}') AS released,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_TAKEN}') AS fee
        FROM postings
        WHERE kind IN ('{PostingKind.HELD}', '{PostingKind.RELEASED}', '{PostingKind.FEE_TAKEN}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = h.hold_id
"""

_HELD_EQUALS_OPEN_HOLDS = f"""
    SELECT concat_ws('/', shop_id, seller_id, currency) AS example,
           coalesce(ledger.balance, 0) <> coalesce(open_.amount_minor, 0) AS broken
    FROM (
        SELECT shop_id, seller_id, currency, sum(credit_minor - debit_minor) AS balance
        FROM entries WHERE account = '{AccountKind.HELD}' GROUP BY shop_id, seller_id, currency
    ) AS ledger
    FULL JOIN (
        SELECT shop_id, seller_id, currency, sum(amount_minor - refunded_minor) AS amount_minor
        FROM holds WHERE state IN ('held', 'frozen') GROUP BY shop_id, seller_id, currency
    ) AS open_ USING (shop_id, seller_id, currency)
"""


# --- the bank's credits ---------------------------------------------------------------------------

_CREDITS_ADD_UP = f"""
    SELECT c.bank_id || '/' || c.statement_line AS example,
           CASE WHEN c.payment_id IS NULL THEN
               booked.funded IS NOT NULL OR booked.claimed IS NOT NULL
               OR booked.suspended IS DISTINCT FROM c.amount_minor
           ELSE
               booked.funded IS DISTINCT FROM c.amount_minor
               OR booked.suspended IS DISTINCT FROM booked.claimed
               OR p.funded_at IS NULL
               OR (p.amount_minor, p.currency) IS DISTINCT FROM (c.amount_minor, c.currency)
               -- Another reference only where an operator said so, and is on record for it.
               OR CASE WHEN c.assigned_payment_id IS NULL THEN p.bank_reference <> c.bank_reference
                  ELSE c.assigned_payment_id <> c.payment_id
                       OR NOT EXISTS (SELECT FROM operator_actions AS o WHERE o.action = 'credit_assigned'
                                        AND o.details ->> 'credit_id' = c.credit_id::text)
                  END
           END AS broken
    FROM bank_credits AS c
    LEFT JOIN payments AS p ON p.payment_id = c.payment_id
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.PAYMENT_FUNDED}') AS funded,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CREDIT_SUSPENDED}') AS suspended,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CREDIT_CLAIMED}') AS claimed
        FROM postings
        WHERE kind IN ('{PostingKind.PAYMENT_FUNDED}', '{PostingKind.CREDIT_SUSPENDED}',
                       '{PostingKind.CREDIT_CLAIMED}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = c.credit_id
    -- One that the bank took back has been unbooked again, under the debit's own id.
    WHERE c.taken_back_at IS NULL
"""

_SUSPENSE_IS_EXPLAINED = f"""
    SELECT currency AS example, coalesce(booked.balance, 0) <> coalesce(open_.amount_minor, 0) AS broken
    FROM (
        SELECT currency, sum(credit_minor - debit_minor) AS balance
        FROM entries WHERE account = '{AccountKind.SUSPENSE}' GROUP BY currency
    ) AS booked
    FULL JOIN (
        SELECT currency, sum(amount_minor) AS amount_minor
        FROM (
            SELECT currency, amount_minor FROM bank_credits
            WHERE payment_id IS NULL AND taken_back_at IS NULL
            UNION ALL
            SELECT currency, -amount_minor FROM bank_debits WHERE credit_id IS NULL
        ) AS lines
        GROUP BY currency
    ) AS open_ USING (currency)
"""

_FUNDED_PAYMENTS_HAVE_THEIR_CREDIT = """
    SELECT p.shop_id || '/' || p.order_id AS example, c.credit_id IS NULL AS broken
    FROM payments AS p LEFT JOIN bank_credits AS c ON c.payment_id = p.payment_id
    WHERE p.funded_at IS NOT NULL
"""


CHECKS: Final = (
    Check(
        4,
        "orders_add_up",
        "what was paid for an order is received, and held in full or not yet",
        _ORDERS_ADD_UP,
    ),
    Check(
        4,
        "holds_add_up",
        "each hold = still held + released + fee + refunded, in the ledger too",
        _HOLDS_ADD_UP,
    ),
    Check(
        4,
        "held_equals_open_holds",
        "what the ledger holds for a seller is the sum of the open holds",
        _HELD_EQUALS_OPEN_HOLDS,
    ),
    Check(
        4,
        "credits_add_up",
        "each standing credit confirms its one payment or lies in suspense",
        _CREDITS_ADD_UP,
    ),
    Check(
        4,
        "suspense_is_explained",
        "suspense is what credits without payment and early debits make it",
        _SUSPENSE_IS_EXPLAINED,
    ),
    Check(
        5,
        "funded_payments_have_their_credit",
        "no payment counts as confirmed without a credit of the bank",
        _FUNDED_PAYMENTS_HAVE_THEIR_CREDIT,
    ),
)
