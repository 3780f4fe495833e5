"""
What sellers owe because the bank has paid them what is not withdrawable yet.

Only a payout that was adopted after a restore is booked so: the money has left, and what it was paid from is
still to be released again.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from infra.postgres.debts import ensure_debts, lock_debts, write_debts
from infra.postgres.ledger_store import SellerCurrency, lock_available
from infra.postgres.step import Step
from ledger.ids import derive_id
from ledger.postings import Posting, PostingKind
from workers.payout.store import Transfer


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


def repay_advances(step: Step, back: Sequence[Transfer]) -> None:
    """
    Let money that came back from the bank pay first what was advanced for it.

    Its transfers are locked, and it is posted in this step: without this a seller could withdraw it while the
    money that it was paid from is still to be released.
    """
    advanced = {
        row.cause_id: int(row.amount_minor)
        for row in step.connection.execute(
            text("""
                SELECT cause_id, amount_minor FROM postings
                WHERE posting_id = ANY(CAST(:ids AS uuid[]))
            """),
            {"ids": [derive_id(PostingKind.PAYOUT_ADVANCED, transfer.payout_id) for transfer in back]},
        )
    }
    owing = [transfer for transfer in back if transfer.payout_id in advanced]
    if not owing:
        return
    debts = lock_debts(step.connection, sorted({transfer.balance_key for transfer in owing}))
    for transfer in owing:
        repaid = min(advanced[transfer.payout_id], debts.get(transfer.balance_key, 0))
        if repaid:
            debts[transfer.balance_key] -= repaid
            step.post(
                [_posting(PostingKind.ADVANCE_REPAID, transfer.payout_id, transfer.balance_key, repaid)]
            )
    write_debts(step.connection, debts)


def _posting(kind: PostingKind, payout_id: UUID, key: SellerCurrency, amount_minor: int) -> Posting:
    return Posting(kind, payout_id, key.shop_id, key.seller_id, key.currency, amount_minor)
