"""The payout worker's SQL for withdrawals that wait: limits, cooling-off, reviews; and for paused payouts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.ledger_store import SellerCurrency, key_arrays
from schemas.reasons import Reason
from workers.payout.decisions import Limits, Pend, Proposal, Usage, Verdict
from workers.payout.store import Withdrawal

# Stands for every shop in `payout_pauses`; no shop can be called that.
ALL_SHOPS: Final = "*"
# Any number; whoever hands transfers to the bank holds it shared, whoever pauses them alone.
_PAUSE_LOCK: Final = 6_338_102_957

ShopCurrency = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """When what a withdrawal relies on was last changed."""

    enrolled_at: datetime
    password_changed_at: datetime
    destination_added_at: datetime


def find_changes(
    connection: Connection, withdrawals: Iterable[Withdrawal]
) -> dict[tuple[str, str, str], Changes]:
    """Return the changes behind (shop, seller, destination); a destination that is not known is left out."""
    keys = sorted({(w.shop_id, w.seller_id, w.destination_id) for w in withdrawals})
    return {
        (row.shop_id, row.seller_id, row.destination_id): Changes(
            row.enrolled_at, row.password_changed_at, row.added_at
        )
        for row in connection.execute(
            text("""
                SELECT d.shop_id, d.seller_id, d.destination_id, d.added_at, s.enrolled_at,
                       s.password_changed_at
                FROM destinations AS d JOIN sellers AS s USING (shop_id, seller_id)
                WHERE (d.shop_id, d.seller_id, d.destination_id) IN (
                    SELECT * FROM unnest(
                        CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:destinations AS text[])
                    )
                )
            """),
            {
                "shops": [key[0] for key in keys],
                "sellers": [key[1] for key in keys],
                "destinations": [key[2] for key in keys],
            },
        )
    }


@dataclass(frozen=True, slots=True)
class Spending:
    """The limits that hold for some sellers and their shops, and what counts towards them already."""

    of_sellers: Mapping[SellerCurrency, Limits]
    of_shops: Mapping[ShopCurrency, Limits]
    used_by_sellers: Mapping[SellerCurrency, Usage]
    used_by_shops: Mapping[ShopCurrency, Usage]


def lock_spending(connection: Connection, keys: Iterable[SellerCurrency], *, now: datetime) -> Spending:
    """
    Read the limits of sellers and shops, and what counts towards them; call `lock_sellers` before.

    A shop that has a limit of its own is locked, in key order, until the transaction ends: nobody else
    counts its withdrawals meanwhile. That lock is advisory, because locking the limit's row would take
    the right to change it. A day is a day of UTC. What waits for a review does not count; once approved
    it does.
    """
    ordered = sorted(set(keys))
    of_shops = _find_shop_limits(connection, ordered)
    if of_shops:
        # Counting comes after this, in statements of their own, and so sees what whoever held it has written.
        _lock_shops(connection, list(of_shops))
    of_sellers = _find_seller_limits(connection, ordered)
    return Spending(
        of_sellers,
        of_shops,
        _read_seller_usage(connection, list(of_sellers), now) if of_sellers else {},
        _read_shop_usage(connection, list(of_shops), now) if of_shops else {},
    )


def _lock_shops(connection: Connection, keys: Sequence[ShopCurrency]) -> None:
    connection.execute(
        text("""
            SELECT pg_advisory_xact_lock(key) FROM (
                SELECT DISTINCT hashtextextended('withdrawal limits ' || name, 0) AS key
                FROM unnest(CAST(:names AS text[])) AS given(name) ORDER BY key
            ) AS ordered
        """),
        {"names": [f"{shop_id} {currency}" for shop_id, currency in keys]},
    )


def _find_shop_limits(connection: Connection, keys: Sequence[SellerCurrency]) -> dict[ShopCurrency, Limits]:
    return {
        (row.shop_id, row.currency): Limits(row.per_withdrawal_minor, row.per_day_minor, row.per_hour_count)
        for row in connection.execute(
            text("""
                SELECT shop_id, currency, per_withdrawal_minor, per_day_minor, per_hour_count
                FROM withdrawal_limits
                WHERE scope = 'shop' AND (shop_id, currency) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:currencies AS text[]))
                )
            """),
            {"shops": [key.shop_id for key in keys], "currencies": [key.currency for key in keys]},
        )
    }


def _find_seller_limits(
    connection: Connection, keys: Sequence[SellerCurrency]
) -> dict[SellerCurrency, Limits]:
    """Return each seller's limits: its own where it has any in this currency, else those of all sellers."""
    return {
        SellerCurrency(row.shop_id, row.seller_id, row.currency): Limits(
            row.per_withdrawal_minor, row.per_day_minor, row.per_hour_count
        )
        for row in connection.execute(
            text("""
                SELECT DISTINCT ON (given.shop_id, given.seller_id, given.currency)
                       given.shop_id, given.seller_id, given.currency,
                       l.per_withdrawal_minor, l.per_day_minor, l.per_hour_count
                FROM unnest(CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[]))
                     AS given(shop_id, seller_id, currency)
                JOIN withdrawal_limits AS l ON (l.shop_id, l.currency) = (given.shop_id, given.currency)
                 AND (l.scope = 'sellers' OR (l.scope = 'seller' AND l.seller_id = given.seller_id))
                ORDER BY given.shop_id, given.seller_id, given.currency, l.scope
            """),
            key_arrays(keys),
        )
    }


