"""What becomes of a payment and of a bank's credit: pure rules."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from msgspec import Struct

from schemas.reasons import Reason


class Accepted(Struct, frozen=True, gc=False):
    """The payment is booked and will be held for this many days."""

    protection_days: int


class Refused(Struct, frozen=True, gc=False):
    reason: Reason
    detail: str


def decide_payment(
    *, shop_active: bool, shop_protection_days: int, asked_protection_days: int | None
) -> Accepted | Refused:
    """Judge a new order that is valid in itself; the order's own period wins over the shop's."""
    if not shop_active:
        return Refused(Reason.SHOP_SUSPENDED, "the shop is suspended")
    return Accepted(asked_protection_days or shop_protection_days)


@dataclass(frozen=True, slots=True)
class OpenCredit:
    """Money at the bank that no payment has claimed; minor units."""

    credit_id: UUID
    bank_reference: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class UnfundedPayment:
    payment_id: UUID
    shop_id: str
    order_id: str
    bank_reference: str
    amount_minor: int
    currency: str
    charged_back: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    credit: OpenCredit
    payment: UnfundedPayment


def decide_matches(credits_: Iterable[OpenCredit], payments: Iterable[UnfundedPayment]) -> list[Match]:
    """
    Pair credits with the payments they confirm: same reference, amount and currency.

    A reference is unique within a shop only. Where payments of several shops wait for the same one, a
    credit is nobody's until there are credits for all of them: a guess could release money that a
    buyer of another shop has paid.
    """
    waiting: dict[tuple[str, int, str], list[UnfundedPayment]] = defaultdict(list)
    for payment in payments:
        waiting[payment.bank_reference, payment.amount_minor, payment.currency].append(payment)
    arrived: dict[tuple[str, int, str], list[OpenCredit]] = defaultdict(list)
    for credit in credits_:
        arrived[credit.bank_reference, credit.amount_minor, credit.currency].append(credit)
    matches: list[Match] = []
    for key, credits_of_key in arrived.items():
        payments_of_key = waiting.get(key, [])
        if payments_of_key and len(credits_of_key) >= len(payments_of_key):
            matches += _pair(credits_of_key, payments_of_key)
    return matches


def _pair(credits_: Sequence[OpenCredit], payments: Sequence[UnfundedPayment]) -> list[Match]:
    in_order = sorted(credits_, key=lambda credit: credit.credit_id)
    return [
        Match(credit, payment)
        for credit, payment in zip(
            in_order, sorted(payments, key=lambda payment: payment.payment_id), strict=False
        )
    ]


@dataclass(frozen=True, slots=True)
class OpenDebit:
    """The bank took money back; minor units."""

    debit_id: UUID
    bank_id: str
    bank_reference: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class StandingCredit:
    """A credit that the bank has not taken back, and the payment that it confirmed, if any."""

    bank_id: str
    credit: OpenCredit
    payment_id: UUID | None


@dataclass(frozen=True, slots=True)
class TakenBack:
    debit: OpenDebit
    credit: OpenCredit
    payment_id: UUID | None


def decide_take_backs(debits: Iterable[OpenDebit], credits_: Iterable[StandingCredit]) -> list[TakenBack]:
    """
    Pair debits with the credits that they take back: same bank, reference, amount and currency.

    No bank can take back what another one holds, whatever it says. A credit that confirmed nothing goes
    first: a buyer who paid twice gets the second payment back, and the order is left alone.
    """
    standing: dict[tuple[str, str, int, str], list[StandingCredit]] = defaultdict(list)
    for credit in sorted(credits_, key=lambda c: (c.payment_id is not None, c.credit.credit_id)):
        standing[_line_key(credit.bank_id, credit.credit)].append(credit)
    pairs: list[TakenBack] = []
    for debit in debits:
        candidates = standing.get(_line_key(debit.bank_id, debit), [])
        if candidates:
            chosen = candidates.pop(0)
            pairs.append(TakenBack(debit, chosen.credit, chosen.payment_id))
    return pairs


def _line_key(bank_id: str, line: OpenCredit | OpenDebit) -> tuple[str, str, int, str]:
    return bank_id, line.bank_reference, line.amount_minor, line.currency
