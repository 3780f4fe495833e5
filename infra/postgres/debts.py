"""
What sellers owe: one locked row a seller and currency, equal to the postings of `receivable`.

Whoever changes both locks debts before withdrawable balances, each in key order.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from infra.postgres.ledger_store import SellerCurrency, key_arrays


def ensure_debts(connection: Connection, keys: Sequence[SellerCurrency]) -> None:
    connection.execute(
        text("""
            INSERT INTO receivables (shop_id, seller_id, currency, owed_minor)
            SELECT shop_id, seller_id, currency, 0 FROM unnest(
                CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[])
            ) AS given(shop_id, seller_id, currency)
            ORDER BY shop_id, seller_id, currency ON CONFLICT DO NOTHING
        """),
        key_arrays(keys),
    )


def lock_debts(connection: Connection, keys: Sequence[SellerCurrency]) -> dict[SellerCurrency, int]:
    """Lock and read what sellers owe, in key order; one who owes nothing has no row."""
    found = connection.execute(
        text("""
            SELECT shop_id, seller_id, currency, owed_minor FROM receivables
            WHERE (shop_id, seller_id, currency) IN (
                SELECT * FROM unnest(
                    CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[])
                )
            )
            ORDER BY shop_id, seller_id, currency FOR UPDATE
        """),
        key_arrays(keys),
    )
    return {SellerCurrency(row.shop_id, row.seller_id, row.currency): int(row.owed_minor) for row in found}


def write_debts(connection: Connection, debts: Mapping[SellerCurrency, int]) -> None:
    connection.execute(
        text("""
            UPDATE receivables SET owed_minor = given.owed
            FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[]),
                        CAST(:owed AS numeric[])) AS given(shop_id, seller_id, currency, owed)
            WHERE (receivables.shop_id, receivables.seller_id, receivables.currency)
                = (given.shop_id, given.seller_id, given.currency)
        """),
        {**key_arrays(list(debts)), "owed": list(debts.values())},
    )
