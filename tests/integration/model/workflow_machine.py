"""
The real handlers on a real PostgreSQL beside the plain books, in any order that Hypothesis can think of.

After every step each account must hold exactly what the books say, each hold must be in its state, and
every check of the audit must pass.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from plain_books import OPEN_AT_BANK, AtBank, Order, PlainBooks
from sqlalchemy import Engine, text
from workflow_support.banks import MoodyBank
from workflow_support.books import what_is_wrong
from workflow_support.desk import DAY_SECONDS, Desk, Told
from workflow_support.events import (
    PASSWORD,
    WRONG_PASSWORD,
    an_event,
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
from workflow_support.stepped_clock import SteppedClock

from infra.postgres.audit import run_audit
from infra.postgres.ledger_store import seal_postings
from infra.postgres.outbox import CommandRow
from infra.postgres.tables import metadata
from infra.rabbitmq.ingress import InboundEvent
from workers.payout.transfers import BankWord
from workers.relay.sweep import sweep

BEGINNING = datetime(2030, 1, 1, 12, tzinfo=UTC)
PERIOD_SECONDS = 3 * DAY_SECONDS
HOUR, MINUTE = 3_600, 60
# As in production; the clock moves by multiples of 20 seconds, so nothing is ever on its edge.
SWEEP_GRACE_SECONDS = 15
# The audit lets what is due rest for 15 minutes, since the sweep finds it long before.
UNSWEPT_SECONDS = 14 * MINUTE
LOCKED_AFTER = 5

# Small, so that halves, ones and empty holds come up often.
AMOUNTS = st.integers(1, 400)
PICK = st.integers(0, 10**6)
MOST_ORDERS = 3
# What a shop's answer to the same key with other content looks like; a bank gets no answer.
OTHER_CONTENT: dict[str, dict[str, Any]] = {
    "order.paid": {"buyer_id": "somebody-else"},
    "bank.credited": {"booked_at": "2026-11-23T08:00:01Z"},
    "bank.debited": {"booked_at": "2026-11-23T08:00:01Z"},
    "dispute.opened": {"reason": "it came broken"},
    "dispute.resolved": {"refunds": [{"seller_id": "nobody", "amount": 999}]},
    "refund.requested": {"refunds": [{"seller_id": "nobody", "amount": 999}]},
    "withdrawal.requested": {"amount": 999},
}
KEPT = {"deployment", "holdfast_keys", "seal"}

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


class Workflow(RuleBasedStateMachine):
    """
    One rule chooses among all steps.

    With a rule each, Hypothesis would leave out a random half of them in every run, and hardly any would
    get as far as a credit that goes and comes again.
    """

    engine: Engine
    clock: SteppedClock

    def __init__(self) -> None:
        super().__init__()
        self.bank = MoodyBank()
        self.desk = Desk(self.engine, bank=self.bank)
        self.unannounced: list[dict[str, Any]] = []
        self.sent: list[tuple[str, InboundEvent]] = []
        # Alarms, with the time at which each is to ring.
        self.alarms: list[tuple[int, CommandRow]] = []
        self.unswept_seconds = 0
        self.behind_seconds = 0

    @initialize(funding=st.sampled_from(["confirmed", "announced"]))
    def begin(self, funding: str) -> None:
        forget_everything(self.engine)
        self.clock.set(BEGINNING)
        self.shop = self.desk.a_shop(funding=funding)
        self.platform = self.desk.platform(self.shop)
        sellers = [self.desk.a_seller(self.platform) for _ in range(2)]
        self.books = PlainBooks(sellers, announced=funding == "announced", period_seconds=PERIOD_SECONDS)

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
        when=lambda self: len(self.books.orders) < MOST_ORDERS,
        amounts=st.lists(AMOUNTS, min_size=1, max_size=2),
        so_far=st.sampled_from(["paid", "credited", "due", "released"]),
        fee_bps=st.integers(0, 10_000),
    )
    def an_order_is_paid(self, amounts: list[int], so_far: str, fee_bps: int) -> None:
        """On terms that the shop has just agreed; orders of before keep theirs."""
        self.books.fee_bps = fee_bps
        self.desk.execute("UPDATE shops SET fee_bps = :fee WHERE shop_id = :s", fee=fee_bps, s=self.shop)
        self._announce(order_data(splits=dict(zip(self.books.sellers, amounts, strict=False))))
        if so_far != "paid":
            self._credit(self.books.orders[-1].data)
        if so_far == "due":
            self.the_clock_jumps(PERIOD_SECONDS - 10 * MINUTE, "ring")
            self.the_clock_ticks(10, rings=0, early=False)
        elif so_far == "released":
            self.the_clock_jumps(PERIOD_SECONDS, "ring")

    @step(when=lambda self: len(self.books.orders) + len(self.unannounced) < MOST_ORDERS, amount=AMOUNTS)
    def money_comes_before_its_order(self, amount: int) -> None:
        data = order_data(splits={self.books.sellers[0]: amount})
        self.unannounced.append(data)
        self._credit(data)

    @step(when=lambda self: self.unannounced)
    def the_order_of_early_money_is_paid(self) -> None:
        self._announce(self.unannounced.pop())

    @step(when=lambda self: self.books.orders, pick=PICK)
    def the_bank_credits(self, pick: int) -> None:
        self._credit(self._order(pick).data)

    @step(when=lambda self: self.books.orders or self.unannounced, pick=PICK)
    def the_bank_takes_back(self, pick: int) -> None:
        known = [order.data for order in self.books.orders] + self.unannounced
        data = known[pick % len(known)]
        self._send("bank_says", bank_debited(debit_data(data)))
        self.books.debit(data)

    @step(when=lambda self: self.sent, pick=PICK)
    def a_message_comes_again(self, pick: int) -> None:
        how, event = self.sent[pick % len(self.sent)]
        getattr(self.desk, how)(event)

    @step(when=lambda self: self.sent, pick=PICK, under_its_id=st.booleans())
    def a_message_comes_again_with_other_content(self, pick: int, *, under_its_id: bool) -> None:
        """Under its own id, or under a new one for the same order, withdrawal, dispute or statement line."""
        how, event = self.sent[pick % len(self.sent)]
        type_ = event.envelope.type
        data = {**event.envelope.data, **OTHER_CONTENT[type_]}  # type: ignore[dict-item]  # it is JSON
        event_id = event.envelope.id if under_its_id else fresh("e")
        told = getattr(self.desk, how)(an_event(event.envelope.source, type_, data, event_id=event_id))
        if how != "bank_says":
            (answer,) = told
            # A dispute that was refused, or is resolved, has its own words for a second attempt; one whose
            # resolution was refused is still open, and another resolution is judged anew.
            expected = {"conflicting_duplicate", "already_resolved"}
            if not under_its_id and data.get("dispute_id") in self.books.disputes:
                expected = {"conflicting_duplicate", "unknown_seller"}
            assert answer.type.endswith(".rejected"), answer
            assert answer.data["reason"] in expected, answer

    # Time.

    @step(
        when=lambda self: self.books.orders,
        often=2,
        seconds=st.sampled_from(
            [3 * HOUR, DAY_SECONDS, PERIOD_SECONDS - 10 * MINUTE, PERIOD_SECONDS, 30 * DAY_SECONDS]
        ),
        alarms=st.sampled_from(["ring", "ring twice", "are lost"]),
    )
    def the_clock_jumps(self, seconds: int, alarms: str) -> None:
        """Alarms that fall due meanwhile ring, ring twice or are lost; the sweep makes good what was lost."""
        self._clock_forward(seconds)
        rings = {"ring": 1, "ring twice": 2, "are lost": 0}[alarms]
        due = self._take_due_alarms()
        for _ in range(rings):
            self._ring(due)
        if rings:
            self.books.release_due(self.books.orders)
        self._clock_forward(MINUTE)
        sweep(self.desk.steps, grace_seconds=SWEEP_GRACE_SECONDS, queue_depth=lambda _queue: 0)
        self.desk.run()
        self.books.release_due(self.books.orders, overdue_by=SWEEP_GRACE_SECONDS)
        self._bank_was_asked()
        self.unswept_seconds = 0

    @step(
        when=lambda self: self.books.orders and self.unswept_seconds <= UNSWEPT_SECONDS - 5 * MINUTE,
        often=2,
        minutes=st.sampled_from([1, 5]),
        rings=st.integers(0, 2),
        early=st.booleans(),
    )
    def the_clock_ticks(self, minutes: int, rings: int, *, early: bool) -> None:
        """What is due by now rings, late, once or twice, or later still; others may ring early."""
        self._clock_forward(minutes * MINUTE)
        if early:
            ringing = [row for _, row in self.alarms if row.command == "release_hold"]
            self.alarms = [alarm for alarm in self.alarms if alarm[1].command != "release_hold"]
            self._ring(ringing)
            self.books.release_due(self.books.orders)
        due = self._take_due_alarms() if rings else []
        for _ in range(rings):
            self._ring(due)
        if rings:
            self.books.release_due(self.books.orders)
            if any(row.command.startswith("check_") for row in due):
                self._bank_was_asked()

    @step(when=lambda self: self.books.orders and not self.behind_seconds)
    def the_clock_is_set_back(self) -> None:
        self.clock.step(-20)
        self.books.now -= 20
        self.behind_seconds = 20

    @step()
    def the_ledger_is_sealed(self) -> None:
        with self.engine.begin() as connection:
            seal_postings(connection)

    # Recourse.

    @step(when=lambda self: self.books.orders, pick=PICK, whom=st.sampled_from(["all", "first", "last"]))
    def a_dispute_is_opened(self, pick: int, whom: str) -> None:
        order, dispute_id = self._order(pick), fresh("d")
        sellers = list(order.holds)
        named = {"all": sellers, "first": sellers[:1], "last": sellers[-1:]}[whom]
        extra = {} if whom == "all" else {"seller_ids": named}
        told = self._send("buyers_ask", dispute_opened(self.shop, order.data, dispute_id=dispute_id, **extra))
        frozen = self.books.freeze(order, named, dispute_id)
        assert _types(told)["dispute.accepted"] == bool(frozen)
        assert _types(told)["hold.frozen"] == len(frozen)

    @step(
        when=lambda self: self.books.disputes,
        pick=PICK,
        amounts=st.lists(st.none() | st.just(-1) | AMOUNTS, min_size=2, max_size=2),
    )
    def a_dispute_is_resolved(self, pick: int, amounts: list[int | None]) -> None:
        """None gives that seller's part to the seller, -1 to the buyer, a number divides it."""
        dispute_id = list(self.books.disputes)[pick % len(self.books.disputes)]
        order, sellers = self.books.disputes[dispute_id]
        refunds = _asked(order, sellers, amounts)
        told = self._send("buyers_ask", dispute_resolved(self.shop, dispute_id, refunds))
        fits = self.books.fits(order, refunds)
        assert _types(told)["dispute.accepted"] == fits
        if fits:
            if refunds:
                self._give_back(order, refunds, dispute_id)
            self.books.unfreeze(dispute_id)

    @step(
        when=lambda self: self.books.orders,
        pick=PICK,
        amounts=st.lists(st.none() | st.just(-1) | AMOUNTS, min_size=2, max_size=2),
    )
    def a_refund_is_requested(self, pick: int, amounts: list[int | None]) -> None:
        order, refund_id = self._order(pick), fresh("r")
        refunds = _asked(order, list(order.holds), amounts)
        if not refunds:
            return
        event = refund_requested(self.shop, order.data, refunds, refund_id=refund_id)
        told = self._send("buyers_ask", event)
        fits = self.books.fits(order, refunds)
        assert _types(told)["refund.accepted"] == fits
        if fits:
            self._give_back(order, refunds, refund_id)

    # Sellers, and the bank's word.

    @step(often=2, pick=PICK, amount=AMOUNTS | st.just(0), knows=st.booleans())
    def a_seller_withdraws(self, pick: int, amount: int, *, knows: bool) -> None:
        """A number of units, or (0) all there is; somebody who does not know the password gets nothing."""
        seller, withdrawal_id = self.books.sellers[pick % 2], fresh("w")
        amount = amount or self.books.available[seller] or 1
        password = PASSWORD if knows else WRONG_PASSWORD
        event = self.platform.withdraws(seller, amount, withdrawal_id=withdrawal_id, password=password)
        (answer, *_) = self._send("seller_withdraws", event)
        if answer.type == "withdrawal.accepted":
            assert knows
            assert amount <= self.books.available[seller]
            self.books.wrong_passwords[seller] = 0
            end_to_end_id = self.desk.value(
                "SELECT end_to_end_id FROM transfers JOIN withdrawals USING (payout_id)"
                " WHERE withdrawal_id = :id",
                id=withdrawal_id,
            )
            self._submitted(self.books.reserve(seller, amount, end_to_end_id))
            return
        assert answer.type == "withdrawal.rejected"
        match answer.data["reason"]:
            case "locked":
                assert self.books.wrong_passwords[seller] >= LOCKED_AFTER
            case "wrong_password":
                assert not knows
                self.books.wrong_passwords[seller] += 1
            case "insufficient_funds":
                assert knows
                assert amount > self.books.available[seller]
                self.books.wrong_passwords[seller] = 0
            case other:
                raise AssertionError(other)

    @step(
        mood=st.sampled_from(["settle", "reject", "accept", "accept in silence", "lose"]),
        decided=st.none() | st.sampled_from([BankWord.SETTLED, BankWord.REJECTED]),
        is_asked=st.booleans(),
    )
    def the_bank_thinks(self, mood: str, decided: BankWord | None, *, is_asked: bool) -> None:
        """It may decide what it has, be asked about it, and will answer in another mood from here on."""
        self.bank.mood = mood
        if decided is not None:
            self.bank.decides(decided)
        if is_asked:
            self._gather_alarms()
            asking = [row for _, row in self.alarms if row.command.startswith("check_")]
            self.alarms = [alarm for alarm in self.alarms if alarm[1] not in asking]
            self._ring(asking)
            self._bank_was_asked()

    @step(when=lambda self: any(one.state == "settled" for one in self.books.at_bank), pick=PICK)
    def a_settled_transfer_comes_back(self, pick: int) -> None:
        settled = [at_bank for at_bank in self.books.at_bank if at_bank.state == "settled"]
        back = settled[pick % len(settled)]
        self.bank.sends_back(back.end_to_end_id)
        self.desk.collect_returns()
        self.books.take_back_in(back)

    # What must be true after every step.

    @invariant()
    def every_account_holds_what_the_books_say(self) -> None:
        if hasattr(self, "books"):
            assert _ledger(self.desk) == self.books.accounts()

    @invariant()
    def every_hold_is_in_its_state(self) -> None:
        if not hasattr(self, "books"):
            return
        rows = self.desk.execute("SELECT order_id, seller_id, state, refunded_minor, fee_minor FROM holds")
        assert {tuple(row) for row in rows} == {
            (order.data["order_id"], seller, hold.state, hold.refunded, hold.fee)
            for order in self.books.orders
            for seller, hold in order.holds.items()
        }

    @invariant()
    def the_audit_passes(self) -> None:
        """All that was to be published counts as published: the desk took it."""
        if not hasattr(self, "books"):
            return
        self.desk.execute("UPDATE outbox SET published_at = clock_timestamp() WHERE published_at IS NULL")
        with self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            broken = [finding for finding in run_audit(connection) if not finding.ok]
        assert not broken, [(finding.check.name, finding.examples) for finding in broken]

    # How it is done.

    def _order(self, pick: int) -> Order:
        return self.books.orders[pick % len(self.books.orders)]

    def _send(self, how: str, event: InboundEvent) -> list[Told]:
        self.sent.append((how, event))
        told: list[Told] = getattr(self.desk, how)(event)
        return told

    def _announce(self, data: dict[str, Any]) -> None:
        self._send("shop_says", order_paid(self.shop, data))
        self.books.announce(data)

    def _credit(self, data: dict[str, Any]) -> None:
        self._send("bank_says", bank_credited(credit_data(data)))
        for refund in self.books.credit(data):
            self._submitted(refund)

    def _give_back(self, order: Order, refunds: dict[str, int], refund_id: str) -> None:
        end_to_end_id = self.desk.value(
            "SELECT end_to_end_id FROM refunds WHERE refund_id = :id AND state <> 'rejected'", id=refund_id
        )
        refund = self.books.give_back(order, refunds, end_to_end_id)
        if order.funded:
            self._submitted(refund)

    def _submitted(self, at_bank: AtBank) -> None:
        at_bank.state = "unknown"
        if self.bank.mood in {"settle", "reject", "accept"}:
            self.books.hear(at_bank, self.bank.words[at_bank.end_to_end_id])

    def _bank_was_asked(self) -> None:
        for at_bank in self.books.at_bank:
            word = self.bank.words.get(at_bank.end_to_end_id)
            if at_bank.state in OPEN_AT_BANK and word is not None:
                self.books.hear(at_bank, word)

    def _clock_forward(self, seconds: int) -> None:
        self._gather_alarms()
        self.clock.step(seconds)
        self.books.now += seconds
        self.unswept_seconds += seconds
        self.behind_seconds = 0

    def _gather_alarms(self) -> None:
        """Alarms are set at the present time; the clock stands still until the next step."""
        self.alarms += [(self.books.now - -row.delay_ms // 1000, row) for row in self.desk.delayed]
        self.desk.delayed = []

    def _take_due_alarms(self) -> list[CommandRow]:
        self._gather_alarms()
        due = [row for at, row in self.alarms if at <= self.books.now]
        self.alarms = [alarm for alarm in self.alarms if alarm[0] > self.books.now]
        return due

    def _ring(self, rows: Sequence[CommandRow]) -> None:
        self.desk.commands += rows
        self.desk.run()
        self._gather_alarms()


def _ledger(desk: Desk) -> dict[tuple[str, str], int]:
    """Every account but cash and received, which are what all others leave over."""
    rows = desk.execute(
        """
        SELECT CASE WHEN account IN ('held', 'available', 'in_payout', 'refundable', 'receivable')
                    THEN seller_id ELSE '' END AS owner,
               account, sum(credit_minor) - sum(debit_minor) AS minor
        FROM entries WHERE account NOT IN ('bank_cash', 'received')
        GROUP BY 1, 2 HAVING sum(credit_minor) <> sum(debit_minor)
        """
    )
    return {(row.owner, row.account): int(row.minor) for row in rows}


def _asked(order: Order, sellers: Sequence[str], amounts: list[int | None]) -> dict[str, int]:
    """`-1` asks for all that is left of it, or for one too many where nothing is."""
    return {
        seller: (order.holds[seller].left or 1) if amount == -1 else amount
        for seller, amount in zip(sellers, amounts, strict=False)
        if amount is not None
    }


def _types(told: list[Told]) -> Counter[str]:
    return Counter(event.type for event in told)


def forget_everything(engine: Engine) -> None:
    """Empty the tables, those that refuse it too: the next example begins with a new history."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in metadata.sorted_tables:
            if table.name not in KEPT:
                connection.execute(text(f"DELETE FROM {table.name}"))
        connection.execute(
            text(
                "INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :day)"
                " ON CONFLICT DO NOTHING"
            ),
            {"day": DAY_SECONDS},
        )
