"""
The ledger in PostgreSQL: postings in, balances out.

Postings are only ever inserted. A seller's withdrawable balance is the one sum that is judged before
money moves, so it alone is kept as a row that is locked; every other balance is the sealed subtotal
plus the tail of postings behind the seal. See docs/accounts.md.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.arrays import uuid_array
from infra.postgres.bulk import columns_of, insert_unless_known
from infra.postgres.tables import postings as postings_table
from ledger.accounts import AccountKind
from ledger.errors import ConflictingPosting, InvalidPosting
from ledger.postings import ACCOUNTS_OF, Posting, posting_ids

# Which postings change what a seller can withdraw, and which way.
_MOVES_AVAILABLE = {
    kind: 1 if credit is AccountKind.AVAILABLE else -1
    for kind, (debit, credit) in ACCOUNTS_OF.items()
    if AccountKind.AVAILABLE in (debit, credit)
}


@dataclass(frozen=True, slots=True, order=True)
class SellerCurrency:
    """Whose withdrawable balance, in what. Its order is the order in which balance rows are locked."""

    shop_id: str
    seller_id: str
    currency: str


def record_postings(
    connection: Connection, postings: Sequence[Posting], *, booked_at: datetime, all_new: bool = False
) -> None:
    """
    Write postings in the caller's transaction and carry the withdrawable balances along.

    A posting whose id is known with the same content, or stands twice among these, moves nothing the second
    time. Balance rows are taken in key order, so two calls cannot deadlock. Amounts are minor units. With
    `all_new` a known id fails the transaction, see `Steps.carry_out`.

    Raises:
        ConflictingPosting: an id is known with other content. The transaction must be rolled back.
        sqlalchemy.exc.IntegrityError: a withdrawable balance would become negative; the caller should
            have asked `lock_available` first.
    """
    if not postings:
        return
    by_number = _each_once(postings)
    ordered = [by_number[number] for number in sorted(by_number)]
    ids = [posting_id for posting_id, _ in ordered]
    left_out = {
        row.posting_id
        for row in insert_unless_known(
            connection,
            postings_table,
            {"posting_id": ids, **_columns([posting for _, posting in ordered], booked_at)},
            key=("posting_id",),
            all_new=all_new,
            often_equal=("kind", "shop_id", "seller_id", "currency", "debit", "credit", "booked_at"),
        )
    }
    if left_out:
        _refuse_other_content(connection, {id_: posting for id_, posting in ordered if id_ in left_out})
        ordered = [(id_, posting) for id_, posting in ordered if id_ not in left_out]
    _move_available(connection, [posting for _, posting in ordered])


def lock_available(connection: Connection, keys: Iterable[SellerCurrency]) -> dict[SellerCurrency, int]:
    """
    Lock and read withdrawable balances, in minor units, in key order. A seller without a row has 0.

    Whoever reserves money decides on these values; they cannot change before the transaction ends.
    """
    ordered = sorted(set(keys))
    found = connection.execute(
        text("""
            SELECT shop_id, seller_id, currency, available_minor
            FROM available_balances
            WHERE (shop_id, seller_id, currency) IN (
                SELECT * FROM unnest(
                    CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[])
                )
            )
            ORDER BY shop_id, seller_id, currency
            FOR UPDATE
        """),
        key_arrays(ordered),
    )
    balances = dict.fromkeys(ordered, 0)
    for row in found:
        balances[SellerCurrency(row.shop_id, row.seller_id, row.currency)] = int(row.available_minor)
    return balances


def seal_postings(connection: Connection) -> int:
    """
    Fold every posting that is certain to be committed into the subtotals; return how many.

    'Certain' is a transaction id below the xmin of this snapshot: a posting with a lower id can't appear
    any more. Sequence numbers or times could not promise that. One sealer at a time: the seal's row is
    locked, and a second one waits and then finds nothing to do.
    """
    connection.execute(text("SELECT 1 FROM seal WHERE seal_id = 1 FOR UPDATE"))
    # A new statement, so that its snapshot is taken after the lock: it sees what the last sealer wrote.
    return int(
        connection.execute(
            text("""
                WITH bounds AS (
                    SELECT horizon AS low, pg_snapshot_xmin(pg_current_snapshot()) AS high FROM seal
                ),
                moved AS (
                    SELECT shop_id, seller_id, currency, kind, debit, credit,
                           sum(amount_minor) AS total_minor, count(*) AS postings
                    -- Two values, not a join with `bounds`: a join is planned as if it took most of the
                    -- ledger, and then reads all of it.
                    FROM postings
                    WHERE xact >= (SELECT low FROM bounds) AND xact < (SELECT high FROM bounds)
                    GROUP BY shop_id, seller_id, currency, kind, debit, credit
                ),
                folded AS (
                    INSERT INTO subtotals AS old
                        (shop_id, seller_id, currency, kind, debit, credit, total_minor)
                    SELECT shop_id, seller_id, currency, kind, debit, credit, total_minor FROM moved
                    ON CONFLICT (shop_id, seller_id, currency, kind, debit, credit) DO UPDATE
                    SET total_minor = old.total_minor + excluded.total_minor
                ),
                sealed AS (
                    UPDATE seal SET horizon = greatest(low, high), sealed_at = clock_timestamp() FROM bounds
                )
                SELECT coalesce(sum(postings), 0) FROM moved
            """)
        ).scalar_one()
    )


@dataclass(frozen=True, slots=True)
class SellerBalance:
    """What the ledger says of one seller in one currency; minor units, may exceed 64 bits."""

    seller_id: str
    currency: str
    held: int
    available: int
    in_payout: int
    paid_out: int


def read_seller_balances(
    connection: Connection, shop_id: str, seller_id: str | None = None
) -> list[SellerBalance]:
    """
    Return the balances of one seller, or of all sellers of a shop, from sealed subtotals plus the tail.

    `paid_out` is what payouts took from the bank less what came back; what buyers got back is no payout.
    One statement, so one snapshot.
    """
    return _read_balances(connection, "balance_lines", shop_id, seller_id)


def read_seller_balances_at(
    connection: Connection, shop_id: str, seller_id: str | None, *, at: datetime
) -> list[SellerBalance]:
    """Return the same by what was booked before `at`, from the postings themselves."""
    lines = """(
        SELECT shop_id, seller_id, currency, kind, account, credit_minor - debit_minor AS net_minor
        FROM entries WHERE booked_at < :at
    ) AS lines"""
    return _read_balances(connection, lines, shop_id, seller_id, at=at)


def _read_balances(
    connection: Connection, lines: str, shop_id: str, seller_id: str | None, **values: object
) -> list[SellerBalance]:
    rows = connection.execute(
        text(f"""
            SELECT seller_id, currency,
                   coalesce(sum(net_minor) FILTER (WHERE account = 'held'), 0) AS held,
                   coalesce(sum(net_minor) FILTER (WHERE account = 'available'), 0) AS available,
                   coalesce(sum(net_minor) FILTER (WHERE account = 'in_payout'), 0) AS in_payout,
                   coalesce(sum(net_minor) FILTER (
                       WHERE account = 'bank_cash' AND kind IN ('payout_settled', 'payout_returned')
                   ), 0) AS paid_out
            FROM {lines}
            WHERE shop_id = :shop AND seller_id <> ''
              AND (CAST(:seller AS text) IS NULL OR seller_id = :seller)
            GROUP BY seller_id, currency ORDER BY seller_id, currency
        """),
        {"shop": shop_id, "seller": seller_id, **values},
    )
    return [_balance(row) for row in rows]


def _balance(row: Any) -> SellerBalance:  # noqa: ANN401 - a result row
    return SellerBalance(
        row.seller_id, row.currency, int(row.held), int(row.available), int(row.in_payout), int(row.paid_out)
    )


def _each_once(postings: Sequence[Posting]) -> dict[int, tuple[UUID, Posting]]:
    """
    Return each posting once, with its id and by its number: the table takes an id once, and so must the
    balance beside it.

    Raises:
        ConflictingPosting: one id stands here twice with different content.
    """
    ids = posting_ids(postings)
    by_number = {id_.int: (id_, posting) for id_, posting in zip(ids, postings, strict=True)}
    if len(by_number) < len(postings):
        for id_, posting in zip(ids, postings, strict=True):
            if by_number[id_.int][1] != posting:
                raise ConflictingPosting(f"{posting.kind} of {posting.cause_id} stands twice, not the same")
    return by_number


def _columns(postings: Sequence[Posting], booked_at: datetime) -> dict[str, Sequence[object]]:
    columns = columns_of(Posting, postings)
    accounts = [ACCOUNTS_OF[kind] for kind in columns["kind"]]
    return {
        **columns,
        "debit": [debit for debit, _ in accounts],
        "credit": [credit for _, credit in accounts],
        "booked_at": [booked_at] * len(postings),
    }


def _refuse_other_content(connection: Connection, repeated: Mapping[UUID, Posting]) -> None:
    known = {
        row.posting_id: (row.shop_id, row.seller_id, row.currency, row.amount_minor)
        for row in connection.execute(
            text("""
                SELECT posting_id, shop_id, seller_id, currency, amount_minor
                FROM postings WHERE posting_id = ANY(CAST(:ids AS uuid[]))
            """),
            {"ids": uuid_array(repeated)},
        )
    }
    for posting_id, posting in repeated.items():
        content = (posting.shop_id, posting.seller_id, posting.currency, posting.amount_minor)
        if known.get(posting_id) != content:
            raise ConflictingPosting(
                f"{posting.kind} of {posting.cause_id} is booked as {known.get(posting_id)}, not as {content}"
            )


def _move_available(connection: Connection, written: Sequence[Posting]) -> None:
    changes: dict[SellerCurrency, int] = defaultdict(int)
    for posting in written:
        if posting.kind not in _MOVES_AVAILABLE:
            continue
        key = SellerCurrency(posting.shop_id, posting.seller_id, posting.currency)
        changes[key] += _MOVES_AVAILABLE[posting.kind] * posting.amount_minor
    if not changes:
        return
    ordered = sorted(changes)
    if any(change < 0 for change in changes.values()):
        # Adding and taking are two statements; locking all rows first keeps one order for both.
        lock_available(connection, ordered)
        _take_from_available(connection, {key: -changes[key] for key in ordered if changes[key] < 0})
    _add_to_available(connection, {key: changes[key] for key in ordered if changes[key] > 0})


def _add_to_available(connection: Connection, amounts: Mapping[SellerCurrency, int]) -> None:
    if amounts:
        connection.execute(
            text("""
                INSERT INTO available_balances AS old (shop_id, seller_id, currency, available_minor)
                SELECT * FROM unnest(
                    CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[]),
                    CAST(:amounts AS numeric[])
                ) AS given(shop_id, seller_id, currency, amount)
                ORDER BY shop_id, seller_id, currency
                ON CONFLICT (shop_id, seller_id, currency) DO UPDATE
                SET available_minor = old.available_minor + excluded.available_minor
            """),
            {**key_arrays(list(amounts)), "amounts": list(amounts.values())},
        )


def _take_from_available(connection: Connection, amounts: Mapping[SellerCurrency, int]) -> None:
    taken = connection.execute(
        text("""
            UPDATE available_balances AS old
            SET available_minor = old.available_minor - given.amount
            FROM unnest(
                CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[]),
                CAST(:amounts AS numeric[])
            ) AS given(shop_id, seller_id, currency, amount)
            WHERE (old.shop_id, old.seller_id, old.currency)
                = (given.shop_id, given.seller_id, given.currency)
        """),
        {**key_arrays(list(amounts)), "amounts": list(amounts.values())},
    )
    if taken.rowcount != len(amounts):
        raise InvalidPosting("taken from a withdrawable balance that never had anything")


def key_arrays(keys: Sequence[SellerCurrency]) -> dict[str, list[str]]:
    """Return keys as the three arrays that a set-based statement unnests."""
    return {
        "shops": [key.shop_id for key in keys],
        "sellers": [key.seller_id for key in keys],
        "currencies": [key.currency for key in keys],
    }
