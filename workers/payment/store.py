"""The payment worker's SQL: payments and the bank's credits. Every statement takes the whole batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Connection, text

from infra.postgres.arrays import text_array
from infra.postgres.bulk import columns_of, insert_rows, insert_unless_known
from infra.postgres.tables import bank_credits, bank_debits, payments
from workers.payment.decisions import (
    OpenCredit,
    OpenDebit,
    StandingCredit,
    TakenBack,
    UnfundedPayment,
)


class NewPayment(Struct, frozen=True, gc=False):
    """A row of `payments`; amounts are minor units, `splits` JSON text of {seller_id, amount}."""

    payment_id: UUID
    shop_id: str
    order_id: str
    event_id: str
    content_hash: bytes
    state: str
    reason: str | None
    buyer_id: str
    amount_minor: int
    currency: str
    bank_reference: str
    splits: str
    protection_days: int
    paid_at: datetime
    received_at: datetime


@dataclass(frozen=True, slots=True)
class NewCredit:
    credit_id: UUID
    bank_id: str
    statement_line: str
    content_hash: bytes
    bank_reference: str
    amount_minor: int
    currency: str
    booked_at: datetime
    received_at: datetime


@dataclass(frozen=True, slots=True)
class NewDebit:
    debit_id: UUID
    bank_id: str
    statement_line: str
    content_hash: bytes
    bank_reference: str
    amount_minor: int
    currency: str
    reason: str
    booked_at: datetime
    received_at: datetime


@dataclass(frozen=True, slots=True)
class ShopTerms:
    shop_id: str
    active: bool
    protection_days: int


@dataclass(frozen=True, slots=True)
class DueHold:
    hold_id: UUID
    release_at: datetime


def find_shop_terms(connection: Connection, shop_ids: Iterable[str]) -> dict[str, ShopTerms]:
    return {
        row.shop_id: ShopTerms(row.shop_id, row.state == "active", row.protection_days)
        for row in connection.execute(
            text("""
                SELECT shop_id, state, protection_days FROM shops
                WHERE shop_id = ANY(CAST(:shops AS text[]))
            """),
            {"shops": sorted(set(shop_ids))},
        )
    }


def insert_payments(
    connection: Connection, rows: Sequence[NewPayment], *, all_new: bool = False
) -> set[UUID]:
    """
    Insert payments whose order is new and whose bank reference is free; return the ids left out.

    With `all_new` any other fails the transaction, see `Steps.carry_out`.
    """
    ordered = sorted(rows, key=lambda row: (row.shop_id, row.order_id))
    return {
        row.payment_id
        for row in insert_unless_known(
            connection,
            payments,
            columns_of(NewPayment, ordered),
            key=("payment_id",),
            all_new=all_new,
            often_equal=("shop_id", "state", "reason", "currency", "protection_days", "received_at"),
        )
    }


def find_contents(connection: Connection, orders: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
    """Return the content hash of each known order; keys are `(shop_id, order_id)`."""
    keys = sorted(set(orders))
    return {
        (row.shop_id, row.order_id): bytes(row.content_hash)
        for row in connection.execute(
            text("""
                SELECT shop_id, order_id, content_hash FROM payments
                WHERE (shop_id, order_id) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:orders AS text[]))
                )
            """),
            {"shops": [shop for shop, _ in keys], "orders": [order for _, order in keys]},
        )
    }


def insert_credits(connection: Connection, rows: Sequence[NewCredit]) -> set[UUID]:
    """Insert statement lines that are new; return the ids written."""
    ordered = sorted(rows, key=lambda row: (row.bank_id, row.statement_line))
    written = insert_rows(
        connection,
        bank_credits,
        [_columns(row) for row in ordered],
        skip_existing=True,
        returning=("credit_id",),
    )
    return {row.credit_id for row in written}


def find_credit_contents(
    connection: Connection, lines: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], bytes]:
    """Return the content hash of each known statement line; keys are `(bank_id, statement_line)`."""
    keys = sorted(set(lines))
    return {
        (row.bank_id, row.statement_line): bytes(row.content_hash)
        for row in connection.execute(
            text("""
                SELECT bank_id, statement_line, content_hash FROM bank_credits
                WHERE (bank_id, statement_line) IN (
                    SELECT * FROM unnest(CAST(:banks AS text[]), CAST(:lines AS text[]))
                )
            """),
            {"banks": [bank for bank, _ in keys], "lines": [line for _, line in keys]},
        )
    }


def insert_debits(connection: Connection, rows: Sequence[NewDebit]) -> set[UUID]:
    """Insert statement lines that are new; return the ids written."""
    ordered = sorted(rows, key=lambda row: (row.bank_id, row.statement_line))
    written = insert_rows(
        connection,
        bank_debits,
        [_columns(row) for row in ordered],
        skip_existing=True,
        returning=("debit_id",),
    )
    return {row.debit_id for row in written}


def find_debit_contents(
    connection: Connection, lines: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], bytes]:
    """Return the content hash of each known debit; keys are `(bank_id, statement_line)`."""
    keys = sorted(set(lines))
    return {
        (row.bank_id, row.statement_line): bytes(row.content_hash)
        for row in connection.execute(
            text("""
                SELECT bank_id, statement_line, content_hash FROM bank_debits
                WHERE (bank_id, statement_line) IN (
                    SELECT * FROM unnest(CAST(:banks AS text[]), CAST(:lines AS text[]))
                )
            """),
            {"banks": [bank for bank, _ in keys], "lines": [line for _, line in keys]},
        )
    }


def lock_standing_credits(connection: Connection, references: Iterable[str]) -> list[StandingCredit]:
    """Lock credits of these references that the bank has not taken back, in id order."""
    return [
        StandingCredit(
            row.bank_id,
            OpenCredit(row.credit_id, row.bank_reference, row.amount_minor, row.currency),
            row.payment_id,
        )
        for row in connection.execute(
            text("""
                SELECT credit_id, bank_id, bank_reference, amount_minor, currency, payment_id
                FROM bank_credits
                WHERE taken_back_at IS NULL AND bank_reference = ANY(CAST(:references AS text[]))
                ORDER BY credit_id FOR UPDATE
            """),
            {"references": text_array(sorted(set(references)))},
        )
    ]


def lock_open_debits(connection: Connection, references: Iterable[str]) -> list[OpenDebit]:
    """Lock debits of these references whose credit has not come yet, in id order."""
    return [
        OpenDebit(row.debit_id, row.bank_id, row.bank_reference, row.amount_minor, row.currency)
        for row in connection.execute(
            text("""
                SELECT debit_id, bank_id, bank_reference, amount_minor, currency FROM bank_debits
                WHERE credit_id IS NULL AND bank_reference = ANY(CAST(:references AS text[]))
                ORDER BY debit_id FOR UPDATE
            """),
            {"references": text_array(sorted(set(references)))},
        )
    ]


def mark_taken_back(connection: Connection, pairs: Sequence[TakenBack], *, now: datetime) -> None:
    """Void credits that the bank took back, and the confirmation that they gave."""
    payment_ids = [pair.payment_id for pair in pairs]
    arrays = {
        "debits": [pair.debit.debit_id for pair in pairs],
        "credits": [pair.credit.credit_id for pair in pairs],
        "payments": payment_ids,
    }
    connection.execute(
        text("""
            UPDATE bank_credits SET taken_back_at = :now, payment_id = NULL, matched_at = NULL
            WHERE credit_id = ANY(CAST(:credits AS uuid[]))
        """),
        {"credits": arrays["credits"], "now": now},
    )
    connection.execute(
        text("""
            UPDATE bank_debits SET credit_id = given.credit_id, payment_id = given.payment_id
            FROM unnest(CAST(:debits AS uuid[]), CAST(:credits AS uuid[]), CAST(:payments AS uuid[]))
                AS given(debit_id, credit_id, payment_id)
            WHERE bank_debits.debit_id = given.debit_id
        """),
        arrays,
    )
    connection.execute(
        text("""
            UPDATE payments SET funded_at = NULL, charged_back_at = :now
            WHERE payment_id = ANY(CAST(:payments AS uuid[]))
        """),
        {"payments": [id_ for id_ in payment_ids if id_ is not None], "now": now},
    )


def lock_payments(connection: Connection, payment_ids: Sequence[UUID]) -> None:
    """Lock payments in id order until the transaction ends."""
    connection.execute(
        text("""
            SELECT 1 FROM payments WHERE payment_id = ANY(CAST(:ids AS uuid[]))
            ORDER BY payment_id FOR UPDATE
        """),
        {"ids": list(payment_ids)},
    )


def find_shops_of(connection: Connection, payment_ids: Sequence[UUID]) -> dict[UUID, str]:
    return {
        row.payment_id: row.shop_id
        for row in connection.execute(
            text("SELECT payment_id, shop_id FROM payments WHERE payment_id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": list(payment_ids)},
        )
    }


def hold_back_refunds(connection: Connection, payment_ids: Sequence[UUID], *, now: datetime) -> None:
    """
    Let refunds that the bank has not heard of wait for the credit again.

    A buyer who got the money back from their own bank must not get it from us too.
    """
    connection.execute(
        text("""
            UPDATE refunds SET state = 'waiting', touched_at = :now
            WHERE state = 'ready' AND payment_id = ANY(CAST(:ids AS uuid[]))
        """),
        {"ids": list(payment_ids), "now": now},
    )


def find_waiting_refunds(connection: Connection, payment_ids: Sequence[UUID]) -> list[UUID]:
    """Return refunds that waited for the credit of these payments."""
    return [
        row.refund_key
        for row in connection.execute(
            text("""
                SELECT refund_key FROM refunds
                WHERE state = 'waiting' AND payment_id = ANY(CAST(:ids AS uuid[])) ORDER BY refund_key
            """),
            {"ids": list(payment_ids)},
        )
    ]


def find_references(connection: Connection, credit_ids: Sequence[UUID]) -> set[str]:
    """Return the bank references of credits that the bank has not taken back."""
    return {
        row.bank_reference
        for row in connection.execute(
            text("""
                SELECT bank_reference FROM bank_credits
                WHERE credit_id = ANY(CAST(:ids AS uuid[])) AND taken_back_at IS NULL
            """),
            {"ids": list(credit_ids)},
        )
    }


def lock_open_credits(connection: Connection, references: Iterable[str]) -> list[OpenCredit]:
    """Lock unclaimed credits of these references, in id order, until the transaction ends."""
    return [
        OpenCredit(row.credit_id, row.bank_reference, row.amount_minor, row.currency)
        for row in connection.execute(
            text("""
                SELECT credit_id, bank_reference, amount_minor, currency FROM bank_credits
                WHERE payment_id IS NULL AND taken_back_at IS NULL
                  AND bank_reference = ANY(CAST(:references AS text[]))
                ORDER BY credit_id FOR UPDATE
            """),
            {"references": text_array(sorted(set(references)))},
        )
    ]


def lock_unfunded_payments(connection: Connection, references: Iterable[str]) -> list[UnfundedPayment]:
    """Lock payments that wait for the bank's word, in id order, until the transaction ends."""
    return [
        UnfundedPayment(
            row.payment_id,
            row.shop_id,
            row.order_id,
            row.bank_reference,
            row.amount_minor,
            row.currency,
            row.charged_back_at is not None,
        )
        for row in connection.execute(
            text("""
                SELECT payment_id, shop_id, order_id, bank_reference, amount_minor, currency, charged_back_at
                FROM payments
                WHERE state = 'received' AND funded_at IS NULL
                  AND bank_reference = ANY(CAST(:references AS text[]))
                ORDER BY payment_id FOR UPDATE
            """),
            {"references": text_array(sorted(set(references)))},
        )
    ]


