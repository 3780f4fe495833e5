"""
Where payouts meet what sellers owe.

A payout that was adopted after a restore may be of money that is still to be released again: then its seller
owes it. And money that comes back from a payout pays debts before it is withdrawable.
"""

from collections.abc import Sequence
from uuid import UUID

from infra.postgres.debts import ensure_debts, lock_debts, write_debts
from infra.postgres.ledger_store import SellerCurrency, lock_available
from infra.postgres.step import Step
from ledger.postings import Posting, PostingKind


def reserve_with_advance(step: Step, payout_id: UUID, key: SellerCurrency, amount_minor: int) -> int:
    """Set a payout's money aside; what is not withdrawable is advanced, and owed. Returns that."""
    ensure_debts(step.connection, [key])
    debts = lock_debts(step.connection, [key])
    missing = max(0, amount_minor - lock_available(step.connection, [key])[key])
    if missing:
        step.post([_posting(PostingKind.PAYOUT_ADVANCED, payout_id, key, missing)])
        write_debts(step.connection, {key: debts[key] + missing})
    step.post([_posting(PostingKind.PAYOUT_RESERVED, payout_id, key, amount_minor)])
    return missing


def pay_debts_first(step: Step, back: Sequence[tuple[UUID, SellerCurrency, int]]) -> None:
    """
    Let money of payouts that is withdrawable again pay first what its seller owes, as released money does.

    Else a seller could put money out of a claim's reach by having it sent where it can not arrive, and
    withdraw it afterwards. `back` are payout, seller and amount; they are posted in this step.
    """
    debts = lock_debts(step.connection, sorted({key for _, key, _ in back}))
    if not any(debts.values()):
        return
    for payout_id, key, amount_minor in back:
        paid = min(amount_minor, debts.get(key, 0))
        if paid:
            debts[key] -= paid
            step.post([_posting(PostingKind.DEBT_REPAID, payout_id, key, paid)])
    write_debts(step.connection, debts)


def _posting(kind: PostingKind, payout_id: UUID, key: SellerCurrency, amount_minor: int) -> Posting:
    return Posting(kind, payout_id, key.shop_id, key.seller_id, key.currency, amount_minor)
