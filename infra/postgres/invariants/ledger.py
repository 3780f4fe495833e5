"""The ledger itself: sound, balanced, guarded and chained."""

from typing import Final

from infra.postgres.chain import (
    CHAINED_POSTINGS_ARE_UNCHANGED,
    LINKS_FOLLOW_EACH_OTHER,
    PAST_POSTINGS_ARE_CHAINED,
)
from infra.postgres.invariants.check import Check, derived_id, listed
from ledger.accounts import ASSET_KINDS, SELLER_KINDS, AccountKind
from ledger.postings import ACCOUNTS_OF, MAX_AMOUNT_MINOR, PostingKind

_KINDS: Final = ", ".join(
    f"('{kind}', '{debit}', '{credit}')" for kind, (debit, credit) in sorted(ACCOUNTS_OF.items())
)

_POSTINGS_ARE_SOUND = f"""
    SELECT p.posting_id::text AS example,
           NOT (k.kind IS NOT NULL AND p.debit <> p.credit
                AND p.amount_minor BETWEEN 1 AND {MAX_AMOUNT_MINOR}
                AND p.currency ~ '^[A-Z]{{3}}$') AS broken
    FROM postings AS p
    LEFT JOIN (VALUES {_KINDS}) AS k(kind, debit, credit)
        ON (k.kind, k.debit, k.credit) = (p.kind, p.debit, p.credit)
"""

_LEDGER_SUMS_TO_ZERO = """
    SELECT currency AS example, sum(debit_minor) - sum(credit_minor) <> 0 AS broken
    FROM entries GROUP BY currency
"""

_POSTED_ROWS_ARE_GUARDED = """
    -- tgtype: 8 is DELETE, 16 UPDATE, 32 TRUNCATE; O and A are triggers that fire for us.
    SELECT guarded AS example, NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = to_regclass(guarded) AND tgfoid = to_regproc('refuse_change')
          AND tgenabled IN ('O', 'A') AND tgtype & 56 = 56
    ) AS broken
    FROM unnest(ARRAY['postings', 'chain_links', 'chain_heads']) AS guarded
"""

_SUBTOTALS_EQUAL_POSTINGS = """
    SELECT concat_ws('/', shop_id, nullif(seller_id, ''), currency, kind) AS example,
           stored.total_minor IS DISTINCT FROM summed.total_minor AS broken
    FROM subtotals AS stored
    FULL JOIN (
        SELECT shop_id, seller_id, currency, kind, debit, credit, sum(amount_minor) AS total_minor
        FROM postings WHERE xact < (SELECT horizon FROM seal)
        GROUP BY shop_id, seller_id, currency, kind, debit, credit
    ) AS summed USING (shop_id, seller_id, currency, kind, debit, credit)
"""


def _stored_balance_equals_postings(table: str, column: str, account: AccountKind) -> str:
    sign = 1 if account in ASSET_KINDS else -1
    return f"""
        SELECT concat_ws('/', shop_id, seller_id, currency) AS example,
               coalesce(stored.{column}, 0) <> coalesce(summed.balance, 0) AS broken
        FROM {table} AS stored
        FULL JOIN (
            SELECT shop_id, seller_id, currency, {sign} * sum(debit_minor - credit_minor) AS balance
            FROM entries WHERE account = '{account}' GROUP BY shop_id, seller_id, currency
        ) AS summed USING (shop_id, seller_id, currency)
    """


# Of a shop as a whole, a posting may still name the seller on its other side; of a seller, it always does.
# Cash at the bank is left out: under `announced` funding more may be paid out than has come in. So is
# suspense, which has a check of its own: a debit may come before the credit that it takes back. Fees that
# were paid out count as if they were there: a chargeback after that takes a fee back, which the shop owes.
_NO_BALANCE_IS_NEGATIVE = f"""
    SELECT concat_ws('/', shop_id, owner, currency, account) AS example,
           CASE WHEN account IN ({listed(list(ASSET_KINDS))}) THEN balance ELSE -balance END < 0 AS broken
    FROM (
        SELECT shop_id, CASE WHEN account IN ({listed(list(SELLER_KINDS))}) THEN seller_id END AS owner,
               currency, account, sum(debit_minor - credit_minor) AS balance
        FROM entries
        WHERE account NOT IN ('{AccountKind.BANK_CASH}', '{AccountKind.SUSPENSE}')
          AND NOT (account = '{AccountKind.FEES}' AND kind IN (
              '{PostingKind.FEES_PAYOUT_RESERVED}', '{PostingKind.FEES_PAYOUT_FAILED}',
              '{PostingKind.FEES_PAYOUT_RETURNED}'))
        GROUP BY 1, 2, 3, 4
    ) AS balances
"""

_ONE_POSTING_PER_EFFECT = f"""
    SELECT posting_id::text AS example,
           posting_id <> {derived_id("kind", "cause_id")} AS broken
    FROM postings
"""

CHECKS: Final = (
    Check(
        1,
        "postings_are_sound",
        "every posting has an amount above 0 and the two accounts of its kind",
        _POSTINGS_ARE_SOUND,
    ),
    Check(1, "ledger_sums_to_zero", "debits equal credits in each currency", _LEDGER_SUMS_TO_ZERO),
    Check(
        2,
        "posted_rows_are_guarded",
        "the database refuses to change, delete or truncate postings",
        _POSTED_ROWS_ARE_GUARDED,
    ),
    Check(
        2,
        "chain_links_follow_each_other",
        "every link of the hash chain fixes those before it, and is as it was signed",
        LINKS_FOLLOW_EACH_OTHER,
    ),
    Check(
        2,
        "chained_postings_are_unchanged",
        "no posting in the hash chain was changed or taken out",
        CHAINED_POSTINGS_ARE_UNCHANGED,
    ),
    Check(
        2,
        "past_postings_are_chained",
        "no posting was put into the past behind the hash chain's back",
        PAST_POSTINGS_ARE_CHAINED,
    ),
    Check(
        3,
        "sealed_subtotals_equal_postings",
        "every sealed subtotal equals the sum of its postings",
        _SUBTOTALS_EQUAL_POSTINGS,
    ),
    Check(
        3,
        "available_balances_equal_postings",
        "every withdrawable balance equals the sum of its postings",
        _stored_balance_equals_postings("available_balances", "available_minor", AccountKind.AVAILABLE),
    ),
    Check(
        3,
        "receivables_equal_postings",
        "what every seller owes equals the sum of its postings",
        _stored_balance_equals_postings("receivables", "owed_minor", AccountKind.RECEIVABLE),
    ),
    Check(3, "no_balance_is_negative", "no account is overdrawn", _NO_BALANCE_IS_NEGATIVE),
    Check(
        6,
        "one_posting_per_effect",
        "every posting's id follows from its cause, so it can't be booked twice",
        _ONE_POSTING_PER_EFFECT,
    ),
)
