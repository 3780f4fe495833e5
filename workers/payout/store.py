"""The payout worker's SQL: sellers, password attempts, withdrawals and transfers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.ledger_store import SellerCurrency
from infra.postgres.tables import destinations, password_attempts, sellers, transfers, withdrawals
from workers.payout.decisions import Count, Purpose, Source, TransferState

SellerKey = tuple[str, str]  # shop id, seller id


@dataclass(frozen=True, slots=True)
class Seller:
    shop_id: str
    seller_id: str
    password_hash: str
    failed_attempts: int
    locked_until: datetime | None
    locked_by_failures: bool
    password_reset_until: datetime | None


@dataclass(frozen=True, slots=True)
class NewWithdrawal:
    """A row of `withdrawals`; the amount is minor units."""

    payout_id: UUID
    shop_id: str
    withdrawal_id: str
    event_id: str
    content_hash: bytes
    seller_id: str
    amount_minor: int
    currency: str
    destination_id: str
    state: str
    reason: str | None
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class NewAttempt:
    attempt_id: UUID
    shop_id: str
    seller_id: str
    purpose: str
    event_id: str
    answer_id: UUID
    payout_id: UUID | None
    destination_id: str | None
    sealed: str
    state: str
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is not decided yet, locked."""

    attempt_id: UUID
    shop_id: str
    seller_id: str
    purpose: Purpose
    event_id: str
    answer_id: UUID
    payout_id: UUID | None
    destination_id: str | None
    sealed: str
    counted: bool

    @property
    def seller_key(self) -> SellerKey:
        return self.shop_id, self.seller_id


@dataclass(frozen=True, slots=True)
class Withdrawal:
    payout_id: UUID
    shop_id: str
    withdrawal_id: str
    event_id: str
    seller_id: str
    amount_minor: int
    currency: str
    destination_id: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer with what its withdrawal, or the payout of a shop's own money, says."""

    payout_id: UUID
    end_to_end_id: str
    state: TransferState
    source: Source
    shop_id: str
    reference: str
    seller_id: str
    amount_minor: int
    currency: str
    destination_id: str
    details_encrypted: bytes

    @property
    def balance_key(self) -> SellerCurrency:
        return SellerCurrency(self.shop_id, self.seller_id, self.currency)


def find_sellers(connection: Connection, keys: Iterable[SellerKey]) -> dict[SellerKey, Seller]:
    return _read_sellers(connection, keys, "")


def lock_sellers(connection: Connection, keys: Iterable[SellerKey]) -> dict[SellerKey, Seller]:
    """Lock sellers in key order until the transaction ends: whoever judges a password holds this."""
    return _read_sellers(connection, keys, "FOR UPDATE")


def _read_sellers(connection: Connection, keys: Iterable[SellerKey], locking: str) -> dict[SellerKey, Seller]:
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.seller_id): Seller(
            row.shop_id,
            row.seller_id,
            row.password_hash,
            row.failed_attempts,
            row.locked_until,
            row.locked_by_failures,
            row.password_reset_until,
        )
        for row in connection.execute(
            text(f"""
                SELECT shop_id, seller_id, password_hash, failed_attempts, locked_until, locked_by_failures,
                       password_reset_until
                FROM sellers
                WHERE (shop_id, seller_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]))
                )
                ORDER BY shop_id, seller_id {locking}
            """),
            {"shops": [shop for shop, _ in ordered], "sellers": [seller for _, seller in ordered]},
        )
    }


def find_destinations(
    connection: Connection, keys: Iterable[tuple[str, str, str]]
) -> dict[tuple[str, str, str], bytes]:
    """Return the encrypted details of known destinations; keys are (shop, seller, destination)."""
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.seller_id, row.destination_id): bytes(row.details_encrypted)
        for row in connection.execute(
            text("""
                SELECT shop_id, seller_id, destination_id, details_encrypted FROM destinations
                WHERE (shop_id, seller_id, destination_id) IN (
                    SELECT * FROM unnest(
                        CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:destinations AS text[])
                    )
                )
            """),
            {
                "shops": [key[0] for key in ordered],
                "sellers": [key[1] for key in ordered],
                "destinations": [key[2] for key in ordered],
            },
        )
    }


