"""
Statements: what every account held at one time, each movement, and what it held at another.

By the time of booking, read from the postings themselves in one snapshot, so that opening plus movements
is the closing, and the closing of one period the opening of the next.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from ledger.accounts import ASSET_KINDS, SELLER_KINDS, AccountKind
from ledger.ids import refund_part_id

# Seller, account, currency.
AccountKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Movement:
    """One line of one account; minor units, positive where the balance grows."""

    booked_at: datetime
    kind: str
    amount_minor: int
    balance_minor: int
    order_id: str | None
    withdrawal_id: str | None
    posting_id: UUID


@dataclass(frozen=True, slots=True)
class AccountStatement:
    """One account over a period; `seller_id` is empty for an account of the shop as a whole."""

    seller_id: str
    account: str
    currency: str
    opening_minor: int
    movements: tuple[Movement, ...]
    closing_minor: int


def read_statement(
    connection: Connection, shop_id: str, seller_id: str | None, *, start: datetime, end: datetime
) -> list[AccountStatement]:
    """
    Return the accounts of a shop, or of one of its sellers, from `start` (included) to `end` (excluded).

    An account that never moved is left out. Call it in one snapshot. A transaction takes its time of
    booking when it begins and lasts half a minute at most, so a period is final that long after its end.
    """
    openings = read_balances_at(connection, shop_id, seller_id, at=start)
    lines: dict[AccountKey, list[Movement]] = defaultdict(list)
    running = defaultdict(int, openings)
    rows = connection.execute(
        text("""
            SELECT posting_id, kind, cause_id, seller_id, currency, debit, credit, amount_minor, booked_at
            FROM postings
            WHERE shop_id = :shop AND booked_at >= :start AND booked_at < :end
              AND (CAST(:seller AS text) IS NULL OR seller_id = :seller)
            ORDER BY booked_at, posting_id
        """),
        {"shop": shop_id, "seller": seller_id, "start": start, "end": end},
    ).all()
    causes = _find_causes(connection, shop_id, {row.cause_id for row in rows})
    for row in rows:
        order_id, withdrawal_id = causes.get(row.cause_id, (None, None))
        for account, sign in ((row.debit, -1), (row.credit, 1)):
            key = _key(row.seller_id, account, row.currency)
            if seller_id is not None and not key[0]:
                continue
            change = sign * _direction(account) * row.amount_minor
            running[key] += change
            lines[key].append(
                Movement(
                    row.booked_at, row.kind, change, running[key], order_id, withdrawal_id, row.posting_id
                )
            )
    return [
        AccountStatement(*key, openings.get(key, 0), tuple(lines.get(key, ())), running[key])
        for key in sorted(set(openings) | set(lines))
    ]


def read_balances_at(
    connection: Connection, shop_id: str, seller_id: str | None, *, at: datetime
) -> dict[AccountKey, int]:
    """Return each account's balance by what was booked before `at`; keys are (seller, account, currency)."""
    rows = connection.execute(
        text("""
            SELECT seller_id, account, currency, sum(credit_minor) - sum(debit_minor) AS net
            FROM entries
            WHERE shop_id = :shop AND booked_at < :at
              AND (CAST(:seller AS text) IS NULL OR seller_id = :seller)
            GROUP BY seller_id, account, currency
        """),
        {"shop": shop_id, "seller": seller_id, "at": at},
    )
    balances: dict[AccountKey, int] = defaultdict(int)
    for row in rows:
        key = _key(row.seller_id, row.account, row.currency)
        if seller_id is None or key[0]:
            balances[key] += _direction(row.account) * int(row.net)
    return dict(balances)


def _key(seller_id: str, account: str, currency: str) -> AccountKey:
    """A shop's account is one account, whichever seller a posting on it was about."""
    return (seller_id if AccountKind(account) in SELLER_KINDS else "", account, currency)


def _direction(account: str) -> int:
    return -1 if AccountKind(account) in ASSET_KINDS else 1


def _find_causes(
    connection: Connection, shop_id: str, cause_ids: set[UUID]
) -> Mapping[UUID, tuple[str | None, str | None]]:
    """Name the order or withdrawal behind each posting's cause."""
    ids = list(cause_ids)
    causes: dict[UUID, tuple[str | None, str | None]] = {}
    for statement in _CAUSES:
        for row in connection.execute(text(statement), {"shop": shop_id, "ids": ids}):
            causes[row.cause_id] = (row.order_id, row.withdrawal_id)
    for row in connection.execute(text(_REFUND_PARTS), {"shop": shop_id}):
        # A part's cause is computed, so the database can't be asked for it the other way round.
        cause_id = refund_part_id(row.refund_key, row.hold_id, row.attempt)
        if cause_id in cause_ids:
            causes[cause_id] = (row.order_id, None)
    return causes


_CAUSES: Sequence[str] = (
    """
    SELECT payment_id AS cause_id, order_id, NULL AS withdrawal_id FROM payments
    WHERE shop_id = :shop AND payment_id = ANY(CAST(:ids AS uuid[]))
    """,
    """
    SELECT hold_id AS cause_id, order_id, NULL AS withdrawal_id FROM holds
    WHERE shop_id = :shop AND hold_id = ANY(CAST(:ids AS uuid[]))
    """,
    """
    SELECT payout_id AS cause_id, NULL AS order_id, reference AS withdrawal_id FROM payouts
    WHERE shop_id = :shop AND payout_id = ANY(CAST(:ids AS uuid[]))
    """,
    """
    SELECT c.credit_id AS cause_id, p.order_id, NULL AS withdrawal_id
    FROM bank_credits AS c JOIN payments AS p
      ON p.bank_reference = c.bank_reference AND p.shop_id = :shop AND p.state = 'received'
    WHERE c.credit_id = ANY(CAST(:ids AS uuid[]))
    """,
    """
    SELECT d.debit_id AS cause_id, p.order_id, NULL AS withdrawal_id
    FROM bank_debits AS d JOIN payments AS p ON p.payment_id = d.payment_id AND p.shop_id = :shop
    WHERE d.debit_id = ANY(CAST(:ids AS uuid[]))
    """,
    """
    SELECT c.claim_id AS cause_id, h.order_id, NULL AS withdrawal_id
    FROM claims AS c LEFT JOIN holds AS h ON h.hold_id = c.hold_id
    WHERE c.shop_id = :shop AND c.claim_id = ANY(CAST(:ids AS uuid[]))
    """,
)

_REFUND_PARTS = """
    SELECT p.refund_key, p.hold_id, r.order_id, attempt.attempt FROM refund_parts AS p
    JOIN refunds AS r ON r.refund_key = p.refund_key
    CROSS JOIN generate_series(0, r.attempt) AS attempt(attempt)
    WHERE r.shop_id = :shop
"""
