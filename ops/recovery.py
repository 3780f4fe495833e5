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
    PAID_THOUGH_REFUSED = "transfer_paid_though_refused"
    CREDIT_WITHOUT_ORDER = "credit_without_order"


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that does not mend itself, and what can be done."""

    what: What
    subject: str
    detail: str
    remedy: str


# What only refunds are: refused, or come back after they had settled; and paid in another way.
GIVEN_UP = "given_up"
SETTLED_BY_HAND = "settled_by_hand"


@dataclass(frozen=True, slots=True)
class KnownTransfer:
    """
    A payout or refund as the database knows it, also before it is a transfer; minor units.

    `state` is the transfer's, else the withdrawal's or refund's, or one of the two above.
    """

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


# States in which the bank need not know it: never sent, or not for certain, and then asked for and sent.
_NOT_AT_BANK = frozenset(
    {"checking", "pending", "proposed", "ready", "waiting", "rejected", "sending", "unknown", SETTLED_BY_HAND}
)
# What the bank must still say for a state of ours to be right. Open states follow the bank by themselves.
_NOTHING_LEFT = frozenset({BankWord.REJECTED, BankWord.RETURNED})
_FITTING: Mapping[str, frozenset[BankWord]] = {
    "settled": frozenset({BankWord.SETTLED, BankWord.RETURNED}),
    "returned": frozenset({BankWord.RETURNED}),
    "failed": frozenset({BankWord.REJECTED}),
    GIVEN_UP: _NOTHING_LEFT,
}
# What may have come about between asking the bank and reading the database.
_MAY_BE_OLD = frozenset({What.OTHER_END, What.UNKNOWN_TO_BANK})


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
                    "have its shop publish that withdrawal or refund again (it was told this id); it is not"
                    " paid again. Where nobody does: `holdfast recover adopt`",
                )
        elif mine.state == "rejected":
            # A refusal need not know the currency.
            if transfer.word not in _NOTHING_LEFT:
                yield Decision(
                    What.PAID_THOUGH_REFUSED,
                    transfer.end_to_end_id,
                    f"{transfer.amount_minor} {transfer.currency}, refused here, {transfer.word} at the bank",
                    "it was said again too early, and a refusal is final: `holdfast recover adopt payout`;"
                    " a refund, of which nothing is held any more: `holdfast claim add`",
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
        if transfer_.end_to_end_id not in theirs and transfer_.state not in _NOT_AT_BANK:
            yield Decision(
                What.UNKNOWN_TO_BANK,
                transfer_.end_to_end_id,
                f"{transfer_.amount_minor} {transfer_.currency}, {transfer_.state} here",
                "ask the bank: it has forgotten a transfer, or this is another bank",
            )


def may_be_old(decision: Decision) -> bool:
    """
    Whether a transfer that moved on between the two looks explains this; another look at the bank tells.

    What the bank has, we knew before it did. But what we book as ended, the bank may have ended only after it
    was asked.
    """
    return decision.what in _MAY_BE_OLD


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