def insert_withdrawals(connection: Connection, rows: Sequence[NewWithdrawal]) -> set[UUID]:
    """Insert withdrawals whose id is new in their shop; return the payout ids written."""
    ordered = sorted(rows, key=lambda row: (row.shop_id, row.withdrawal_id))
    written = insert_rows(
        connection,
        withdrawals,
        [{name: getattr(row, name) for name in row.__slots__} for row in ordered],
        skip_existing=True,
        returning=("payout_id",),
    )
    return {row.payout_id for row in written}


def find_contents(connection: Connection, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
    """Return the content hash of each known withdrawal; keys are (shop, withdrawal)."""
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.withdrawal_id): bytes(row.content_hash)
        for row in connection.execute(
            text("""
                SELECT shop_id, withdrawal_id, content_hash FROM withdrawals
                WHERE (shop_id, withdrawal_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:ids AS text[]))
                )
            """),
            {"shops": [shop for shop, _ in ordered], "ids": [id_ for _, id_ in ordered]},
        )
    }


def insert_attempts(connection: Connection, rows: Sequence[NewAttempt]) -> None:
    insert_rows(
        connection,
        password_attempts,
        [{name: getattr(row, name) for name in row.__slots__} for row in rows],
    )


def find_open_attempts_in_turn(
    connection: Connection, attempt_ids: Sequence[UUID]
) -> list[tuple[UUID, SellerKey]]:
    """
    Return which of these attempts are not decided yet, and whose they are, one of each shop at a time.

    Of a shop's own, one of each seller at a time, and each seller's in the order given. Who comes first of
    those that have the same turn is left to chance, anew each time: any order would let the same few, or
    whoever asks next, go before somebody again and again.
    """
    return [
        (row.attempt_id, (row.shop_id, row.seller_id))
        for row in connection.execute(
            text("""
                SELECT attempt_id, shop_id, seller_id FROM (
                    SELECT attempt_id, shop_id, seller_id,
                           row_number() OVER (PARTITION BY shop_id, seller_id ORDER BY place) AS of_seller
                    FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS given (attempt_id, place)
                    JOIN password_attempts USING (attempt_id)
                    WHERE state IN ('waiting', 'counted')
                ) AS open
                ORDER BY row_number() OVER (PARTITION BY shop_id ORDER BY of_seller, random()), random()
            """),
            {"ids": list(attempt_ids)},
        )
    ]


def lock_open_attempts(connection: Connection, attempt_ids: Iterable[UUID]) -> list[Attempt]:
    """Lock attempts that are not decided yet, oldest first; call `lock_sellers` before."""
    return [
        Attempt(
            row.attempt_id,
            row.shop_id,
            row.seller_id,
            Purpose(row.purpose),
            row.event_id,
            row.answer_id,
            row.payout_id,
            row.destination_id,
            row.sealed,
            row.state == "counted",
        )
        for row in connection.execute(
            text("""
                SELECT attempt_id, shop_id, seller_id, purpose, event_id, answer_id, payout_id,
                       destination_id, sealed, state
                FROM password_attempts
                WHERE attempt_id = ANY(CAST(:ids AS uuid[])) AND state IN ('waiting', 'counted')
                ORDER BY requested_at, attempt_id FOR UPDATE
            """),
            {"ids": list(attempt_ids)},
        )
    ]


def find_sellers_being_checked(
    connection: Connection, keys: Iterable[SellerKey], *, besides: Iterable[UUID]
) -> set[SellerKey]:
    """Return sellers whose password another worker is checking right now."""
    ordered = sorted(set(keys))
    return {
        (row.shop_id, row.seller_id)
        for row in connection.execute(
            text("""
                SELECT DISTINCT shop_id, seller_id FROM password_attempts
                WHERE state = 'counted' AND (shop_id, seller_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]))
                ) AND NOT attempt_id = ANY(CAST(:besides AS uuid[]))
            """),
            {
                "shops": [shop for shop, _ in ordered],
                "sellers": [seller for _, seller in ordered],
                "besides": list(besides),
            },
        )
    }


