"""Refunds and claims: from which hold, from whom, once."""

from typing import Final

from infra.postgres.invariants.check import Check, attempt_suffix, derived_id
from ledger.postings import PostingKind

_REFUNDS_ADD_UP = f"""
    SELECT 'hold ' || h.hold_id AS example, h.refunded_minor <> coalesce(given.amount_minor, 0) AS broken
    FROM holds AS h
    FULL JOIN (
        SELECT hold_id, sum(amount_minor) AS amount_minor FROM refund_parts GROUP BY hold_id
    ) AS given ON given.hold_id = h.hold_id
    WHERE h.refunded_minor IS DISTINCT FROM 0 OR given.hold_id IS NOT NULL
    UNION ALL
    SELECT 'refund ' || r.shop_id || '/' || r.refund_id,
           CASE r.state WHEN 'rejected' THEN coalesce(parts.amount_minor, 0) <> 0
           ELSE parts.amount_minor IS DISTINCT FROM r.amount_minor
                OR parts.reserved IS DISTINCT FROM r.amount_minor
                OR coalesce(parts.settled, 0) - coalesce(parts.returned, 0)
                   <> CASE r.state WHEN 'settled' THEN r.amount_minor ELSE 0 END
                -- Each further attempt was an operator's, who is on record for it.
                OR r.attempt <> CASE r.attempt WHEN 0 THEN 0 ELSE (
                       SELECT count(*) FROM operator_actions AS o
                       WHERE o.action IN ('refund_retried', 'refund_settled_by_hand')
                         AND o.details ->> 'refund_key' = r.refund_key::text) END
           END
    FROM refunds AS r
    LEFT JOIN (
        SELECT part.refund_key, sum(part.amount_minor) FILTER (WHERE tried.attempt = 0) AS amount_minor,
               sum(booked.reserved) AS reserved, sum(booked.settled) AS settled,
               sum(booked.returned) AS returned
        FROM refund_parts AS part
        JOIN refunds AS of_part ON of_part.refund_key = part.refund_key
        CROSS JOIN generate_series(0, of_part.attempt) AS tried(attempt)
        LEFT JOIN (
            SELECT cause_id,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_RESERVED}') AS reserved,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_SETTLED}') AS settled,
                   sum(amount_minor) FILTER (WHERE kind = '{PostingKind.REFUND_RETURNED}') AS returned
            FROM postings
            WHERE kind IN ('{PostingKind.REFUND_RESERVED}', '{PostingKind.REFUND_SETTLED}',
                           '{PostingKind.REFUND_RETURNED}')
            GROUP BY cause_id
        ) AS booked ON booked.cause_id = {
    derived_id("'refund_part:' || part.hold_id || " + attempt_suffix("tried"), "part.refund_key")
}
        GROUP BY part.refund_key
    ) AS parts ON parts.refund_key = r.refund_key
"""

# One whose credit has come again was given back in full: to the seller, or off what the seller owes.
_CLAIMS_ADD_UP = f"""
    SELECT c.claim_id::text AS example,
           coalesce(booked.taken, 0) <> c.taken_minor
           OR coalesce(booked.owed, 0) <> c.amount_minor - c.taken_minor
           OR coalesce(booked.fee, 0) <> c.fee_minor
           OR coalesce(booked.given_back, 0) <> CASE WHEN c.returned_at IS NULL THEN 0 ELSE c.amount_minor END
           OR coalesce(booked.fee_restored, 0) <> CASE WHEN c.returned_at IS NULL THEN 0 ELSE c.fee_minor END
           AS broken
    FROM claims AS c
    LEFT JOIN (
        SELECT cause_id,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CLAIM_TAKEN}') AS taken,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.CLAIM_OWED}') AS owed,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_RETURNED}') AS fee,
               sum(amount_minor) FILTER (
                   WHERE kind IN ('{PostingKind.CLAIM_RETURNED}', '{PostingKind.CLAIM_WAIVED}')
               ) AS given_back,
               sum(amount_minor) FILTER (WHERE kind = '{PostingKind.FEE_RESTORED}') AS fee_restored
        FROM postings
        WHERE kind IN ('{PostingKind.CLAIM_TAKEN}', '{PostingKind.CLAIM_OWED}', '{PostingKind.FEE_RETURNED}',
                       '{PostingKind.CLAIM_RETURNED}', '{PostingKind.CLAIM_WAIVED}',
                       '{PostingKind.FEE_RESTORED}')
        GROUP BY cause_id
    ) AS booked ON booked.cause_id = c.claim_id
"""

CHECKS: Final = (
    Check(
        4,
        "refunds_add_up",
        "what was refunded left its holds, once, and the bank as it said",
        _REFUNDS_ADD_UP,
    ),
    Check(4, "claims_add_up", "each claim was taken from its seller or is owed", _CLAIMS_ADD_UP),
)