# What was set aside and not given up again; `payout.failed` and `payout.returned` are not taken off.
_COUNTS = "(state = 'accepted' OR (state = 'pending' AND pending_reason = 'cooling_off'))"
_DAY = "date_trunc('day', CAST(:now AS timestamptz), 'UTC')"
_RECENT = f"""
    reserved_at >= least({_DAY}, CAST(:now AS timestamptz) - interval '1 hour') AND {_COUNTS}
"""
_USAGE = f"""
    coalesce(sum(amount_minor) FILTER (
        WHERE reserved_at >= {_DAY} AND reserved_at < {_DAY} + interval '1 day'), 0) AS day_minor,
    count(*) FILTER (WHERE reserved_at >= CAST(:now AS timestamptz) - interval '1 hour') AS hour_count
"""


def _read_seller_usage(
    connection: Connection, keys: Sequence[SellerCurrency], now: datetime
) -> dict[SellerCurrency, Usage]:
    return {
        SellerCurrency(row.shop_id, row.seller_id, row.currency): Usage(int(row.day_minor), row.hour_count)
        for row in connection.execute(
            text(f"""
                SELECT shop_id, seller_id, currency, {_USAGE} FROM withdrawals
                WHERE (shop_id, seller_id, currency) IN (
                    SELECT * FROM unnest(
                        CAST(:shops AS text[]), CAST(:sellers AS text[]), CAST(:currencies AS text[])
                    )
                ) AND {_RECENT}
                GROUP BY shop_id, seller_id, currency
            """),
            {**key_arrays(keys), "now": now},
        )
    }


def _read_shop_usage(
    connection: Connection, keys: Sequence[ShopCurrency], now: datetime
) -> dict[ShopCurrency, Usage]:
    return {
        (row.shop_id, row.currency): Usage(int(row.day_minor), row.hour_count)
        for row in connection.execute(
            text(f"""
                SELECT shop_id, currency, {_USAGE} FROM withdrawals
                WHERE (shop_id, currency) IN (
                    SELECT * FROM unnest(CAST(:shops AS text[]), CAST(:currencies AS text[]))
                ) AND {_RECENT}
                GROUP BY shop_id, currency
            """),
            {
                "shops": [shop for shop, _ in keys],
                "currencies": [currency for _, currency in keys],
                "now": now,
            },
        )
    }


def mark_accepted(connection: Connection, payout_ids: Sequence[UUID], *, now: datetime) -> None:
    """Accept locked withdrawals; those that waited keep the time at which their money was set aside."""
    connection.execute(
        text("""
            UPDATE withdrawals
            SET state = 'accepted', decided_at = :now, reserved_at = coalesce(reserved_at, :now)
            WHERE payout_id = ANY(CAST(:ids AS uuid[]))
        """),
        {"ids": list(payout_ids), "now": now},
    )


def mark_pending(
    connection: Connection, waiting: Sequence[tuple[Withdrawal, Pend]], *, now: datetime
) -> None:
    """Let locked withdrawals wait."""
    connection.execute(
        text("""
            UPDATE withdrawals
            SET state = 'pending', pending_reason = given.reason, over_limit = given.over_limit,
                pending_until = given.until, reserved_at = :now
            FROM unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[]), CAST(:limits AS text[]),
                        CAST(:untils AS timestamptz[])) AS given(payout_id, reason, over_limit, until)
            WHERE withdrawals.payout_id = given.payout_id
        """),
        {
            "ids": [withdrawal.payout_id for withdrawal, _ in waiting],
            "reasons": [pend.reason.value for _, pend in waiting],
            "limits": [pend.over_limit for _, pend in waiting],
            "untils": [pend.until for _, pend in waiting],
            "now": now,
        },
    )


