"""
The real handlers against a model in plain integers, in any order that Hypothesis can think of.

The model knows what the contract says and nothing of how it is done: no postings, no locks, no commands.
After every step each account of the shop must hold exactly what the model says, and each hold and refund
must be in its state; after every run the tests' own accountant reads all books.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text
from workflow_support.books import what_is_wrong
from workflow_support.desk import DAY_SECONDS, Desk, Told
from workflow_support.events import (
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from infra.postgres.audit import run_audit
from workers.payout.transfers import BankWord, ReturnedTransfer, TransferAnswer, TransferInstruction

# Small, so that halves, ones and empty holds come up often.
AMOUNTS = st.integers(1, 400)
PICK = st.integers(0, 10**6)
MOST_ORDERS = 3
OPEN_AT_BANK = {"submitted", "unknown"}


class MoodyBank:
    """A bank that answers in the mood it is in and remembers what it has really done."""

    def __init__(self) -> None:
        self.mood = "settle"
        self.words: dict[str, BankWord] = {}
        self.returned: list[ReturnedTransfer] = []

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        id_ = instruction.end_to_end_id
        assert id_ not in self.words, "sent again, though the bank has it"
        if self.mood == "lose":
            return TransferAnswer(BankWord.UNKNOWN)
        self.words[id_] = {
            "settle": BankWord.SETTLED,
            "reject": BankWord.REJECTED,
            "accept": BankWord.PENDING,
            "accept in silence": BankWord.PENDING,
        }[self.mood]
        return TransferAnswer(BankWord.UNKNOWN if self.mood == "accept in silence" else self.words[id_])

    def find(self, end_to_end_id: str) -> TransferAnswer:
        return TransferAnswer(self.words.get(end_to_end_id, BankWord.NEVER_SEEN))

    def returns_after(self, position: int, limit: int) -> Sequence[ReturnedTransfer]:
        return [entry for entry in self.returned if entry.position > position][:limit]


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
    data: dict[str, Any]
    holds: dict[str, Hold]
    funded: bool = False
    charged_back: bool = False
    due: bool = False


@dataclass
class AtBank:
    """A refund or a payout: `parts` is how much of whose money is on its way."""

    parts: dict[str, int]
    end_to_end_id: str = ""
    state: str = "waiting"
    order: Order | None = None


Method = TypeVar("Method", bound=Callable[..., None])
# Name of the method, when it can happen, what it needs; in a list as often as it should come up.
_STEPS: list[tuple[str, Callable[[Any], object], dict[str, st.SearchStrategy[Any]]]] = []


def step(
    *, when: Callable[[Any], object] = lambda _: True, often: int = 1, **needs: st.SearchStrategy[Any]
) -> Callable[[Method], Method]:
    def note(method: Method) -> Method:
        _STEPS.extend([(method.__name__, when, needs)] * often)
        return method

    return note


class Recourse(RuleBasedStateMachine):
    """
    One rule chooses among all steps.

    With a rule each, Hypothesis would leave out a random half of them in every run, and hardly any would
    get as far as a credit that goes and comes again.
    """

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.bank = MoodyBank()
        self.desk = Desk(self.engine, bank=self.bank)
        self.orders: list[Order] = []
        self.unannounced: list[dict[str, Any]] = []
        self.refunds: dict[str, AtBank] = {}
        self.payouts: dict[str, AtBank] = {}
        self.disputes: dict[str, tuple[Order, set[str]]] = {}
        self.available: Counter[str] = Counter()
        self.owed: Counter[str] = Counter()
        self.paid_out: Counter[str] = Counter()
        # By bank reference: credits that nobody claims, and debits whose credit has not come.
        self.spare_credits: Counter[str] = Counter()
        self.early_debits: Counter[str] = Counter()
        self.amount_of: dict[str, int] = {}
        self.sent: list[tuple[str, Any]] = []
        self.house_before = self._house()

    @initialize(funding=st.sampled_from(["confirmed", "announced"]))
    def begin(self, funding: str) -> None:
        self.announced = funding == "announced"
        self.fee_bps = 0
        self.shop = self.desk.a_shop(funding=funding)
        self.platform = self.desk.platform(self.shop)
        self.sellers = [self.desk.a_seller(self.platform) for _ in range(2)]

    def teardown(self) -> None:
        self.desk.close()
        assert what_is_wrong(self.engine) == {}

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        possible = [step_ for step_ in _STEPS if step_[1](self)]
        name, _, needs = data.draw(st.sampled_from(possible), label="step")
        getattr(self, name)(**{need: data.draw(needs[need], label=need) for need in needs})

    # What shops and banks do.

    # Few orders, so that much happens to each; most are confirmed, and some are nearly over at once.
    @step(
        when=lambda self: len(self.orders) < MOST_ORDERS,
        amounts=st.lists(AMOUNTS, min_size=1, max_size=2),
        so_far=st.sampled_from(["paid", "credited", "due", "released"]),
        fee_bps=st.integers(0, 10_000),
    )
    def an_order_is_paid(self, amounts: list[int], so_far: str, fee_bps: int) -> None:
        """On terms that the shop has just agreed; orders of before keep theirs."""
        self.fee_bps = fee_bps
        self.desk.execute("UPDATE shops SET fee_bps = :fee WHERE shop_id = :s", fee=fee_bps, s=self.shop)
        self._announce(order_data(splits=dict(zip(self.sellers, amounts, strict=False))))
        if so_far != "paid":
            self._credit(self.orders[-1].data)
        if so_far in {"due", "released"}:
            self.time_passes(-1, rings=int(so_far == "released"), all_ring=False)

    @step(when=lambda self: len(self.orders) + len(self.unannounced) < MOST_ORDERS, amount=AMOUNTS)
    def money_comes_before_its_order(self, amount: int) -> None:
        data = order_data(splits={self.sellers[0]: amount})
        self.unannounced.append(data)
        self._credit(data)

    @step(when=lambda self: self.unannounced)
    def the_order_of_early_money_is_paid(self) -> None:
        self._announce(self.unannounced.pop())

    @step(when=lambda self: self.orders, pick=PICK)
    def the_bank_credits(self, pick: int) -> None:
        self._credit(self._order(pick).data)

    @step(when=lambda self: self.orders or self.unannounced, pick=PICK)
    def the_bank_takes_back(self, pick: int) -> None:
        known = [order.data for order in self.orders] + self.unannounced
        data = known[pick % len(known)]
        reference = data["bank_reference"]
        self.amount_of[reference] = data["amount"]
        self._send("bank_says", bank_debited(debit_data(data)))
        order = next((order for order in self.orders if order.data is data), None)
        if self.spare_credits[reference]:
            self.spare_credits[reference] -= 1
        elif order is not None and order.funded:
            order.funded, order.charged_back = False, True
            self._claim(order)
        else:
            self.early_debits[reference] += 1

    @step(when=lambda self: self.sent, pick=PICK)
    def a_message_comes_again(self, pick: int) -> None:
        how, event = self.sent[pick % len(self.sent)]
        getattr(self.desk, how)(event)

    # Time.

    @step(
        when=lambda self: self.orders,
        pick=PICK,
        ends=st.booleans(),
        rings=st.integers(0, 2),
        all_ring=st.booleans(),
    )
    def time_passes(self, pick: int, rings: int, *, ends: bool = True, all_ring: bool) -> None:
        """A period ends or not; its alarm rings early, in time, twice or not at all; so may all others."""
        order = self._order(pick)
        if ends:
            self.desk.pass_protection(self.shop, order.data["order_id"])
            order.due = True
        rows = self.desk.execute(
            "SELECT hold_id FROM holds WHERE (shop_id, order_id) = (:shop, :order)",
            shop=self.shop,
            order=order.data["order_id"],
        )
        for _ in range(rings):
            self.desk.release(*[row.hold_id for row in rows])
            self._release_due(order)
        if all_ring:
            self.desk.ring_alarms("release_hold")
            self.desk.ring_alarms("match_credits")
            for each in self.orders:
                self._release_due(each)

    # Recourse.

    @step(when=lambda self: self.orders, pick=PICK, whom=st.sampled_from(["all", "first", "last"]))
    def a_dispute_is_opened(self, pick: int, whom: str) -> None:
        order, dispute_id = self._order(pick), fresh("d")
        sellers = list(order.holds)
        named = {"all": sellers, "first": sellers[:1], "last": sellers[-1:]}[whom]
        extra = {} if whom == "all" else {"seller_ids": named}
        told = self._send("buyers_ask", dispute_opened(self.shop, order.data, dispute_id=dispute_id, **extra))
        frozen = {seller for seller in named if order.holds[seller].is_open}
        for seller in frozen:
            order.holds[seller].state = "frozen"
            order.holds[seller].disputes.add(dispute_id)
        if frozen:
            self.disputes[dispute_id] = (order, frozen)
        assert _types(told)["dispute.accepted"] == bool(frozen)
        assert _types(told)["hold.frozen"] == len(frozen)

    @step(
        when=lambda self: self.disputes,
        pick=PICK,
        amounts=st.lists(st.none() | st.just(-1) | AMOUNTS, min_size=2, max_size=2),
    )
    def a_dispute_is_resolved(self, pick: int, amounts: list[int | None]) -> None:
        """None gives that seller's part to the seller, -1 to the buyer, a number divides it."""
        dispute_id = sorted(self.disputes)[pick % len(self.disputes)]
        order, sellers = self.disputes[dispute_id]
        refunds = self._asked(order, sellers, amounts)
        told = self._send("buyers_ask", dispute_resolved(self.shop, dispute_id, refunds))
        fits = self._fits(order, refunds)
        assert _types(told)["dispute.accepted"] == fits
        if not fits:
            return
        del self.disputes[dispute_id]
        for seller in sellers:
            hold = order.holds[seller]
            hold.disputes.discard(dispute_id)
        if refunds:
            self._give_back(order, refunds, dispute_id)
        for seller in sellers:
            hold = order.holds[seller]
            if hold.state == "frozen" and not hold.disputes:
                hold.state = "held"
        self._release_due(order, sellers)

    @step(
        when=lambda self: self.orders,
        pick=PICK,
        amounts=st.lists(st.none() | st.just(-1) | AMOUNTS, min_size=2, max_size=2),
    )
    def a_refund_is_requested(self, pick: int, amounts: list[int | None]) -> None:
        order, refund_id = self._order(pick), fresh("r")
        refunds = self._asked(order, set(order.holds), amounts)
        if not refunds:
            return
        event = refund_requested(self.shop, order.data, refunds, refund_id=refund_id)
        told = self._send("buyers_ask", event)
        fits = self._fits(order, refunds)
        assert _types(told)["refund.accepted"] == fits
        if fits:
            self._give_back(order, refunds, refund_id)

    # Sellers, and the bank's word.

    @step(pick=PICK, amount=AMOUNTS)
    def a_seller_withdraws(self, pick: int, amount: int) -> None:
        seller, withdrawal_id = self.sellers[pick % 2], fresh("w")
        told = self._send(
            "seller_withdraws", self.platform.withdraws(seller, amount, withdrawal_id=withdrawal_id)
        )
        fits = amount <= self.available[seller]
        assert _types(told)["withdrawal.accepted"] == fits
        if fits:
            self.available[seller] -= amount
            end_to_end_id = self.desk.value(
                "SELECT end_to_end_id FROM transfers JOIN withdrawals USING (payout_id)"
                " WHERE withdrawal_id = :id",
                id=withdrawal_id,
            )
            payout = self.payouts[withdrawal_id] = AtBank({seller: amount}, end_to_end_id)
            self._submitted(payout)

    @step(
        mood=st.sampled_from(["settle", "reject", "accept", "accept in silence", "lose"]),
        decided=st.none() | st.sampled_from([BankWord.SETTLED, BankWord.REJECTED]),
        is_asked=st.booleans(),
    )
    def the_bank_thinks(self, mood: str, decided: BankWord | None, *, is_asked: bool) -> None:
        """It may decide what it has, be asked about it, and will answer in another mood from here on."""
        self.bank.mood = mood
        if decided is not None:
            for id_ in [id_ for id_, word in self.bank.words.items() if word is BankWord.PENDING]:
                self.bank.words[id_] = decided
        if is_asked:
            self.desk.ring_alarms("check_refund")
            self.desk.ring_alarms("check_transfer")
            for instruction in [*self.refunds.values(), *self.payouts.values()]:
                if instruction.state in OPEN_AT_BANK:
                    self._asked_for(instruction)

    @step(pick=PICK)
    def a_settled_transfer_comes_back(self, pick: int) -> None:
        settled = [
            at_bank
            for at_bank in [*self.refunds.values(), *self.payouts.values()]
            if at_bank.state == "settled"
        ]
        if not settled:
            return
        back = settled[pick % len(settled)]
        self.bank.words[back.end_to_end_id] = BankWord.RETURNED
        # The bank's list has one position for all examples, as the cursor on it has.
        position = self.desk.execute("SELECT coalesce(max(position), 0) AS at FROM bank_cursors")[0].at
        self.bank.returned = [ReturnedTransfer(position + 1, back.end_to_end_id, "AC04")]
        self.desk.collect_returns()
        back.state = "returned"
        if back.order is None:
            for seller, amount in back.parts.items():
                self.paid_out[seller] -= amount
                self.available[seller] += amount

    # What must be true after every step.

    @invariant()
    def every_account_holds_what_the_model_says(self) -> None:
        if hasattr(self, "shop"):
            assert self._ledger() == self._accounts()
            assert self._house() - self.house_before == self._suspense()

    @invariant()
    def every_hold_is_in_its_state(self) -> None:
        for order in self.orders:
            rows = self.desk.execute(
                "SELECT seller_id, state, refunded_minor, fee_minor FROM holds"
                " WHERE (shop_id, order_id) = (:shop, :order)",
                shop=self.shop,
                order=order.data["order_id"],
            )
            assert {row.seller_id: (row.state, row.refunded_minor, row.fee_minor) for row in rows} == {
                seller: (hold.state, hold.refunded, hold.fee) for seller, hold in order.holds.items()
            }

    # The model.

    def _order(self, pick: int) -> Order:
        return self.orders[pick % len(self.orders)]

    def _send(self, how: str, event: Any) -> list[Told]:
        self.sent.append((how, event))
        told: list[Told] = getattr(self.desk, how)(event)
        return told

    def _announce(self, data: dict[str, Any]) -> None:
        self._send("shop_says", order_paid(self.shop, data))
        holds = {part["seller_id"]: Hold(part["amount"], self.fee_bps) for part in data["splits"]}
        order = Order(data, holds)
        self.orders.append(order)
        if self.spare_credits[data["bank_reference"]]:
            self.spare_credits[data["bank_reference"]] -= 1
            order.funded = True

    def _credit(self, data: dict[str, Any]) -> None:
        reference = data["bank_reference"]
        self.amount_of[reference] = data["amount"]
        self._send("bank_says", bank_credited(credit_data(data)))
        order = next((order for order in self.orders if order.data is data), None)
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
            self._release_due(order)
            for refund in self.refunds.values():
                if refund.order is order and refund.state == "waiting":
                    self._submitted(refund)

    def _release_due(self, order: Order, sellers: set[str] | None = None) -> None:
        may = order.due and not order.charged_back and (order.funded or self.announced)
        for seller, hold in order.holds.items():
            if may and hold.state == "held" and (sellers is None or seller in sellers):
                hold.state = "released"
                # Python's round() of a fraction is half to even.
                hold.fee = round(Fraction(hold.left * hold.fee_bps, 10_000))
                self._earn(seller, hold.left - hold.fee)

    def _earn(self, seller: str, amount: int) -> None:
        paid = min(amount, self.owed[seller])
        self.owed[seller] -= paid
        self.available[seller] += amount - paid

    def _claim(self, order: Order) -> None:
        for seller, hold in order.holds.items():
            if hold.state == "released" and not hold.claimed:
                hold.claimed = True
                taken = min(hold.left - hold.fee, self.available[seller])
                self.available[seller] -= taken
                self.owed[seller] += hold.left - hold.fee - taken

    def _asked(self, order: Order, sellers: set[str], amounts: list[int | None]) -> dict[str, int]:
        """`-1` asks for all that is left of it, or for one too many where nothing is."""
        chosen = dict(zip(sorted(sellers), amounts, strict=False))
        return {
            seller: (order.holds[seller].left or 1) if amount == -1 else amount
            for seller, amount in chosen.items()
            if amount is not None
        }

    def _fits(self, order: Order, refunds: dict[str, int]) -> bool:
        return all(
            order.holds[seller].is_open and amount <= order.holds[seller].left
            for seller, amount in refunds.items()
        )

    def _give_back(self, order: Order, refunds: dict[str, int], refund_id: str) -> None:
        for seller, amount in refunds.items():
            hold = order.holds[seller]
            hold.refunded += amount
            if hold.left == 0:
                hold.state = "refunded"
        end_to_end_id = self.desk.value(
            "SELECT end_to_end_id FROM refunds WHERE refund_id = :id AND state <> 'rejected'", id=refund_id
        )
        refund = self.refunds[refund_id] = AtBank(refunds, end_to_end_id, order=order)
        if order.funded:
            self._submitted(refund)

    def _submitted(self, at_bank: AtBank) -> None:
        at_bank.state = "unknown"
        if self.bank.mood in {"settle", "reject", "accept"}:
            self._hear(at_bank, self.bank.words[at_bank.end_to_end_id])

    def _asked_for(self, at_bank: AtBank) -> None:
        word = self.bank.words.get(at_bank.end_to_end_id)
        if word is not None:
            self._hear(at_bank, word)

    def _hear(self, at_bank: AtBank, word: BankWord) -> None:
        at_bank.state = {
            BankWord.SETTLED: "settled",
            BankWord.REJECTED: "failed",
            BankWord.PENDING: "submitted",
        }[word]
        if at_bank.order is None:
            for seller, amount in at_bank.parts.items():
                if word is BankWord.SETTLED:
                    self.paid_out[seller] += amount
                elif word is BankWord.REJECTED:
                    self.available[seller] += amount

    def _accounts(self) -> Counter[tuple[str, str]]:
        expected: Counter[tuple[str, str]] = Counter()
        for order in self.orders:
            if not order.funded:
                expected["", "incoming"] -= order.data["amount"]
            for seller, hold in order.holds.items():
                expected[seller, "held"] += hold.left if hold.is_open else 0
                expected["", "recovered" if hold.claimed else "fees"] += hold.fee
                if hold.claimed:
                    expected["", "recovered"] += hold.left - hold.fee
        for refund in self.refunds.values():
            for seller, amount in refund.parts.items():
                expected[seller, "refundable"] += 0 if refund.state == "settled" else amount
        for payout in self.payouts.values():
            for seller, amount in payout.parts.items():
                in_payout = payout.state in {"waiting", *OPEN_AT_BANK}
                expected[seller, "in_payout"] += amount if in_payout else 0
        for seller in self.sellers:
            expected[seller, "available"] += self.available[seller]
            expected[seller, "receivable"] -= self.owed[seller]
        return Counter({key: value for key, value in expected.items() if value})

    def _suspense(self) -> int:
        return sum(
            (self.spare_credits[reference] - self.early_debits[reference]) * amount
            for reference, amount in self.amount_of.items()
        )

    # What the books say.

    def _ledger(self) -> Counter[tuple[str, str]]:
        """Every account but cash and received, which are what all others leave over."""
        rows = self.desk.execute(
            """
            SELECT CASE WHEN account IN ('held', 'available', 'in_payout', 'refundable', 'receivable')
                        THEN seller_id ELSE '' END AS owner,
                   account, sum(credit_minor) - sum(debit_minor) AS minor
            FROM entries WHERE shop_id = :shop AND account NOT IN ('bank_cash', 'received')
            GROUP BY 1, 2 HAVING sum(credit_minor) <> sum(debit_minor)
            """,
            shop=self.shop,
        )
        return Counter({(row.owner, row.account): int(row.minor) for row in rows})

    def _house(self) -> int:
        with self.engine.connect() as connection:
            return int(
                connection.execute(
                    text(
                        "SELECT coalesce(sum(credit_minor) - sum(debit_minor), 0) FROM entries"
                        " WHERE account = 'suspense'"
                    )
                ).scalar_one()
            )


def what_the_audit_finds(engine: Engine) -> list[str]:
    """Return the product's own checks that fail on what the runs have left behind."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(
            text(
                "INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :day)"
                " ON CONFLICT DO NOTHING"
            ),
            {"day": DAY_SECONDS},
        )
        return [str(finding) for finding in run_audit(connection) if not finding.ok]


def _types(told: list[Told]) -> Counter[str]:
    return Counter(event.type for event in told)


@pytest.mark.timeout(300)  # a quarter of a minute where nothing else runs
def test_the_handlers_agree_with_the_model_in_any_order_of_events(engine: Engine) -> None:
    class OnThisDatabase(Recourse):
        pass

    OnThisDatabase.engine = engine
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # Hypothesis leaves it untyped
        OnThisDatabase,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    assert what_the_audit_finds(engine) == []