def mark_counted(connection: Connection, counts: Sequence[tuple[Attempt, Count]], *, now: datetime) -> None:
    """Count attempts against their sellers, one attempt a seller; committed before any check."""
    connection.execute(
        text("""
            UPDATE password_attempts SET state = 'counted', counted_at = :now
            WHERE attempt_id = ANY(CAST(:ids AS uuid[])) AND state = 'waiting'
        """),
        {"ids": [attempt.attempt_id for attempt, _ in counts], "now": now},
    )
    connection.execute(
        text("""
            UPDATE sellers SET failed_attempts = given.failures, locked_until = given.until,
                               locked_by_failures = given.for_good
            FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:failures AS int[]),
                        CAST(:untils AS timestamptz[]), CAST(:for_good AS boolean[]))
                AS given(shop_id, seller_id, failures, until, for_good)
            WHERE (sellers.shop_id, sellers.seller_id) = (given.shop_id, given.seller_id)
        """),
        {
            "shops": [attempt.shop_id for attempt, _ in counts],
            "sellers": [attempt.seller_id for attempt, _ in counts],
            "failures": [count.failed_attempts for _, count in counts],
            "untils": [count.locked_until for _, count in counts],
            "for_good": [count.locked_for_good for _, count in counts],
        },
    )


def mark_decided(
    connection: Connection, attempt_ids: Sequence[UUID], *, accepted: bool, now: datetime
) -> None:
    """Close attempts and forget what was sealed."""
    connection.execute(
        text("""
            UPDATE password_attempts SET state = :state, decided_at = :now, sealed = NULL
            WHERE attempt_id = ANY(CAST(:ids AS uuid[]))
        """),
        {"ids": list(attempt_ids), "state": "accepted" if accepted else "refused", "now": now},
    )


def clear_failures(connection: Connection, keys: Sequence[SellerKey]) -> None:
    """A right password resets the count and lifts the lock that the count had set."""
    connection.execute(
        text("""
            UPDATE sellers SET failed_attempts = 0, locked_until = NULL, locked_by_failures = false
            FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[])) AS given(shop_id, seller_id)
            WHERE (sellers.shop_id, sellers.seller_id) = (given.shop_id, given.seller_id)
        """),
        {"shops": [shop for shop, _ in keys], "sellers": [seller for _, seller in keys]},
    )


def take_back_count(connection: Connection, keys: Sequence[SellerKey]) -> None:
    """
    Undo what `mark_counted` did for attempts in which nobody guessed.

    Whoever was counted was not locked before, so no lock may be left.
    """
    connection.execute(
        text("""
            UPDATE sellers SET failed_attempts = greatest(failed_attempts - 1, 0), locked_until = NULL,
                               locked_by_failures = false
            FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[])) AS given(shop_id, seller_id)
            WHERE (sellers.shop_id, sellers.seller_id) = (given.shop_id, given.seller_id)
        """),
        {"shops": [shop for shop, _ in keys], "sellers": [seller for _, seller in keys]},
    )


def insert_seller(
    connection: Connection, shop_id: str, seller_id: str, *, password_hash: str, now: datetime
) -> bool:
    """Enrol a seller; False if another message has done so at this moment."""
    return bool(
        insert_rows(
            connection,
            sellers,
            [
                {
                    "shop_id": shop_id,
                    "seller_id": seller_id,
                    "password_hash": password_hash,
                    "enrolled_at": now,
                    "password_changed_at": now,
                }
            ],
            skip_existing=True,
            returning=("seller_id",),
        )
    )


def change_password(
    connection: Connection, shop_id: str, seller_id: str, *, password_hash: str, now: datetime
) -> None:
    """Store a new password; a reset that was open has served its purpose."""
    connection.execute(
        text("""
            UPDATE sellers SET password_hash = :hash, password_changed_at = :now, password_reset_until = NULL
            WHERE shop_id = :shop AND seller_id = :seller
        """),
        {"shop": shop_id, "seller": seller_id, "hash": password_hash, "now": now},
    )


