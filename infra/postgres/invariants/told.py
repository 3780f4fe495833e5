"""What was told: every fact has its event, every event its answer, and all is published."""

from typing import Final

from infra.postgres.invariants.check import BOUND, Check, attempt_suffix, derived_id, key_id

_WITHDRAWAL_ANSWER: Final = key_id("withdrawal_answer", "shop_id", "withdrawal_id")
_WITHDRAWAL_ANSWER_OF_W: Final = key_id("withdrawal_answer", "w.shop_id", "w.withdrawal_id")

_EVERY_FACT_HAS_ITS_EVENT = f"""
    WITH facts AS (
        SELECT p.shop_id, {key_id("order_answer", "p.shop_id", "p.order_id")} AS event_id,
               CASE p.state WHEN 'rejected' THEN 'order.rejected' ELSE 'order.held' END AS type
        FROM payments AS p
        WHERE p.state = 'rejected' OR EXISTS (SELECT FROM holds AS h WHERE h.payment_id = p.payment_id)
        UNION ALL
        SELECT p.shop_id, {derived_id("'order_funded'", "c.credit_id")}, 'order.funded'
        FROM bank_credits AS c JOIN payments AS p ON p.payment_id = c.payment_id
        UNION ALL
        SELECT shop_id, {derived_id("'hold_released'", "hold_id")}, 'hold.released'
        FROM holds WHERE state = 'released'
        UNION ALL
        SELECT shop_id, {_WITHDRAWAL_ANSWER}, 'withdrawal.' || state
        FROM withdrawals WHERE state IN ('accepted', 'rejected') AND adopted_at IS NULL
        UNION ALL
        -- Adopted after a refusal that was told: that stays, and the other is told beside it.
        SELECT w.shop_id, CASE WHEN told.type = 'withdrawal.rejected'
                               THEN {derived_id("'withdrawal_adopted'", "told.event_id")}
                               ELSE {_WITHDRAWAL_ANSWER_OF_W} END, 'withdrawal.accepted'
        FROM withdrawals AS w LEFT JOIN events AS told ON told.event_id = {_WITHDRAWAL_ANSWER_OF_W}
        WHERE w.adopted_at IS NOT NULL
        UNION ALL
        SELECT shop_id,
               {derived_id("'withdrawal_pending:' || pending_reason", _WITHDRAWAL_ANSWER)},
               'withdrawal.pending'
        FROM withdrawals WHERE pending_reason IS NOT NULL
        UNION ALL
        SELECT w.shop_id, {derived_id("said.type", "t.payout_id")}, said.type
        FROM transfers AS t
        JOIN withdrawals AS w ON w.payout_id = t.payout_id
        JOIN (VALUES ('submitted', 'payout.submitted'), ('settled', 'payout.submitted'),
                     ('settled', 'payout.settled'), ('failed', 'payout.failed'),
                     ('returned', 'payout.submitted'), ('returned', 'payout.settled'),
                     ('returned', 'payout.returned')) AS said(state, type) ON said.state = t.state
        UNION ALL
        SELECT shop_id, {key_id("answer:dispute.opened", "shop_id", "dispute_id")},
               CASE state WHEN 'rejected' THEN 'dispute.rejected' ELSE 'dispute.accepted' END
        FROM disputes
        UNION ALL
        SELECT shop_id, {key_id("answer:dispute.resolved", "shop_id", "dispute_id")}, 'dispute.accepted'
        FROM disputes WHERE state = 'resolved'
        UNION ALL
        SELECT d.shop_id, {derived_id("'hold_frozen:' || f.hold_id", "f.dispute_key")}, 'hold.frozen'
        FROM dispute_holds AS f JOIN disputes AS d ON d.dispute_key = f.dispute_key
        UNION ALL
        SELECT shop_id, {key_id("answer:refund.requested", "shop_id", "refund_id")},
               CASE state WHEN 'rejected' THEN 'refund.rejected' ELSE 'refund.accepted' END
        FROM refunds WHERE origin = 'refund'
        UNION ALL
        SELECT shop_id, {derived_id("'refund.settled:settled' || " + attempt_suffix("r"), "refund_key")},
               'refund.settled'
        FROM refunds AS r WHERE state = 'settled'
        UNION ALL
        SELECT r.shop_id, {derived_id("'hold_refunded:' || p.hold_id", "p.refund_key")}, 'hold.refunded'
        FROM refund_parts AS p JOIN refunds AS r ON r.refund_key = p.refund_key
    )
    SELECT f.type || ' ' || f.event_id AS example,
           (e.shop_id, e.type) IS DISTINCT FROM (f.shop_id, f.type) AS broken
    FROM facts AS f LEFT JOIN events AS e ON e.event_id = f.event_id
"""

_EVERY_EVENT_HAS_ITS_ANSWER = f"""
    SELECT i.source || ' ' || i.event_id AS example, e.event_id IS NULL
           AND i.received_at < clock_timestamp() - {BOUND}
           -- Told that it waits; that it does not rest for ever is another check.
           AND NOT (i.type = 'withdrawal.requested' AND EXISTS (
               SELECT FROM events AS told
               WHERE told.event_id IN (
                   {derived_id("'withdrawal_pending:over_limit'", "i.answer_id")},
                   {derived_id("'withdrawal_pending:cooling_off'", "i.answer_id")})
           )) AS broken
    FROM inbox AS i LEFT JOIN events AS e ON e.event_id = i.answer_id
    WHERE i.answer_id IS NOT NULL
"""

_OUTBOX_ROWS_ARE_WHOLE = """
    SELECT 'outbox ' || o.outbox_id AS example, e.event_id IS NULL
           OR (e.shop_id, e.type) <> (o.shop_id, o.type) AS broken
    FROM outbox AS o
    CROSS JOIN LATERAL unnest(o.event_ids) AS said(event_id)
    LEFT JOIN events AS e ON e.event_id = said.event_id
"""

# A row that the broker refuses, since a shop's queue is full, say, is tried again within a minute. What
# nobody has tried for so much longer, nobody is going to.
_OUTBOX_IS_PUBLISHED = f"""
    SELECT 'outbox ' || outbox_id AS example,
           published_at IS NULL AND next_attempt_at < clock_timestamp() - {BOUND} AS broken
    FROM outbox
"""

CHECKS: Final = (
    Check(8, "every_fact_has_its_event", "what happened was told to the shop", _EVERY_FACT_HAS_ITS_EVENT),
    Check(8, "outbox_rows_are_whole", "every event that must be published exists", _OUTBOX_ROWS_ARE_WHOLE),
    Check(
        8,
        "outbox_is_published",
        "no message waits in the outbox without being tried again",
        _OUTBOX_IS_PUBLISHED,
    ),
    Check(
        10,
        "every_event_has_its_answer",
        "every authentic event was applied or rejected, and answered",
        _EVERY_EVENT_HAS_ITS_ANSWER,
    ),
)
