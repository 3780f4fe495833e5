"""
Paying out a shop's own money: fees, and what was recovered by claims.

It leaves on the word of two operators, by the same transfers as sellers' money. The other way round it owes:
what belongs to sellers and buyers, and what the bank has taken back, is never paid out as the shop's.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.step import Step
from infra.postgres.tables import shop_payouts
from infra.rabbitmq.topology import PAYOUT_BANK
from ledger.accounts import NO_SELLER
from ledger.ids import key_id
from ledger.postings import Posting, PostingKind
from schemas.commands import SubmitTransfer
from workers.payout.decisions import OwnMoney, Source, own_kind
from workers.payout.handlers.withdrawals import end_to_end_id_of
from workers.payout.store import insert_transfers


class CannotPayOut(Exception):
    """There is no such payout, or not the money for it; the sentence says which, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class ShopPayout:
    """A payout of a shop's own money; the amount is minor units."""

    shop_id: str
    reference: str
    source: Source
    amount_minor: int
    currency: str
    destination_id: str

    @property
    def payout_id(self) -> UUID:
        """Computed: a restored database that has forgotten it pays under the id that the bank knows."""
        return key_id("shop_payout", self.shop_id, self.reference)


@dataclass(frozen=True, slots=True)
class StandingPayout:
    """One that was proposed, and what has become of it."""

    payout: ShopPayout
    state: str
    proposed_by: str
    decided_by: str | None


def find_own_money(connection: Connection, shop_id: str, currency: str) -> OwnMoney:
    """
    Return what the books say that is the shop's, in one statement and so of one moment.

    `lost` is what has left, or became withdrawable, of payments that no bank's credit stands behind: under
    `announced`, or because the bank took the credit back. Other people's money stands in for it meanwhile.
    """
    row = connection.execute(
        text("""
            WITH balances AS (
                SELECT coalesce(sum(net_minor) FILTER (WHERE account = 'fees'), 0) AS fees,
                       coalesce(sum(net_minor) FILTER (WHERE account = 'recovered'), 0) AS recovered,
                       coalesce(-sum(net_minor) FILTER (WHERE account = 'receivable'), 0) AS owed,
                       coalesce(-sum(net_minor) FILTER (WHERE account = 'incoming'), 0) AS incoming
                FROM balance_lines WHERE (shop_id, currency) = (:shop, :currency)
            ),
            protected AS (
                SELECT coalesce(sum(h.amount_minor - h.refunded_minor), 0) AS minor
                FROM holds AS h JOIN payments AS p ON p.payment_id = h.payment_id
                WHERE (h.shop_id, h.currency) = (:shop, :currency) AND h.state IN ('held', 'frozen')
                  AND p.funded_at IS NULL
            ),
            going_back AS (
                SELECT coalesce(sum(r.amount_minor), 0) AS minor
                FROM refunds AS r JOIN payments AS p ON p.payment_id = r.payment_id
                WHERE (r.shop_id, r.currency) = (:shop, :currency) AND r.state NOT IN ('settled', 'rejected')
                  AND p.funded_at IS NULL
            ),
            charged_back AS (
                SELECT coalesce(sum(amount_minor + fee_minor), 0) AS minor FROM claims
                WHERE (shop_id, currency) = (:shop, :currency) AND cause = 'chargeback'
                  AND returned_at IS NULL
            )
            SELECT fees, recovered, owed, incoming - protected.minor - going_back.minor AS lost,
                   charged_back.minor AS charged_back
            FROM balances, protected, going_back, charged_back
        """),
        {"shop": shop_id, "currency": currency},
    ).one()
    return OwnMoney(
        fees_minor=int(row.fees),
        recovered_minor=int(row.recovered),
        charged_back_minor=int(row.charged_back),
        owed_minor=int(row.owed),
        lost_minor=int(row.lost),
    )


