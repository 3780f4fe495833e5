"""Nothing rests: whatever could go on has gone on."""

from typing import Final

from infra.postgres.invariants.check import BANK_BOUND, BOUND, Check

_RECEIVED_PAYMENTS_ARE_HELD = f"""
    SELECT p.shop_id || '/' || p.order_id AS example,
           p.received_at < clock_timestamp() - {BOUND}
           AND NOT EXISTS (SELECT FROM holds AS h WHERE h.payment_id = p.payment_id) AS broken
    FROM payments AS p WHERE p.state = 'received'
"""

# The clock starts again where a hold became free to go only after its time.
_DUE_HOLDS_ARE_RELEASED = f"""
    SELECT h.hold_id::text AS example,
           greatest(h.release_at, h.rearmed_at, p.funded_at, freed.resolved_at)
               < clock_timestamp() - {BOUND} AS broken
    FROM holds AS h
    JOIN payments AS p ON p.payment_id = h.payment_id
    JOIN shops AS s ON s.shop_id = h.shop_id
    LEFT JOIN LATERAL (
        SELECT max(d.resolved_at) AS resolved_at
        FROM dispute_holds AS f JOIN disputes AS d ON d.dispute_key = f.dispute_key
        WHERE f.hold_id = h.hold_id
    ) AS freed ON true
    WHERE h.state = 'held'
      AND (s.funding = 'announced' OR p.funded_at IS NOT NULL) AND p.charged_back_at IS NULL
"""

_PASSWORDS_ARE_DECIDED = f"""
    SELECT attempt_id::text AS example,
           coalesce(counted_at, requested_at) < clock_timestamp() - {BOUND} AS broken
    FROM password_attempts WHERE state IN ('waiting', 'counted')
    UNION ALL
    SELECT w.shop_id || '/' || w.withdrawal_id,
           NOT EXISTS (SELECT FROM password_attempts AS a
                       WHERE a.payout_id = w.payout_id AND a.state IN ('waiting', 'counted'))
    FROM withdrawals AS w WHERE w.state = 'checking'
"""

# Those whose cooling-off is over go on by themselves. Those over a limit wait for people, who see them in
# `holdfast withdrawal list` and `holdfast doctor`; so do those that somebody has proposed to reject.
_COOLED_OFF_WITHDRAWALS_GO_ON = f"""
    SELECT w.shop_id || '/' || w.withdrawal_id AS example,
           w.pending_until < clock_timestamp() - {BOUND}
           AND NOT EXISTS (SELECT FROM withdrawal_reviews AS r
                           WHERE r.payout_id = w.payout_id AND r.decided_at IS NULL) AS broken
    FROM withdrawals AS w WHERE w.state = 'pending' AND w.pending_reason = 'cooling_off'
"""

# What is ready is not handed over while an operator has paused it; when payouts resume, the clock starts.
_IS_PAUSED: Final = "EXISTS (SELECT FROM payout_pauses AS p WHERE p.shop_id IN ('*', {shop}))"

_TRANSFERS_ARE_ASKED_FOR = f"""
    SELECT t.end_to_end_id AS example,
           t.touched_at < clock_timestamp()
               - CASE WHEN t.state IN ('submitted', 'unknown') THEN {BANK_BOUND} ELSE {BOUND} END
           AND NOT (t.state = 'ready' AND {_IS_PAUSED.format(shop="o.shop_id")}) AS broken
    FROM transfers AS t LEFT JOIN payouts AS o ON o.payout_id = t.payout_id
    WHERE t.state IN ('ready', 'sending', 'unknown', 'submitted')
    UNION ALL
    SELECT r.end_to_end_id, greatest(r.touched_at, CASE r.state WHEN 'waiting' THEN p.funded_at END)
               < clock_timestamp()
               - CASE WHEN r.state IN ('submitted', 'unknown') THEN {BANK_BOUND} ELSE {BOUND} END
           AND NOT (r.state IN ('waiting', 'ready') AND {_IS_PAUSED.format(shop="r.shop_id")})
    FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
    WHERE r.state IN ('ready', 'sending', 'unknown', 'submitted')
       OR (r.state = 'waiting' AND p.funded_at IS NOT NULL)
"""

# A released hold has one standing claim while the bank has its money, and none once the credit came again.
_CHARGE_BACKS_ARE_CLAIMED = f"""
    SELECT 'hold ' || h.hold_id AS example,
           CASE WHEN p.funded_at IS NULL
               THEN p.charged_back_at < clock_timestamp() - {BOUND} AND standing.claims <> 1
               ELSE p.funded_at < clock_timestamp() - {BOUND} AND standing.claims <> 0
           END AS broken
    FROM payments AS p
    JOIN holds AS h ON h.payment_id = p.payment_id AND h.state = 'released'
    CROSS JOIN LATERAL (
        SELECT count(*) AS claims FROM claims AS c
        WHERE c.hold_id = h.hold_id AND c.cause = 'chargeback' AND c.returned_at IS NULL
    ) AS standing
    WHERE EXISTS (SELECT FROM bank_debits AS d WHERE d.payment_id = p.payment_id)
"""

CHECKS: Final = (
    Check(9, "received_payments_are_held", "no payment rests without its holds", _RECEIVED_PAYMENTS_ARE_HELD),
    Check(9, "due_holds_are_released", "no hold rests that may be released", _DUE_HOLDS_ARE_RELEASED),
    Check(9, "passwords_are_decided", "no password check rests undecided", _PASSWORDS_ARE_DECIDED),
    Check(
        9,
        "cooled_off_withdrawals_go_on",
        "no withdrawal rests whose cooling-off is over",
        _COOLED_OFF_WITHDRAWALS_GO_ON,
    ),
    Check(
        9,
        "transfers_are_asked_for",
        "no payout or refund rests without the bank being asked",
        _TRANSFERS_ARE_ASKED_FOR,
    ),
    Check(
        9,
        "charge_backs_are_claimed",
        "what was released of a charged back payment is claimed",
        _CHARGE_BACKS_ARE_CLAIMED,
    ),
)