def mark_matched(connection: Connection, pairs: Sequence[tuple[UUID, UUID]], *, now: datetime) -> None:
    """Claim credits for payments; pairs are `(credit_id, payment_id)`, all locked by the caller."""
    arrays = {
        "credits": [credit_id for credit_id, _ in pairs],
        "payments": [payment_id for _, payment_id in pairs],
        "now": now,
    }
    connection.execute(
        text("""
            UPDATE bank_credits SET payment_id = given.payment_id, matched_at = :now
            FROM unnest(CAST(:credits AS uuid[]), CAST(:payments AS uuid[])) AS given(credit_id, payment_id)
            WHERE bank_credits.credit_id = given.credit_id
        """),
        arrays,
    )
    connection.execute(
        text("""
            UPDATE payments SET funded_at = :now, charged_back_at = NULL
            WHERE payment_id = ANY(CAST(:payments AS uuid[]))
        """),
        {"payments": arrays["payments"], "now": now},
    )


def find_booking_times(connection: Connection, credit_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    return {
        row.credit_id: row.booked_at
        for row in connection.execute(
            text("SELECT credit_id, booked_at FROM bank_credits WHERE credit_id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": list(credit_ids)},
        )
    }


def find_holds_due_by(
    connection: Connection, payment_ids: Sequence[UUID], *, due_by: datetime
) -> list[DueHold]:
    """Return the open holds of these payments whose time comes by then, soonest first."""
    return [
        DueHold(row.hold_id, row.release_at)
        for row in connection.execute(
            text("""
                SELECT hold_id, release_at FROM holds
                WHERE payment_id = ANY(CAST(:ids AS uuid[])) AND state = 'held' AND release_at <= :due_by
                ORDER BY release_at, hold_id
            """),
            {"ids": list(payment_ids), "due_by": due_by},
        )
    ]


def _columns(row: NewCredit | NewDebit) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}