def replace_hashes(connection: Connection, hashes: Sequence[tuple[SellerKey, str, str]]) -> None:
    """Store the same passwords hashed anew: (seller, the hash that was checked, the new one)."""
    connection.execute(
        text("""
            UPDATE sellers SET password_hash = given.new
            FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:old AS text[]),
                        CAST(:new AS text[])) AS given(shop_id, seller_id, old, new)
            WHERE (sellers.shop_id, sellers.seller_id) = (given.shop_id, given.seller_id)
              AND sellers.password_hash = given.old
        """),
        {
            "shops": [shop for (shop, _), _, _ in hashes],
            "sellers": [seller for (_, seller), _, _ in hashes],
            "old": [old for _, old, _ in hashes],
            "new": [new for _, _, new in hashes],
        },
    )


def insert_destination(
    connection: Connection,
    key: tuple[str, str, str],
    *,
    details_encrypted: bytes,
    masked: str,
    now: datetime,
) -> None:
    shop_id, seller_id, destination_id = key
    insert_rows(
        connection,
        destinations,
        [
            {
                "shop_id": shop_id,
                "seller_id": seller_id,
                "destination_id": destination_id,
                "details_encrypted": details_encrypted,
                "masked": masked,
                "added_at": now,
            }
        ],
        skip_existing=True,
    )


def lock_withdrawals(connection: Connection, payout_ids: Iterable[UUID]) -> dict[UUID, Withdrawal]:
    """Lock withdrawals whose password is being checked, in id order."""
    return {
        row.payout_id: Withdrawal(
            row.payout_id,
            row.shop_id,
            row.withdrawal_id,
            row.event_id,
            row.seller_id,
            row.amount_minor,
            row.currency,
            row.destination_id,
        )
        for row in connection.execute(
            text("""
                SELECT payout_id, shop_id, withdrawal_id, event_id, seller_id, amount_minor, currency,
                       destination_id
                FROM withdrawals
                WHERE payout_id = ANY(CAST(:ids AS uuid[])) AND state = 'checking'
                ORDER BY payout_id FOR UPDATE
            """),
            {"ids": list(payout_ids)},
        )
    }


def mark_withdrawals_rejected(
    connection: Connection, rejected: Sequence[tuple[UUID, str]], *, now: datetime
) -> None:
    """Refuse withdrawals; each is (payout id, reason)."""
    connection.execute(
        text("""
            UPDATE withdrawals SET state = 'rejected', reason = given.reason, decided_at = :now
            FROM unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[])) AS given(payout_id, reason)
            WHERE withdrawals.payout_id = given.payout_id
        """),
        {
            "ids": [payout_id for payout_id, _ in rejected],
            "reasons": [reason for _, reason in rejected],
            "now": now,
        },
    )


def insert_transfers(
    connection: Connection,
    rows: Sequence[tuple[UUID, str]],
    *,
    now: datetime,
    state: TransferState = TransferState.READY,
) -> None:
    """Write the one bank instruction of each payout: (payout id, end-to-end id); a ready one is unsent."""
    insert_rows(
        connection,
        transfers,
        [
            {
                "payout_id": payout_id,
                "end_to_end_id": end_to_end_id,
                "state": state.value,
                "created_at": now,
                "sent_at": None if state is TransferState.READY else now,
                "touched_at": now,
            }
            for payout_id, end_to_end_id in rows
        ],
    )


_TRANSFER_COLUMNS = """
    t.payout_id, t.end_to_end_id, t.state, p.source, p.shop_id, p.reference, p.seller_id, p.amount_minor,
    p.currency, p.destination_id, d.details_encrypted
    FROM transfers AS t
    JOIN payouts AS p ON p.payout_id = t.payout_id
    JOIN destinations AS d ON (d.shop_id, d.seller_id, d.destination_id)
                            = (p.shop_id, p.seller_id, p.destination_id)
"""


