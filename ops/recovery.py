"""
What a person must decide after a database was restored to an earlier moment: pure comparison.

The bank and the shops remember what this database has forgotten. Most of it comes back by itself once they
say it again; the rest is listed here, one decision a line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workers.payout.transfers import BankWord, ListedTransfer


class What(StrEnum):
    OTHER_SERVER = "database_of_another_server"
    UNKNOWN_TO_US = "transfer_unknown_to_us"
    UNKNOWN_TO_BANK = "transfer_unknown_to_bank"
    OTHER_AMOUNT = "transfer_of_another_amount"
    OTHER_END = "transfer_ended_otherwise"
    CREDIT_WITHOUT_ORDER = "credit_without_order"


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that does not mend itself, and what can be done."""

    what: What
    subject: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class KnownTransfer:
    """A payout or refund as the database knows it; minor units."""

    end_to_end_id: str
    state: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class OpenCredit:
    """Money in suspense: the bank has it, and no order is known to which it belongs."""

    bank_reference: str
    amount_minor: int
    currency: str


_NEVER_SENT = frozenset({"ready", "waiting", "rejected"})
# What the bank must still say for a state of ours to be right. Open states follow the bank by themselves.
_FITTING: Mapping[str, frozenset[BankWord]] = {
    "settled": frozenset({BankWord.SETTLED, BankWord.RETURNED}),
    "returned": frozenset({BankWord.RETURNED}),
    "failed": frozenset({BankWord.REJECTED}),
}


def compare_transfers(known: Sequence[KnownTransfer], listed: Sequence[ListedTransfer]) -> Iterator[Decision]:
    """Compare what we know with all that the bank was ever told."""
    ours = {transfer.end_to_end_id: transfer for transfer in known}
    theirs = {transfer.end_to_end_id: transfer for transfer in listed}
    for transfer in listed:
        mine = ours.get(transfer.end_to_end_id)
        if mine is None:
            # A rejected one moved no money.
            if transfer.word is not BankWord.REJECTED:
                yield Decision(
                    What.UNKNOWN_TO_US,
                    transfer.end_to_end_id,
                    f"{transfer.amount_minor} {transfer.currency}, {transfer.word} at the bank",
                    "have its shop publish that withdrawal or refund again (it told the shop this id); it"
                    " is not paid again. Where nobody does: `holdfast claim add` takes it from the seller",
                )
        elif (mine.amount_minor, mine.currency) != (transfer.amount_minor, transfer.currency):
            yield Decision(
                What.OTHER_AMOUNT,
                transfer.end_to_end_id,
                f"{mine.amount_minor} {mine.currency} here, {transfer.amount_minor} {transfer.currency}"
                " at the bank",
                "ask the bank; keep payouts paused",
            )
        elif mine.state in _FITTING and transfer.word not in _FITTING[mine.state]:
            yield Decision(
                What.OTHER_END,
                transfer.end_to_end_id,
                f"{mine.state} here, {transfer.word} at the bank",
                "ask the bank; keep payouts paused",
            )
    for transfer_ in known:
        if transfer_.end_to_end_id not in theirs and transfer_.state not in _NEVER_SENT:
            yield Decision(
                What.UNKNOWN_TO_BANK,
                transfer_.end_to_end_id,
                f"{transfer_.amount_minor} {transfer_.currency}, {transfer_.state} here",
                "ask the bank: it has forgotten a transfer, or this is another bank",
            )


def credits_without_orders(credits_: Sequence[OpenCredit]) -> Iterator[Decision]:
    """Money for orders that were forgotten, or that never came."""
    for credit in credits_:
        yield Decision(
            What.CREDIT_WITHOUT_ORDER,
            credit.bank_reference,
            f"{credit.amount_minor} {credit.currency} in suspense",
            "have the shop of this reference publish its order again; if there is none, return the money",
        )


def dump_of_another_server() -> Decision:
    return Decision(
        What.OTHER_SERVER,
        "seal",
        "the ledger names transactions that this server has not reached: it was loaded from a dump, and sums"
        " of new postings would be wrong",
        "before any worker starts: `holdfast recover reseal`",
    )
