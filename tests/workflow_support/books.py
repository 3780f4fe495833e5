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
        SELECT shop_id, currency, account FROM entries WHERE account IN ('received', 'suspense')
        GROUP BY shop_id, currency, account HAVING sum(credit_minor) < sum(debit_minor)
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
        WHERE h.state = 'released' AND s.funding = 'confirmed'
          AND (p.funded_at IS NULL OR p.funded_at > h.released_at)
    """,
    "each payment is received once, for its amount": """
        SELECT payment_id FROM payments AS p WHERE state = 'received' AND (
            SELECT array_agg(amount_minor) FROM postings
            WHERE kind = 'payment_received' AND cause_id = p.payment_id
        ) IS DISTINCT FROM ARRAY[p.amount_minor]
    """,
    "money is reserved only for what an accepted password asked for": """
        SELECT p.posting_id FROM postings AS p WHERE p.kind = 'payout_reserved' AND 1 <> (
            SELECT count(*) FROM withdrawals AS w JOIN password_attempts AS a USING (payout_id)
            WHERE w.payout_id = p.cause_id AND a.state = 'accepted' AND w.state = 'accepted'
              AND (w.shop_id, w.seller_id, w.currency, w.amount_minor)
                = (p.shop_id, p.seller_id, p.currency, p.amount_minor)
        )
    """,
    "each accepted withdrawal has one instruction to the bank": """
        SELECT payout_id FROM withdrawals AS w LEFT JOIN transfers AS t USING (payout_id)
        WHERE (w.state = 'accepted') <> (t.payout_id IS NOT NULL)
    """,
    "what is in payout belongs to open transfers": """
        SELECT * FROM (
            SELECT shop_id, seller_id, currency, sum(credit_minor) - sum(debit_minor) AS booked
            FROM entries WHERE account = 'in_payout' GROUP BY shop_id, seller_id, currency
        ) AS e FULL JOIN (
            SELECT shop_id, seller_id, currency, sum(amount_minor) AS open
            FROM withdrawals JOIN transfers AS t USING (payout_id)
            WHERE t.state IN ('ready', 'sending', 'unknown', 'submitted')
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
