"""
Take a payout back into the books that the bank has made and a restored database has forgotten.

Whoever adopts says what the withdrawal was; its id at the bank follows from that, so a slip of the pen names
a transfer that the bank does not know. From then on it is a payout like any other of which the bank was told
and has not answered: it is asked for, never sent.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Row, text

from infra.postgres.bulk import insert_rows
from infra.postgres.ledger_store import SellerCurrency
from infra.postgres.step import Step
from infra.postgres.tables import withdrawals
from infra.rabbitmq.topology import PAYOUT_BANK
from schemas.commands import CheckTransfer
from schemas.outgoing import WithdrawalAccepted
from schemas.withdrawal_requested import WithdrawalRequested
from workers.payout import store
from workers.payout.debts import reserve_with_advance
from workers.payout.decisions import TransferState
from workers.payout.handlers.withdrawals import (
    adoption_event_id,
    end_to_end_id_of,
    payout_id_of,
    withdrawal_answer_id,
)


class CannotAdopt(Exception):
    """It is not to be adopted, or not like this; the sentence says why, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class LostPayout:
    """A payout as an operator remembers it and as the bank has it; minor units."""

    shop_id: str
    withdrawal_id: str
    event_id: str
    seller_id: str
    destination_id: str
    amount_minor: int
    currency: str

    @property
    def payout_id(self) -> UUID:
        return payout_id_of(self.shop_id, self.withdrawal_id)

    @property
    def key(self) -> SellerCurrency:
        return SellerCurrency(self.shop_id, self.seller_id, self.currency)

    def content_hash(self) -> bytes:
        """Return what its event's would be, so that the shop may say it again; `sealed` does not count."""
        return WithdrawalRequested.model_construct(
            withdrawal_id=self.withdrawal_id,
            seller_id=self.seller_id,
            amount=self.amount_minor,
            currency=self.currency,
            destination_id=self.destination_id,
            sealed="",
        ).content_hash()


@dataclass(frozen=True, slots=True)
class Adopted:
    """`advanced_minor` is what the seller owes now, since it was paid and is not withdrawable yet."""

    end_to_end_id: str
    advanced_minor: int
    again: bool = False


def adopt_payout(step: Step, lost: LostPayout) -> Adopted:
    """
    Book a payout that the bank has, and have the bank asked what became of it.

    It takes what is withdrawable; the rest the seller owes. One that was adopted before is left as it is. One
    that was refused when it was said again too early is accepted after all.

    Raises:
        CannotAdopt: seller or destination are unknown, or the withdrawal is known here.
    """
    seller = (lost.shop_id, lost.seller_id)
    if seller not in store.lock_sellers(step.connection, [seller]):
        raise CannotAdopt(
            f"shop {lost.shop_id} has no seller {lost.seller_id}: have the platform enrol it first"
        )
    if not store.find_destinations(step.connection, [(*seller, lost.destination_id)]):
        raise CannotAdopt(
            f"seller {lost.seller_id} has no destination {lost.destination_id}:"
            " have the platform enrol it first"
        )
    known = _lock_known(step, lost)
    end_to_end_id = end_to_end_id_of(lost.payout_id)
    if known is not None and known.adopted_at is not None:
        return Adopted(end_to_end_id, 0, again=True)
    if known is not None and (known.state != "rejected" or known.reserved_at is not None):
        raise CannotAdopt(
            f"withdrawal {lost.withdrawal_id} is known here, and {known.state}: leave it to the workers"
        )
    _write(step, lost, refused=known is not None)
    advanced = reserve_with_advance(step, lost.payout_id, lost.key, lost.amount_minor)
    answer_id = withdrawal_answer_id(lost.shop_id, lost.withdrawal_id)
    step.emit(
        # A refusal that was told keeps its id; the two stand beside each other.
        answer_id if known is None else adoption_event_id(answer_id),
        lost.shop_id,
        WithdrawalAccepted(
            withdrawal_id=lost.withdrawal_id,
            event_id=lost.event_id if known is None else known.event_id,
            seller_id=lost.seller_id,
            amount=lost.amount_minor,
            currency=lost.currency,
        ),
    )
    step.command(PAYOUT_BANK, CheckTransfer(payout_ids=(lost.payout_id,), tries=0))
    return Adopted(end_to_end_id, advanced)


def _lock_known(step: Step, lost: LostPayout) -> Row[tuple[object, ...]] | None:
    known = step.connection.execute(
        text("""
            SELECT state, seller_id, destination_id, amount_minor, currency, event_id, reserved_at, adopted_at
            FROM withdrawals WHERE payout_id = :id FOR UPDATE
        """),
        {"id": lost.payout_id},
    ).one_or_none()
    if known is None:
        return None
    said = (lost.seller_id, lost.destination_id, lost.amount_minor, lost.currency)
    if (known.seller_id, known.destination_id, known.amount_minor, known.currency) != said:
        raise CannotAdopt(
            f"withdrawal {lost.withdrawal_id} is known here with other content:"
            f" {known.amount_minor} {known.currency} of seller {known.seller_id} to {known.destination_id}"
        )
    return known


def _write(step: Step, lost: LostPayout, *, refused: bool) -> None:
    if refused:
        step.connection.execute(
            text("""
                UPDATE withdrawals SET state = 'accepted', reason = NULL, decided_at = :now,
                                       reserved_at = :now, adopted_at = :now
                WHERE payout_id = :id
            """),
            {"id": lost.payout_id, "now": step.now},
        )
    else:
        insert_rows(
            step.connection,
            withdrawals,
            [
                {
                    "payout_id": lost.payout_id,
                    "shop_id": lost.shop_id,
                    "withdrawal_id": lost.withdrawal_id,
                    "event_id": lost.event_id,
                    "content_hash": lost.content_hash(),
                    "seller_id": lost.seller_id,
                    "amount_minor": lost.amount_minor,
                    "currency": lost.currency,
                    "destination_id": lost.destination_id,
                    "state": "accepted",
                    "requested_at": step.now,
                    "decided_at": step.now,
                    "reserved_at": step.now,
                    "adopted_at": step.now,
                }
            ],
        )
    store.insert_transfers(
        step.connection,
        [(lost.payout_id, end_to_end_id_of(lost.payout_id))],
        now=step.now,
        state=TransferState.UNKNOWN,
    )
