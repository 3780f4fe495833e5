"""
Claims against sellers for money that was released and has to come back.

Taken from what is withdrawable; the rest is owed, and later releases pay it off first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import Connection, text

from infra.postgres.bulk import insert_rows
from infra.postgres.debts import ensure_debts, lock_debts, write_debts
from infra.postgres.ledger_store import SellerCurrency, lock_available
from infra.postgres.step import Step, Steps
from infra.postgres.tables import claims as claims_table
from ledger.accounts import NO_SELLER
from ledger.ids import derive_id
from ledger.postings import Posting, PostingKind
from schemas.commands import SettleClaims
from workers.escrow.decisions import Release

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """
    What a seller has to give back; minor units.

    `fee_minor` of it is the shop's own fee, which goes back with the money that it was taken from.
    """

    claim_id: UUID
    shop_id: str
    seller_id: str
    currency: str
    amount_minor: int
    cause: str
    reason: str
    hold_id: UUID | None = None
    fee_minor: int = 0
    operator: str | None = None
    second_operator: str | None = None

    @property
    def key(self) -> SellerCurrency:
        return SellerCurrency(self.shop_id, self.seller_id, self.currency)


@dataclass(frozen=True, slots=True)
class StandingClaim:
    """A claim for a credit that has come again, so that its seller gets all of it back; minor units."""

    claim_id: UUID
    key: SellerCurrency
    amount_minor: int
    fee_minor: int


def settle_claims(steps: Steps, commands: Sequence[SettleClaims]) -> None:
    """
    Bring claims in line with what the bank says of these payments now.

    Where it took the credit back, what was released is claimed, once a hold; what is held just waits.
    Where the credit has come again, sellers get their claims back. Judged by the rows as they stand, so
    a late command does what is right then, and a second one nothing.
    """
    payment_ids = sorted({payment_id for command in commands for payment_id in command.payment_ids})
    with steps.begin("settle_claims") as step:
        _lock_holds(step.connection, payment_ids)
        unclaimed = _find_unclaimed(step.connection, payment_ids)
        obsolete = _find_obsolete(step.connection, payment_ids)
        keys = sorted({claim.key for claim in unclaimed} | {claim.key for claim in obsolete})
        # All at once and before either half, so that two of these cannot deadlock.
        ensure_debts(step.connection, keys)
        lock_debts(step.connection, keys)
        lock_available(step.connection, keys)
        made = make_claims(step, unclaimed)
        _return_claims(step, obsolete)
    if made:
        log.warning("charged_back_money_claimed", claims=made)
    if obsolete:
        log.info("claims_returned", claims=len(obsolete))


def make_claims(step: Step, claims: Sequence[Claim]) -> int:
    """
    Book claims in the caller's step; one whose id is known is skipped. Returns how many are new.

    Locks debts before withdrawable balances, each in key order, as releases do.
    """
    new = _without_known(step.connection, claims)
    if not new:
        return 0
    keys = sorted({claim.key for claim in new})
    ensure_debts(step.connection, keys)
    debts = lock_debts(step.connection, keys)
    available = lock_available(step.connection, keys)
    rows: list[dict[str, object]] = []
    for claim in sorted(new, key=lambda claim: (claim.key, claim.claim_id)):
        taken = min(claim.amount_minor, available[claim.key])
        owed = claim.amount_minor - taken
        available[claim.key] -= taken
        debts[claim.key] += owed
        rows.append(_row(step, claim, taken))
        parts = {
            PostingKind.CLAIM_TAKEN: taken,
            PostingKind.CLAIM_OWED: owed,
        }
        step.post(
            Posting(kind, claim.claim_id, claim.shop_id, claim.seller_id, claim.currency, amount)
            for kind, amount in parts.items()
            if amount
        )
        if claim.fee_minor:
            step.post([_fee_returned(claim)])
    insert_rows(step.connection, claims_table, rows)
    write_debts(step.connection, debts)
    return len(new)


def pay_off_debts(step: Step, releases: Sequence[Release]) -> None:
    """Let released money pay what its seller owes, before the seller can withdraw it."""
    keys = {_key_of(release) for release in releases}
    debts = {key: owed for key, owed in lock_debts(step.connection, sorted(keys)).items() if owed}
    if not debts:
        return
    for release in releases:
        key = _key_of(release)
        paid = min(debts.get(key, 0), release.seller_minor)
        if paid:
            debts[key] -= paid
            step.post(
                [
                    Posting(
                        PostingKind.CLAIM_PAID,
                        release.hold.hold_id,
                        key.shop_id,
                        key.seller_id,
                        key.currency,
                        paid,
                    )
                ]
            )
    write_debts(step.connection, debts)


def _return_claims(step: Step, claims: Sequence[StandingClaim]) -> None:
    """Give claimed money back to its sellers: first against what they owe, the rest is withdrawable."""
    if not claims:
        return
    debts = lock_debts(step.connection, sorted({claim.key for claim in claims}))
    for claim in claims:
        waived = min(claim.amount_minor, debts[claim.key])
        debts[claim.key] -= waived
        parts = {
            PostingKind.CLAIM_WAIVED: waived,
            PostingKind.CLAIM_RETURNED: claim.amount_minor - waived,
        }
        step.post(
            Posting(kind, claim.claim_id, claim.key.shop_id, claim.key.seller_id, claim.key.currency, amount)
            for kind, amount in parts.items()
            if amount
        )
        if claim.fee_minor:
            step.post(
                [
                    Posting(
                        PostingKind.FEE_RESTORED,
                        claim.claim_id,
                        claim.key.shop_id,
                        NO_SELLER,
                        claim.key.currency,
                        claim.fee_minor,
                    )
                ]
            )
    write_debts(step.connection, debts)
    step.connection.execute(
        text("UPDATE claims SET returned_at = :now WHERE claim_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": [claim.claim_id for claim in claims], "now": step.now},
    )


def _lock_holds(connection: Connection, payment_ids: Sequence[UUID]) -> None:
    # Locked as releases lock them: a release that is under way is waited for, and then seen.
    connection.execute(
        text("SELECT 1 FROM holds WHERE payment_id = ANY(CAST(:ids AS uuid[])) ORDER BY hold_id FOR UPDATE"),
        {"ids": list(payment_ids)},
    )


def _find_unclaimed(connection: Connection, payment_ids: Sequence[UUID]) -> list[Claim]:
    return [
        Claim(
            # Under the hold's lock their number is certain; a credit may be taken back more than once.
            claim_id=derive_id(f"chargeback:{row.earlier_claims}", row.hold_id),
            shop_id=row.shop_id,
            seller_id=row.seller_id,
            currency=row.currency,
            amount_minor=row.amount_minor - row.refunded_minor - row.fee_minor,
            cause="chargeback",
            reason=f"the bank took back {row.bank_reference}: {row.reason}",
            hold_id=row.hold_id,
            fee_minor=row.fee_minor,
        )
        for row in connection.execute(
            text("""
                SELECT h.hold_id, h.shop_id, h.seller_id, h.currency, h.amount_minor, h.refunded_minor,
                       h.fee_minor, p.bank_reference, debit.reason,
                       (SELECT count(*) FROM claims AS c
                        WHERE c.hold_id = h.hold_id AND c.cause = 'chargeback') AS earlier_claims
                FROM holds AS h
                JOIN payments AS p ON p.payment_id = h.payment_id
                CROSS JOIN LATERAL (
                    SELECT d.reason FROM bank_debits AS d WHERE d.payment_id = p.payment_id
                    ORDER BY d.received_at DESC LIMIT 1
                ) AS debit
                WHERE h.payment_id = ANY(CAST(:ids AS uuid[])) AND h.state = 'released'
                  AND p.charged_back_at IS NOT NULL AND h.amount_minor > h.refunded_minor
                  AND NOT EXISTS (SELECT 1 FROM claims AS c
                                  WHERE c.hold_id = h.hold_id AND c.cause = 'chargeback'
                                    AND c.returned_at IS NULL)
                ORDER BY h.hold_id
            """),
            {"ids": list(payment_ids)},
        )
    ]


def _find_obsolete(connection: Connection, payment_ids: Sequence[UUID]) -> list[StandingClaim]:
    return [
        StandingClaim(
            row.claim_id,
            SellerCurrency(row.shop_id, row.seller_id, row.currency),
            row.amount_minor,
            row.fee_minor,
        )
        for row in connection.execute(
            text("""
                SELECT c.claim_id, c.shop_id, c.seller_id, c.currency, c.amount_minor, c.fee_minor
                FROM claims AS c
                JOIN holds AS h ON h.hold_id = c.hold_id
                JOIN payments AS p ON p.payment_id = h.payment_id
                WHERE h.payment_id = ANY(CAST(:ids AS uuid[])) AND c.cause = 'chargeback'
                  AND c.returned_at IS NULL AND p.funded_at IS NOT NULL
                ORDER BY c.claim_id
            """),
            {"ids": list(payment_ids)},
        )
    ]


def _without_known(connection: Connection, claims: Sequence[Claim]) -> list[Claim]:
    known = {
        row.claim_id
        for row in connection.execute(
            text("SELECT claim_id FROM claims WHERE claim_id = ANY(CAST(:ids AS uuid[]))"),
            {"ids": [claim.claim_id for claim in claims]},
        )
    }
    return [claim for claim in claims if claim.claim_id not in known]


def _row(step: Step, claim: Claim, taken: int) -> dict[str, object]:
    return {
        "claim_id": claim.claim_id,
        "shop_id": claim.shop_id,
        "seller_id": claim.seller_id,
        "currency": claim.currency,
        "amount_minor": claim.amount_minor,
        "taken_minor": taken,
        "fee_minor": claim.fee_minor,
        "cause": claim.cause,
        "reason": claim.reason,
        "hold_id": claim.hold_id,
        "operator": claim.operator,
        "second_operator": claim.second_operator,
        "made_at": step.now,
    }


def _fee_returned(claim: Claim) -> Posting:
    return Posting(
        PostingKind.FEE_RETURNED, claim.claim_id, claim.shop_id, NO_SELLER, claim.currency, claim.fee_minor
    )


def _key_of(release: Release) -> SellerCurrency:
    return SellerCurrency(release.hold.shop_id, release.hold.seller_id, release.hold.currency)
