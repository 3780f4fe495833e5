"""One effect per business key, and every effect from an authentic event."""

from typing import Final

from infra.postgres.invariants.check import Check

_ONE_EFFECT_PER_BUSINESS_KEY = """
    SELECT 'order ' || shop_id || '/' || order_id AS example, count(*) > 1 AS broken
    FROM payments GROUP BY shop_id, order_id
    UNION ALL
    SELECT 'bank reference ' || shop_id || '/' || bank_reference, count(*) > 1
    FROM payments WHERE state = 'received' GROUP BY shop_id, bank_reference
    UNION ALL
    SELECT 'withdrawal ' || shop_id || '/' || withdrawal_id, count(*) > 1
    FROM withdrawals GROUP BY shop_id, withdrawal_id
    UNION ALL
    SELECT 'statement line ' || bank_id || '/' || statement_line, count(*) > 1
    FROM bank_credits GROUP BY bank_id, statement_line
    UNION ALL
    SELECT 'debit of statement line ' || bank_id || '/' || statement_line, count(*) > 1
    FROM bank_debits GROUP BY bank_id, statement_line
    UNION ALL
    SELECT 'dispute ' || shop_id || '/' || dispute_id, count(*) > 1
    FROM disputes GROUP BY shop_id, dispute_id
    UNION ALL
    SELECT origin || ' refund ' || shop_id || '/' || refund_id, count(*) > 1
    FROM refunds GROUP BY shop_id, origin, refund_id
    UNION ALL
    SELECT 'hold ' || payment_id || '/' || seller_id, count(*) > 1
    FROM holds GROUP BY payment_id, seller_id
"""

_EFFECTS_COME_FROM_EVENTS = """
    SELECT 'order ' || p.shop_id || '/' || p.order_id AS example,
           (i.type, i.content_hash) IS DISTINCT FROM ('order.paid', p.content_hash) AS broken
    FROM payments AS p
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || p.shop_id, p.event_id)
    UNION ALL
    SELECT 'withdrawal ' || w.shop_id || '/' || w.withdrawal_id,
           -- One that was adopted was said by an operator, which has a check of its own.
           w.adopted_at IS NULL
           AND (i.type, i.content_hash) IS DISTINCT FROM ('withdrawal.requested', w.content_hash)
    FROM withdrawals AS w
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || w.shop_id, w.event_id)
    UNION ALL
    SELECT 'dispute ' || d.shop_id || '/' || d.dispute_id,
           (i.type, i.content_hash) IS DISTINCT FROM ('dispute.opened', d.content_hash)
    FROM disputes AS d
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || d.shop_id, d.event_id)
    UNION ALL
    SELECT r.origin || ' refund ' || r.shop_id || '/' || r.refund_id,
           (i.type, i.content_hash) IS DISTINCT FROM (
               CASE r.origin WHEN 'dispute' THEN 'dispute.resolved' ELSE 'refund.requested' END,
               r.content_hash)
           AND NOT EXISTS (SELECT FROM operator_actions AS o
                           WHERE o.action = 'refund_adopted'
                             AND o.details ->> 'refund_key' = r.refund_key::text)
    FROM refunds AS r
    LEFT JOIN inbox AS i ON (i.source, i.event_id) = ('/shops/' || r.shop_id, r.event_id)
"""

CHECKS: Final = (
    Check(
        6,
        "one_effect_per_business_key",
        "no order, hold, withdrawal, dispute, refund or statement line twice",
        _ONE_EFFECT_PER_BUSINESS_KEY,
    ),
    Check(
        6,
        "effects_come_from_events",
        "every effect has the authentic event with exactly its content",
        _EFFECTS_COME_FROM_EVENTS,
    ),
)