def propose_shop_payout(step: Step, payout: ShopPayout, *, by: str, why: str) -> bool:
    """
    Write down that one operator wants this paid; nothing is set aside. False if it was said before.

    Raises:
        CannotPayOut: the reference is known with other content, or the shop has no such destination.
    """
    _lock_own_money(step.connection, payout.shop_id, payout.currency)
    standing = lock_shop_payout(step.connection, payout.shop_id, payout.reference)
    if standing is not None:
        if standing.payout != payout:
            raise CannotPayOut(
                f"payout {payout.reference} is known with other content; take another reference"
            )
        return False
    known = step.connection.execute(
        text("""
            SELECT 1 FROM destinations
            WHERE (shop_id, seller_id, destination_id) = (:shop, :nobody, :destination)
        """),
        {"shop": payout.shop_id, "nobody": NO_SELLER, "destination": payout.destination_id},
    ).one_or_none()
    if known is None:
        raise CannotPayOut(
            f"shop {payout.shop_id} has no destination {payout.destination_id} of its own: see"
            " `holdfast shop destination add`"
        )
    _refuse_too_much(step.connection, payout)
    insert_rows(
        step.connection,
        shop_payouts,
        [
            {
                "payout_id": payout.payout_id,
                "shop_id": payout.shop_id,
                "reference": payout.reference,
                "source": payout.source.value,
                "amount_minor": payout.amount_minor,
                "currency": payout.currency,
                "destination_id": payout.destination_id,
                "state": "proposed",
                "proposed_by": by,
                "proposed_why": why,
                "proposed_at": step.now,
            }
        ],
    )
    return True


def carry_out_shop_payout(step: Step, payout: ShopPayout, *, by: str, why: str) -> None:
    """
    Set the money of a proposed payout aside and hand it to the bank; the row must be locked.

    Raises:
        CannotPayOut: the money is not there any more.
    """
    _lock_own_money(step.connection, payout.shop_id, payout.currency)
    _refuse_too_much(step.connection, payout)
    _decide(step.connection, payout, "approved", by=by, why=why, now=step.now)
    step.post(
        [
            Posting(
                own_kind(payout.source, PostingKind.PAYOUT_RESERVED),
                payout.payout_id,
                payout.shop_id,
                NO_SELLER,
                payout.currency,
                payout.amount_minor,
            )
        ]
    )
    insert_transfers(step.connection, [(payout.payout_id, end_to_end_id_of(payout.payout_id))], now=step.now)
    step.command(PAYOUT_BANK, SubmitTransfer(payout_ids=(payout.payout_id,)))


def reject_shop_payout(step: Step, payout: ShopPayout, *, by: str, why: str) -> None:
    """Give up a proposed payout for good; the row must be locked."""
    _decide(step.connection, payout, "rejected", by=by, why=why, now=step.now)


def lock_shop_payout(connection: Connection, shop_id: str, reference: str) -> StandingPayout | None:
    """Lock a payout until the transaction ends; None if there is none of that reference."""
    row = connection.execute(
        text("""
            SELECT source, amount_minor, currency, destination_id, state, proposed_by, decided_by
            FROM shop_payouts WHERE (shop_id, reference) = (:shop, :reference) FOR UPDATE
        """),
        {"shop": shop_id, "reference": reference},
    ).one_or_none()
    if row is None:
        return None
    payout = ShopPayout(
        shop_id, reference, Source(row.source), row.amount_minor, row.currency, row.destination_id
    )
    return StandingPayout(payout, row.state, row.proposed_by, row.decided_by)


def _refuse_too_much(connection: Connection, payout: ShopPayout) -> None:
    payable = find_own_money(connection, payout.shop_id, payout.currency).payable_minor(payout.source)
    if payout.amount_minor > payable:
        raise CannotPayOut(
            f"{payout.amount_minor} is more than the {payable} {payout.currency} (minor units) of"
            f" {payout.source} that may leave: see `holdfast shop payout list`"
        )


def _lock_own_money(connection: Connection, shop_id: str, currency: str) -> None:
    """One at a time pays out a shop's own money, so that no two take the same."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('own money ' || CAST(:name AS text), 0))"),
        {"name": f"{shop_id} {currency}"},
    )


def _decide(
    connection: Connection, payout: ShopPayout, state: str, *, by: str, why: str, now: datetime
) -> None:
    connection.execute(
        text("""
            UPDATE shop_payouts SET state = :state, decided_by = :by, decided_why = :why, decided_at = :now
            WHERE payout_id = :id
        """),
        {"id": payout.payout_id, "state": state, "by": by, "why": why, "now": now},
    )
