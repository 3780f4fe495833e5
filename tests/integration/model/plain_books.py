"""
The workflow in plain integers: what the contract says must be where, and nothing of how it is done.

No postings, no locks, no commands, no database. Time is seconds; amounts are minor units.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from workers.payout.transfers import BankWord

OPEN_AT_BANK = {"submitted", "unknown"}


@dataclass
class Hold:
    amount: int
    fee_bps: int
    state: str = "held"
    refunded: int = 0
    fee: int = 0
    disputes: set[str] = field(default_factory=set)
    claimed: bool = False

    @property
    def left(self) -> int:
        return self.amount - self.refunded

    @property
    def is_open(self) -> bool:
        return self.state in {"held", "frozen"}


@dataclass
class Order:
    """`holds` by seller, in the order in which the shop named them."""

    data: dict[str, Any]
    holds: dict[str, Hold]
    release_at: int
    funded: bool = False
    charged_back: bool = False


@dataclass
class AtBank:
    """A refund or a payout: `parts` is how much of whose money is on its way."""

    parts: dict[str, int]
    end_to_end_id: str = ""
    state: str = "waiting"
    order: Order | None = None


class PlainBooks:
    """One shop's money."""

    def __init__(self, sellers: list[str], *, announced: bool, period_seconds: int) -> None:
        self.sellers = sellers
        self.announced = announced
        self.period_seconds = period_seconds
        self.now = 0
        self.fee_bps = 0
        self.orders: list[Order] = []
        self.refunds: list[AtBank] = []
        self.payouts: list[AtBank] = []
        self.disputes: dict[str, tuple[Order, list[str]]] = {}
        self.available: Counter[str] = Counter()
        self.owed: Counter[str] = Counter()
        self.wrong_passwords: Counter[str] = Counter()
        # By bank reference: credits that nobody claims, and debits whose credit has not come.
        self.spare_credits: Counter[str] = Counter()
        self.early_debits: Counter[str] = Counter()
        self.amount_of: dict[str, int] = {}

    # Orders and the bank's word about them.

    def announce(self, data: dict[str, Any]) -> Order:
        holds = {part["seller_id"]: Hold(part["amount"], self.fee_bps) for part in data["splits"]}
        order = Order(data, holds, self.now + self.period_seconds)
        self.orders.append(order)
        if self.spare_credits[data["bank_reference"]]:
            self.spare_credits[data["bank_reference"]] -= 1
            order.funded = True
        return order

    def credit(self, data: dict[str, Any]) -> list[AtBank]:
        """Return the refunds that waited for this money and now go to the bank."""
        reference = data["bank_reference"]
        self.amount_of[reference] = data["amount"]
        order = self._order_of(data)
        if self.early_debits[reference]:
            self.early_debits[reference] -= 1
        elif order is None or order.funded:
            self.spare_credits[reference] += 1
        else:
            order.funded, order.charged_back = True, False
            for seller, hold in order.holds.items():
                if hold.claimed:
                    hold.claimed = False
                    self._earn(seller, hold.left - hold.fee)
            self.release_due([order])
            return [refund for refund in self.refunds if refund.order is order and refund.state == "waiting"]
        return []

    def debit(self, data: dict[str, Any]) -> None:
        reference = data["bank_reference"]
        self.amount_of[reference] = data["amount"]
        order = self._order_of(data)
        if self.spare_credits[reference]:
            self.spare_credits[reference] -= 1
        elif order is not None and order.funded:
            order.funded, order.charged_back = False, True
            self._claim(order)
        else:
            self.early_debits[reference] += 1

    # Time.

    def release_due(
        self, orders: Iterable[Order], sellers: Iterable[str] | None = None, *, overdue_by: int = 0
    ) -> None:
        for order in orders:
            due = order.release_at <= self.now - overdue_by
            may = due and not order.charged_back and (order.funded or self.announced)
            for seller, hold in order.holds.items():
                if may and hold.state == "held" and (sellers is None or seller in sellers):
                    hold.state = "released"
                    # Python's round() of a fraction is half to even.
                    hold.fee = round(Fraction(hold.left * hold.fee_bps, 10_000))
                    self._earn(seller, hold.left - hold.fee)

    # Recourse.

    def freeze(self, order: Order, named: list[str], dispute_id: str) -> list[str]:
        frozen = [seller for seller in named if order.holds[seller].is_open]
        for seller in frozen:
            order.holds[seller].state = "frozen"
            order.holds[seller].disputes.add(dispute_id)
        if frozen:
            self.disputes[dispute_id] = (order, frozen)
        return frozen

    def fits(self, order: Order, refunds: dict[str, int]) -> bool:
        return all(
            order.holds[seller].is_open and amount <= order.holds[seller].left
            for seller, amount in refunds.items()
        )

    def give_back(self, order: Order, refunds: dict[str, int], end_to_end_id: str) -> AtBank:
        for seller, amount in refunds.items():
            hold = order.holds[seller]
            hold.refunded += amount
            if hold.left == 0:
                hold.state = "refunded"
        refund = AtBank(refunds, end_to_end_id, order=order)
        self.refunds.append(refund)
        return refund

    def unfreeze(self, dispute_id: str) -> None:
        order, sellers = self.disputes.pop(dispute_id)
        for seller in sellers:
            hold = order.holds[seller]
            hold.disputes.discard(dispute_id)
            if hold.state == "frozen" and not hold.disputes:
                hold.state = "held"
        self.release_due([order], sellers)

    # Payouts.

    def reserve(self, seller: str, amount: int, end_to_end_id: str) -> AtBank:
        self.available[seller] -= amount
        payout = AtBank({seller: amount}, end_to_end_id)
        self.payouts.append(payout)
        return payout

    @property
    def at_bank(self) -> list[AtBank]:
        return [*self.refunds, *self.payouts]

    def hear(self, at_bank: AtBank, word: BankWord) -> None:
        at_bank.state = {
            BankWord.SETTLED: "settled",
            BankWord.REJECTED: "failed",
            BankWord.PENDING: "submitted",
        }[word]
        if at_bank.order is None and word is BankWord.REJECTED:
            self._earn_all(at_bank.parts)

    def take_back_in(self, settled: AtBank) -> None:
        settled.state = "returned"
        if settled.order is None:
            self._earn_all(settled.parts)

    # What every account must hold: all but cash and received, which are what all others leave over.

    def accounts(self) -> dict[tuple[str, str], int]:
        expected: Counter[tuple[str, str]] = Counter()
        for order in self.orders:
            if not order.funded:
                expected["", "incoming"] -= order.data["amount"]
            for seller, hold in order.holds.items():
                expected[seller, "held"] += hold.left if hold.is_open else 0
                expected["", "recovered" if hold.claimed else "fees"] += hold.fee
                if hold.claimed:
                    expected["", "recovered"] += hold.left - hold.fee
        for refund in self.refunds:
            for seller, amount in refund.parts.items():
                expected[seller, "refundable"] += 0 if refund.state == "settled" else amount
        for payout in self.payouts:
            for seller, amount in payout.parts.items():
                in_payout = payout.state in {"waiting", *OPEN_AT_BANK}
                expected[seller, "in_payout"] += amount if in_payout else 0
        for seller in self.sellers:
            expected[seller, "available"] += self.available[seller]
            expected[seller, "receivable"] -= self.owed[seller]
        expected["", "suspense"] += sum(
            (self.spare_credits[reference] - self.early_debits[reference]) * amount
            for reference, amount in self.amount_of.items()
        )
        return {key: value for key, value in expected.items() if value}

    def _order_of(self, data: dict[str, Any]) -> Order | None:
        return next((order for order in self.orders if order.data is data), None)

    def _earn(self, seller: str, amount: int) -> None:
        paid = min(amount, self.owed[seller])
        self.owed[seller] -= paid
        self.available[seller] += amount - paid

    def _earn_all(self, parts: dict[str, int]) -> None:
        for seller, amount in parts.items():
            self._earn(seller, amount)

    def _claim(self, order: Order) -> None:
        for seller, hold in order.holds.items():
            if hold.state == "released" and not hold.claimed:
                hold.claimed = True
                taken = min(hold.left - hold.fee, self.available[seller])
                self.available[seller] -= taken
                self.owed[seller] += hold.left - hold.fee - taken
