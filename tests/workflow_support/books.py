"""An accountant of the tests' own: reads the tables by plain SQL and says what does not add up."""

from typing import Any

from sqlalchemy import Engine, text

# Each returns the rows that break a promise; written without looking at the code that keeps it.
_CHECKS = {
    "the ledger sums to zero in each currency": """
        SELECT currency FROM entries GROUP BY currency HAVING sum(debit_minor) <> sum(credit_minor)
    """,
    "a stored withdrawable balance equals its postings": """
        SELECT * FROM available_balances AS b FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(credit_minor) - sum(debit_minor) AS minor
            FROM entries WHERE account = 'available' GROUP BY shop_id, seller_id, currency
        ) AS p USING (shop_id, seller_id, currency)
        WHERE coalesce(b.available_minor, 0) <> coalesce(p.minor, 0)
    """,
    "no seller's account is negative": """
        SELECT shop_id, seller_id, currency, account FROM entries
        WHERE account IN ('held', 'available', 'in_payout', 'refundable')
        GROUP BY shop_id, seller_id, currency, account HAVING sum(credit_minor) < sum(debit_minor)
    """,
    "no shop has held more than it received": """
        SELECT shop_id, currency, account FROM entries WHERE account IN ('received', 'recovered', 'fees')
          AND kind NOT LIKE 'fees_payout_%'  -- what is paid out may be taken back by a chargeback
        GROUP BY shop_id, currency, account HAVING sum(credit_minor) < sum(debit_minor)
    """,
    "suspense is the credits that nobody claims, less the debits whose credit has not come": """
        SELECT * FROM (
            SELECT currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'suspense' GROUP BY currency
        ) AS e FULL JOIN (
            SELECT currency, sum(minor) AS open FROM (
                SELECT currency, amount_minor AS minor FROM bank_credits
                WHERE payment_id IS NULL AND taken_back_at IS NULL
                UNION ALL
                SELECT currency, -amount_minor FROM bank_debits WHERE credit_id IS NULL
            ) AS lines GROUP BY currency
        ) AS l USING (currency)
        WHERE coalesce(booked, 0) <> coalesce(open, 0)
    """,
    "incoming is what shops announced and banks have not confirmed": """
        SELECT * FROM (
            SELECT shop_id, currency, sum(debit_minor) - sum(credit_minor) AS booked
            FROM entries WHERE account = 'incoming' GROUP BY shop_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, currency, sum(amount_minor) AS open FROM payments
            WHERE state = 'received' AND funded_at IS NULL GROUP BY shop_id, currency
        ) AS p USING (shop_id, currency)
        WHERE coalesce(booked, 0) <> coalesce(open, 0)
    """,
    "refundable is what accepted refunds took and the bank has not paid out": """
        SELECT * FROM (
            SELECT shop_id, seller_id, currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'refundable' GROUP BY shop_id, seller_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(part.amount_minor) AS open
            FROM refunds AS r JOIN refund_parts AS part USING (refund_key)
            WHERE state NOT IN ('settled', 'rejected') GROUP BY shop_id, seller_id, currency
        ) AS r USING (shop_id, seller_id, currency)
        WHERE coalesce(booked, 0) <> coalesce(open, 0)
    """,
    "what sellers owe is kept as it is booked": """
        SELECT * FROM receivables AS b FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(debit_minor) - sum(credit_minor) AS minor
            FROM entries WHERE account = 'receivable' GROUP BY shop_id, seller_id, currency
        ) AS p USING (shop_id, seller_id, currency)
        WHERE coalesce(b.owed_minor, 0) <> coalesce(p.minor, 0)
    """,
    "what was recovered is what is claimed": """
        SELECT * FROM (
            SELECT shop_id, currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'recovered' AND kind NOT LIKE 'recovered_payout_%'
            GROUP BY shop_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, currency, sum(amount_minor + fee_minor) AS claimed FROM claims
            WHERE returned_at IS NULL GROUP BY shop_id, currency
        ) AS c USING (shop_id, currency)
        WHERE coalesce(booked, 0) <> coalesce(claimed, 0)
    """,
    "every cent of a hold has one fate": """
        SELECT h.hold_id FROM holds AS h
        LEFT JOIN (
            SELECT hold_id, sum(amount_minor) AS minor FROM refund_parts GROUP BY hold_id
        ) AS refunded USING (hold_id)
        LEFT JOIN (
            SELECT cause_id AS hold_id, sum(amount_minor) AS minor FROM postings
            WHERE kind IN ('released', 'fee_taken') GROUP BY cause_id
        ) AS released USING (hold_id)
        WHERE refunded_minor <> coalesce(refunded.minor, 0)
            OR CASE state WHEN 'released' THEN amount_minor - refunded_minor ELSE 0 END
               <> coalesce(released.minor, 0)
            OR (state = 'refunded') <> (refunded_minor = amount_minor)
    """,
    "a hold is frozen while a dispute has it, and only then": """
        SELECT h.hold_id FROM holds AS h WHERE state IN ('held', 'frozen') AND (state = 'frozen') <> EXISTS (
            SELECT FROM dispute_holds AS f JOIN disputes AS d USING (dispute_key)
            WHERE f.hold_id = h.hold_id AND d.state = 'open'
        )
    """,
    "held in the ledger equals the open holds": """
        SELECT * FROM (
            SELECT shop_id, seller_id, currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'held' GROUP BY shop_id, seller_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(amount_minor - refunded_minor) AS open
            FROM holds WHERE state IN ('held', 'frozen') GROUP BY shop_id, seller_id, currency
        ) AS h USING (shop_id, seller_id, currency)
        WHERE coalesce(booked, 0) <> coalesce(open, 0)
    """,
    "no hold was released early": "SELECT hold_id FROM holds WHERE released_at < release_at",
    "no unconfirmed payment was released, unless the shop's word is enough": """
        SELECT h.hold_id FROM holds AS h
        JOIN payments AS p USING (payment_id) JOIN shops AS s ON s.shop_id = h.shop_id
        WHERE h.state = 'released' AND s.funding = 'confirmed' AND NOT EXISTS (
            -- Asked of the ledger: the bank may have taken the credit back since.
            SELECT FROM postings AS f JOIN bank_credits AS c ON c.credit_id = f.cause_id
            WHERE f.kind = 'payment_funded' AND f.booked_at <= h.released_at
              AND f.shop_id = p.shop_id
              AND (c.bank_reference = p.bank_reference OR c.assigned_payment_id = p.payment_id)
        )
    """,
    "each payment is received once, for its amount": """
        SELECT payment_id FROM payments AS p LEFT JOIN (
            SELECT cause_id AS payment_id, array_agg(amount_minor) AS amounts FROM postings
            WHERE kind = 'payment_received' GROUP BY cause_id
        ) AS received USING (payment_id)
        WHERE state = 'received' AND amounts IS DISTINCT FROM ARRAY[p.amount_minor]
    """,
    "money is reserved only for what an accepted password asked for": """
        SELECT p.posting_id FROM postings AS p WHERE p.kind = 'payout_reserved' AND 1 <> (
            SELECT count(*) FROM withdrawals AS w LEFT JOIN password_attempts AS a USING (payout_id)
            WHERE w.payout_id = p.cause_id AND (a.state = 'accepted' OR w.adopted_at IS NOT NULL)
              AND (w.state IN ('accepted', 'pending') OR w.pending_reason IS NOT NULL)
              AND (w.shop_id, w.seller_id, w.currency, w.amount_minor)
                = (p.shop_id, p.seller_id, p.currency, p.amount_minor)
        )
    """,
    "each accepted withdrawal has one instruction to the bank": """
        SELECT payout_id FROM withdrawals AS w LEFT JOIN transfers AS t USING (payout_id)
        WHERE (w.state = 'accepted') <> (t.payout_id IS NOT NULL)
    """,
    "money that was set aside comes back exactly where a waiting withdrawal was rejected": """
        SELECT w.payout_id FROM withdrawals AS w
        LEFT JOIN postings AS p ON p.cause_id = w.payout_id AND p.kind = 'payout_cancelled'
        WHERE (w.state = 'rejected' AND w.pending_reason IS NOT NULL) <> (p.posting_id IS NOT NULL)
           OR p.amount_minor <> w.amount_minor
    """,
    "what is in payout belongs to open transfers and to what waits": """
        SELECT * FROM (
            SELECT shop_id, seller_id, currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'in_payout' GROUP BY shop_id, seller_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(amount_minor) AS open
            FROM withdrawals AS w LEFT JOIN transfers AS t USING (payout_id)
            WHERE t.state IN ('ready', 'sending', 'unknown', 'submitted') OR w.state = 'pending'
            GROUP BY shop_id, seller_id, currency
        ) AS t USING (shop_id, seller_id, currency)
        WHERE coalesce(booked, 0) <> coalesce(open, 0)
    """,
}


def what_is_wrong(engine: Engine) -> dict[str, list[Any]]:
    """Return broken promises with the rows that break them; empty when the books are right."""
    with engine.connect() as connection:
        found = {name: list(connection.execute(text(check))) for name, check in _CHECKS.items()}
    return {name: rows for name, rows in found.items() if rows}


def balance(engine: Engine, shop: str, seller: str = "", *, currency: str = "CNY") -> dict[str, int]:
    """Return an owner's accounts that are not zero, credits less debits, by a full scan of the entries."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT account, sum(credit_minor) - sum(debit_minor) AS minor FROM entries
                WHERE (shop_id, seller_id, currency) = (:shop, :seller, :currency)
                GROUP BY account HAVING sum(credit_minor) <> sum(debit_minor)
            """),
            {"shop": shop, "seller": seller, "currency": currency},
        )
        return {row.account: int(row.minor) for row in rows}