def mark_reviewed(connection: Connection, payout_id: UUID) -> None:
    """From now on only its cooling-off keeps this locked withdrawal."""
    connection.execute(
        text("UPDATE withdrawals SET pending_reason = 'cooling_off' WHERE payout_id = :id"), {"id": payout_id}
    )


@dataclass(frozen=True, slots=True)
class PendingWithdrawal:
    """A withdrawal that waits, with what operators have said about it so far."""

    withdrawal: Withdrawal
    reason: Reason
    until: datetime | None
    proposal: Proposal | None

    @property
    def in_review(self) -> bool:
        return self.proposal is not None


# A review that two have decided is no proposal any more.
_PENDING = """
    SELECT w.payout_id, w.shop_id, w.withdrawal_id, w.event_id, w.seller_id, w.amount_minor, w.currency,
           w.destination_id, w.pending_reason, w.pending_until, r.verdict, r.proposed_by
    FROM withdrawals AS w
    LEFT JOIN withdrawal_reviews AS r ON r.payout_id = w.payout_id AND r.decided_at IS NULL
    WHERE w.state = 'pending'
"""


def lock_pending(connection: Connection, payout_ids: Iterable[UUID]) -> list[PendingWithdrawal]:
    """Lock withdrawals that wait, in id order; what is said about them can't change meanwhile."""
    ids = list(payout_ids)
    connection.execute(
        text("""
            SELECT 1 FROM withdrawals WHERE payout_id = ANY(CAST(:ids AS uuid[])) AND state = 'pending'
            ORDER BY payout_id FOR UPDATE
        """),
        {"ids": ids},
    )
    # A new statement, so that it sees what whoever held the lock has written.
    return [
        PendingWithdrawal(
            Withdrawal(
                row.payout_id,
                row.shop_id,
                row.withdrawal_id,
                row.event_id,
                row.seller_id,
                row.amount_minor,
                row.currency,
                row.destination_id,
            ),
            Reason(row.pending_reason),
            row.pending_until,
            Proposal(Verdict(row.verdict), row.proposed_by) if row.verdict else None,
        )
        for row in connection.execute(
            text(f"{_PENDING} AND w.payout_id = ANY(CAST(:ids AS uuid[])) ORDER BY w.payout_id"), {"ids": ids}
        )
    ]


def write_proposal(
    connection: Connection, payout_id: UUID, proposal: Proposal, *, why: str, now: datetime
) -> None:
    """Note what one operator says; it stands instead of what was said before."""
    connection.execute(
        text("""
            INSERT INTO withdrawal_reviews (payout_id, verdict, proposed_by, proposed_why, proposed_at)
            VALUES (:id, :verdict, :by, :why, :now)
            ON CONFLICT (payout_id) DO UPDATE
            SET verdict = excluded.verdict, proposed_by = excluded.proposed_by,
                proposed_why = excluded.proposed_why, proposed_at = excluded.proposed_at,
                decided_by = NULL, decided_why = NULL, decided_at = NULL
        """),
        {
            "id": payout_id,
            "verdict": proposal.verdict.value,
            "by": proposal.proposed_by,
            "why": why,
            "now": now,
        },
    )


def mark_decided_by(connection: Connection, payout_id: UUID, *, by: str, why: str, now: datetime) -> None:
    """Note the second name. The database refuses it if it is the first one."""
    connection.execute(
        text("""
            UPDATE withdrawal_reviews SET decided_by = :by, decided_why = :why, decided_at = :now
            WHERE payout_id = :id
        """),
        {"id": payout_id, "by": by, "why": why, "now": now},
    )


def find_paused_shops(connection: Connection, shop_ids: Iterable[str]) -> set[str]:
    """
    Return those of these shops whose payouts are paused.

    Nobody can pause them between this and the end of the transaction: once `holdfast payouts pause` has
    returned, no worker begins to hand over anything new.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _PAUSE_LOCK})
    asked = set(shop_ids)
    paused = {row.shop_id for row in connection.execute(text("SELECT shop_id FROM payout_pauses"))}
    return asked if ALL_SHOPS in paused else asked & paused


def lock_pauses(connection: Connection) -> None:
    """Wait until no worker is about to hand over anything that it has not marked."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PAUSE_LOCK})