def lock_transfers(connection: Connection, payout_ids: Iterable[UUID]) -> list[Transfer]:
    """Lock transfers in id order until the transaction ends."""
    ids = list(payout_ids)
    connection.execute(
        text("""
            SELECT 1 FROM transfers WHERE payout_id = ANY(CAST(:ids AS uuid[]))
            ORDER BY payout_id FOR UPDATE
        """),
        {"ids": ids},
    )
    rows = connection.execute(
        text(
            f"SELECT {_TRANSFER_COLUMNS} WHERE t.payout_id = ANY(CAST(:ids AS uuid[])) ORDER BY t.payout_id"
        ),
        {"ids": ids},
    )
    return [
        Transfer(
            row.payout_id,
            row.end_to_end_id,
            TransferState(row.state),
            Source(row.source),
            row.shop_id,
            row.reference,
            row.seller_id,
            row.amount_minor,
            row.currency,
            row.destination_id,
            bytes(row.details_encrypted),
        )
        for row in rows
    ]


def find_payouts(connection: Connection, end_to_end_ids: Sequence[str]) -> dict[str, UUID]:
    return {
        row.end_to_end_id: row.payout_id
        for row in connection.execute(
            text("""
                SELECT end_to_end_id, payout_id FROM transfers
                WHERE end_to_end_id = ANY(CAST(:ids AS text[]))
            """),
            {"ids": list(end_to_end_ids)},
        )
    }


def mark_transfers(
    connection: Connection,
    changes: Sequence[tuple[UUID, TransferState, str | None]],
    *,
    now: datetime,
) -> None:
    """Set the state of locked transfers and stamp the time that goes with it."""
    connection.execute(
        text("""
            UPDATE transfers
            SET state = given.state, reason = coalesce(given.reason, transfers.reason), touched_at = :now,
                sent_at = CASE given.state WHEN 'sending' THEN :now ELSE sent_at END,
                submitted_at = CASE WHEN given.state IN ('submitted', 'settled', 'returned')
                                    THEN coalesce(submitted_at, :now) ELSE submitted_at END,
                settled_at = CASE WHEN given.state IN ('settled', 'returned')
                                  THEN coalesce(settled_at, :now) ELSE settled_at END,
                ended_at = CASE WHEN given.state IN ('failed', 'settled', 'returned')
                                THEN :now ELSE ended_at END
            FROM unnest(CAST(:ids AS uuid[]), CAST(:states AS text[]), CAST(:reasons AS text[]))
                AS given(payout_id, state, reason)
            WHERE transfers.payout_id = given.payout_id
        """),
        {
            "ids": [payout_id for payout_id, _, _ in changes],
            "states": [state.value for _, state, _ in changes],
            "reasons": [reason for _, _, reason in changes],
            "now": now,
        },
    )


def touch_transfers(connection: Connection, payout_ids: Sequence[UUID], *, now: datetime) -> None:
    """Note that the bank was asked, so that the sweep leaves these alone for a while."""
    connection.execute(
        text("UPDATE transfers SET touched_at = :now WHERE payout_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": list(payout_ids), "now": now},
    )


def read_cursor(connection: Connection, feed: str) -> int:
    position = connection.execute(
        text("SELECT position FROM bank_cursors WHERE feed = :feed"), {"feed": feed}
    ).scalar()
    return int(position or 0)


def advance_cursor(connection: Connection, feed: str, position: int) -> None:
    """Move a feed's cursor forward; never back, whoever comes late."""
    connection.execute(
        text("""
            INSERT INTO bank_cursors (feed, position) VALUES (:feed, :position)
            ON CONFLICT (feed) DO UPDATE
            SET position = greatest(bank_cursors.position, excluded.position)
        """),
        {"feed": feed, "position": position},
    )


def find_active_shops(connection: Connection, shop_ids: Iterable[str]) -> set[str]:
    return {
        row.shop_id
        for row in connection.execute(
            text("SELECT shop_id FROM shops WHERE state = 'active' AND shop_id = ANY(CAST(:ids AS text[]))"),
            {"ids": sorted(set(shop_ids))},
        )
    }
