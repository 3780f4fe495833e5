"""The protection period: nothing leaves its hold early, frozen, or without the bank's credit."""

from typing import Final

from infra.postgres.invariants.check import OVERLAP, Check
from ledger.postings import PostingKind

_PROTECTION_PERIOD_IS_EXACT = """
    SELECT h.hold_id::text AS example,
           NOT (h.protection_days BETWEEN 3 AND 7
                AND h.protection_days = p.protection_days
                AND h.day_seconds = d.protection_day_seconds
                AND h.release_at = h.held_at
                    + make_interval(secs => h.protection_days * d.protection_day_seconds)) AS broken
    FROM holds AS h
    LEFT JOIN payments AS p ON p.payment_id = h.payment_id
    LEFT JOIN deployment AS d ON d.deployment_id = 1
"""

# Both the hold's own time and the ledger's: two witnesses.
_NO_HOLD_RELEASED_EARLY = f"""
    SELECT h.hold_id::text AS example,
           h.released_at < h.release_at OR coalesce(p.booked_at < h.release_at, false)
           OR coalesce(p.booked_at <> h.released_at, false) AS broken
    FROM holds AS h
    LEFT JOIN postings AS p ON p.cause_id = h.hold_id AND p.kind = '{PostingKind.RELEASED}'
    WHERE h.state = 'released'
"""

# The credit's own posting is the witness: a credit may be taken back later, which unmarks the payment.
# A shop's terms may have changed since; what counted at the release is in the record of changes.
_NO_RELEASE_WITHOUT_CREDIT = f"""
    WITH credited AS (
        SELECT p.shop_id, coalesce(a.bank_reference, c.bank_reference) AS bank_reference,
               min(p.booked_at) AS since
        FROM postings AS p
        JOIN bank_credits AS c ON c.credit_id = p.cause_id
        LEFT JOIN payments AS a ON a.payment_id = c.assigned_payment_id
        WHERE p.kind = '{PostingKind.PAYMENT_FUNDED}'
        GROUP BY 1, 2
    ),
    changes AS (
        SELECT subject AS shop_id, acted_at, details -> 'before' ->> 'funding' AS old,
               details -> 'after' ->> 'funding' AS new
        FROM operator_actions WHERE action = 'shop_terms_changed'
    )
    SELECT h.hold_id::text AS example,
           CASE WHEN credited.since <= h.released_at + {OVERLAP} THEN false
           ELSE coalesce(
                    (SELECT old FROM changes
                     WHERE changes.shop_id = h.shop_id AND acted_at > h.released_at
                     ORDER BY acted_at LIMIT 1),
                    s.funding) <> 'announced'
                AND NOT EXISTS (
                    SELECT FROM changes
                    WHERE changes.shop_id = h.shop_id AND new = 'announced'
                      AND acted_at BETWEEN h.released_at AND h.released_at + {OVERLAP})
           END AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    JOIN shops AS s ON s.shop_id = h.shop_id
    LEFT JOIN credited ON (credited.shop_id, credited.bank_reference) = (p.shop_id, p.bank_reference)
    WHERE h.state = 'released'
"""

_NO_HOLD_RELEASED_WHILE_FROZEN = f"""
    SELECT h.hold_id::text AS example,
           h.state = 'released' AND h.released_at > d.opened_at + {OVERLAP}
           AND coalesce(h.released_at < d.resolved_at - {OVERLAP}, true) AS broken
    FROM dispute_holds AS f
    JOIN disputes AS d ON d.dispute_key = f.dispute_key
    JOIN holds AS h ON h.hold_id = f.hold_id
"""

_FROZEN_HOLDS_HAVE_THEIR_DISPUTE = """
    SELECT h.hold_id::text AS example, (h.state = 'frozen') <> (open_.hold_id IS NOT NULL) AS broken
    FROM holds AS h
    LEFT JOIN (
        SELECT DISTINCT f.hold_id FROM dispute_holds AS f
        JOIN disputes AS d ON d.dispute_key = f.dispute_key WHERE d.state = 'open'
    ) AS open_ ON open_.hold_id = h.hold_id
    -- One that was refunded in full takes part in nothing more.
    WHERE h.state <> 'refunded' AND (h.state = 'frozen' OR open_.hold_id IS NOT NULL)
"""

# Counted, not ordered: a debit and the credit that makes it good may be booked in one step, at one moment.
_NO_RELEASE_AFTER_CHARGE_BACK = f"""
    SELECT h.hold_id::text AS example,
           taken.times > 0 AND taken.times >= (
               SELECT count(*) FROM bank_credits AS c
               JOIN postings AS given ON given.cause_id = c.credit_id
                    AND given.kind = '{PostingKind.PAYMENT_FUNDED}' AND given.shop_id = h.shop_id
               WHERE (c.bank_reference = p.bank_reference OR c.assigned_payment_id = p.payment_id)
                 AND given.booked_at <= h.released_at + {OVERLAP}
           ) AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS times FROM bank_debits AS d
        JOIN postings AS lost ON lost.cause_id = d.debit_id AND lost.kind = '{PostingKind.PAYMENT_UNFUNDED}'
        WHERE d.payment_id = p.payment_id AND lost.booked_at < h.released_at - {OVERLAP}
    ) AS taken
    WHERE h.state = 'released' AND EXISTS (SELECT FROM bank_debits AS d WHERE d.payment_id = p.payment_id)
"""

CHECKS: Final = (
    Check(
        5,
        "protection_period_is_exact",
        "every hold ends 3 to 7 whole days of the stored length after it began",
        _PROTECTION_PERIOD_IS_EXACT,
    ),
    Check(5, "no_hold_released_early", "no money left its hold before its time", _NO_HOLD_RELEASED_EARLY),
    Check(
        5,
        "no_hold_released_while_frozen",
        "no money left its hold while a dispute had it",
        _NO_HOLD_RELEASED_WHILE_FROZEN,
    ),
    Check(
        5,
        "frozen_holds_have_their_dispute",
        "a hold is frozen exactly while a dispute of it is open",
        _FROZEN_HOLDS_HAVE_THEIR_DISPUTE,
    ),
    Check(
        5,
        "no_release_without_credit",
        "under confirmed funding, nothing was released before the bank's credit",
        _NO_RELEASE_WITHOUT_CREDIT,
    ),
    Check(
        5,
        "no_release_after_charge_back",
        "nothing was released while the bank had taken its credit back",
        _NO_RELEASE_AFTER_CHARGE_BACK,
    ),
)
