"""After a restore: what the report leaves to people, and what they can do about it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from command_runs import Holdfast
from workflow_support.banks import MoodyBank, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import (
    SellersPlatform,
    bank_credited,
    credit_data,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)
from workflow_support.races import met_at_a_lock

from infra.postgres.outbox import CommandRow
from ledger.ids import key_id
from ops import bank_transfers
from ops.store.actions import Action, record_actions
from workers.payout import adoptions as payout_adoptions
from workers.payout.transfers import BankWord, ListedTransfer, TransferAnswer, TransferInstruction

DeskWith = Callable[[ScriptedBank | MoodyBank], Desk]
WHY = ("--why", "restored to 14:05", "--operator", "ada")


class ListingBank(MoodyBank):
    """A bank that lists all that it was told, as only a recovery asks."""

    def __init__(self) -> None:
        super().__init__()
        self.amounts: dict[str, tuple[int, str]] = {}

    def submit(self, instruction: TransferInstruction) -> TransferAnswer:
        self.amounts[instruction.end_to_end_id] = (instruction.amount_minor, instruction.currency)
        return super().submit(instruction)

    def transfers_after(self, position: int, limit: int) -> list[ListedTransfer]:
        listed = [
            ListedTransfer(number, id_, word, *self.amounts[id_])
            for number, (id_, word) in enumerate(self.words.items(), start=1)
        ]
        return [entry for entry in listed if entry.position > position][:limit]

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch) -> ListingBank:
    bank = ListingBank()
    monkeypatch.setenv("HOLDFAST_BANK_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bank_transfers, "HttpBank", lambda *_given, **_named: bank)
    return bank


def reported(holdfast: Holdfast, bank: ListingBank) -> dict[str, str]:
    """Return what the report says of transfers of this bank; the database has had others."""
    ran = holdfast("recover", "report", "--json")
    assert ran.exit_code in {0, 1}, ran.err
    return {one["subject"]: one["what"] for one in ran.json["decisions"] if one["subject"] in bank.amounts}


def _relay(desk: Desk, since: int) -> None:
    """Carry out what a command of `holdfast` has left in the outbox since then, as the relay would."""
    desk.handle(
        *[
            CommandRow(row.queue, row.command, row.arguments, row.delay_ms)
            for row in desk.execute(
                "SELECT queue, command, CAST(arguments AS text) AS arguments, delay_ms FROM outbox"
                " WHERE outbox_id > :since AND command IS NOT NULL AND delay_ms = 0 ORDER BY outbox_id",
                since=since,
            )
        ]
    )
    desk.run()


def a_refund(desk: Desk, shop: str, amount: int = 4_000) -> str:
    order = order_data(splits={"s-1": 10_000})
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    refund = fresh("r")
    desk.buyers_ask(refund_requested(shop, order, {"s-1": amount}, refund_id=refund))
    return refund


# --- what is reported -----------------------------------------------------------------------------


def test_what_both_know_is_not_reported_in_whatever_state_it_is(
    set_up: Holdfast, desk_with: DeskWith, bank: ListingBank
) -> None:
    desk = desk_with(bank)
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    for mood in ("settle", "reject", "accept", "accept in silence"):
        bank.mood = mood
        desk.seller_withdraws(platform.withdraws(seller, 1_000))
    bank.mood = "settle"
    desk.seller_withdraws(platform.withdraws(seller, 1_000))
    *_, came_back = bank.words
    bank.sends_back(came_back)
    assert reported(set_up, bank) == {}, "the list of returns tells it"
    desk.collect_returns()
    bank.mood = "reject"
    refused, by_hand = a_refund(desk, shop), a_refund(desk, shop)
    bank.mood = "settle"
    returned = a_refund(desk, shop)
    *_, came_back = bank.words
    bank.sends_back(came_back)
    desk.collect_returns()
    mark = int(desk.value("SELECT max(outbox_id) FROM outbox"))
    assert set_up("refund", "settle", "--shop", shop, "--refund", by_hand, *WHY).exit_code == 0
    for refund in (refused, returned):
        assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 0
    _relay(desk, mark)
    assert len(set(bank.words)) == 5 + 3 + 2
    assert reported(set_up, bank) == {}


@pytest.mark.parametrize("state", ["checking", "pending"])
def test_a_withdrawal_that_was_said_again_and_is_no_transfer_yet_is_known(
    set_up: Holdfast, desk_with: DeskWith, bank: ListingBank, state: str
) -> None:
    """It waits for its password, for people or to cool off, and goes out under the id that the bank knows."""
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    withdrawal = fresh("w")
    id_ = forgotten_payout(bank, platform.shop, withdrawal, 4_000)
    assert reported(set_up, bank) == {id_: "transfer_unknown_to_us"}
    said_again = platform.withdraws(seller, 4_000, withdrawal_id=withdrawal)
    if state == "checking":
        desk.book_withdrawals(said_again)
    else:
        limits = ("seller", "limits", platform.shop, seller, "--currency", "CNY", "--per-withdrawal", "1000")
        assert set_up(*limits).exit_code == 0
        desk.seller_withdraws(said_again)
    assert desk.value("SELECT state FROM withdrawals WHERE withdrawal_id = :w", w=withdrawal) == state
    assert reported(set_up, bank) == {}


def test_a_withdrawal_that_was_refused_when_it_was_said_again_is_reported_as_paid(
    set_up: Holdfast, desk_with: DeskWith, bank: ListingBank
) -> None:
    """Its money was not released again yet, and a refusal is final."""
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=3_999)
    withdrawal = fresh("w")
    id_ = forgotten_payout(bank, platform.shop, withdrawal, 4_000)
    desk.seller_withdraws(platform.withdraws(seller, 4_000, withdrawal_id=withdrawal))
    assert reported(set_up, bank) == {id_: "transfer_paid_though_refused"}


def test_what_ends_while_the_report_is_made_is_not_reported(
    set_up: Holdfast, desk_with: DeskWith, bank: ListingBank
) -> None:
    """The bank was asked, then it settled, then we booked it, then the database was read."""
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    bank.mood = "accept"
    desk.seller_withdraws(platform.withdraws(seller, 1_000))
    list_before = bank.transfers_after

    def list_and_settle(position: int, limit: int) -> list[ListedTransfer]:
        listed = list_before(position, limit)
        bank.decides(BankWord.SETTLED)
        desk.ring_alarms("check_transfer")
        return listed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "transfers_after", list_and_settle)
        assert reported(set_up, bank) == {}
    assert desk.value("SELECT state FROM transfers WHERE end_to_end_id = :id", id=next(iter(bank.words))) == (
        "settled"
    )


def forgotten_payout(
    bank: ListingBank, shop: str, withdrawal: str, amount: int, *, word: BankWord = BankWord.SETTLED
) -> str:
    """A payout that the bank has made and of which the database knows nothing; return its id."""
    id_ = key_id("payout", shop, withdrawal).hex
    bank.words[id_] = word
    bank.amounts[id_] = (amount, "CNY")
    return id_


# --- taken back into the books --------------------------------------------------------------------


@pytest.fixture
def lost(desk_with: DeskWith, bank: ListingBank) -> "LostPayout":
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop(fee_bps=0))
    seller = desk.a_seller(platform, available=10_000)
    withdrawal = fresh("w")
    return LostPayout(
        desk, platform, seller, withdrawal, forgotten_payout(bank, platform.shop, withdrawal, 4_000)
    )


@dataclass(frozen=True, slots=True)
class LostPayout:
    """4,000 that the bank has paid to a seller with 10,000 that are withdrawable here."""

    desk: Desk
    platform: SellersPlatform
    seller: str
    withdrawal: str
    end_to_end_id: str

    @property
    def named(self) -> tuple[str, ...]:
        of = ("--shop", self.platform.shop, "--withdrawal", self.withdrawal)
        return ("recover", "adopt", "payout", *of, "--seller", self.seller, "--destination", "d-1", *WHY)

    @property
    def mark(self) -> int:
        return int(self.desk.value("SELECT coalesce(max(outbox_id), 0) FROM outbox"))

    def has(self) -> dict[str, int]:
        return {
            account: minor
            for account, minor in balance(self.desk.engine, self.platform.shop, self.seller).items()
            if minor and account in {"available", "in_payout", "receivable", "bank_cash"}
        }

    def spends(self, amount: int) -> None:
        told = self.desk.seller_withdraws(self.platform.withdraws(self.seller, amount))
        assert told[-1].type == "payout.settled"


def in_order(holdfast: Holdfast) -> None:
    ran = holdfast("audit", "--json")
    assert [check["name"] for check in ran.json["checks"] if not check["ok"]] == []


def test_a_payout_that_nobody_says_again_is_taken_into_the_books_once(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout
) -> None:
    mark = lost.mark
    dry = set_up(*lost.named, "--dry-run", "--json")
    assert (dry.exit_code, dry.json["amount"], dry.json["owed"], dry.json["dry_run"]) == (0, 4_000, 0, True)
    assert (lost.has(), lost.mark) == ({"available": 10_000}, mark), "nothing is changed"
    first = set_up(*lost.named, "--json")
    assert (first.exit_code, first.json["again"], first.json["at_bank"]) == (0, False, "settled")
    assert lost.has() == {"available": 6_000, "in_payout": 4_000}
    assert reported(set_up, bank) == {}
    for again in (set_up(*lost.named, "--json"), set_up(*lost.named, "--dry-run", "--json")):
        assert (again.exit_code, again.json["again"]) == (0, True)
    _relay(lost.desk, mark)
    assert lost.has() == {"available": 6_000, "bank_cash": 4_000}
    assert types_since(lost.desk, lost.withdrawal) == [
        "withdrawal.accepted",
        "payout.submitted",
        "payout.settled",
    ]
    assert bank.amounts == {lost.end_to_end_id: (4_000, "CNY")}, "nothing was sent"
    actions = set_up("trace", "--shop", lost.platform.shop, "--withdrawal", lost.withdrawal, "--json").json
    assert [(a["operator"], a["action"]) for a in actions["actions"]] == [("ada", "payout_adopted")]
    in_order(set_up)


def types_since(desk: Desk, withdrawal: str) -> list[str]:
    return [
        row.type
        for row in desk.execute(
            "SELECT type FROM events WHERE data ->> 'withdrawal_id' = :w ORDER BY occurred_at, type DESC",
            w=withdrawal,
        )
    ]


def test_what_is_not_withdrawable_yet_is_owed_and_paid_off_by_the_next_release(
    set_up: Holdfast, lost: LostPayout
) -> None:
    """The orders that it was paid from are said again, and held for a whole period."""
    lost.spends(9_000)
    mark = lost.mark
    assert set_up(*lost.named, "--json").json["owed"] == 3_000
    _relay(lost.desk, mark)
    assert lost.has() == {"bank_cash": 13_000, "receivable": -3_000}
    in_order(set_up)
    lost.desk.released_order(lost.platform.shop, splits={lost.seller: 5_000})
    assert lost.has() == {"bank_cash": 13_000, "available": 2_000}
    in_order(set_up)


@pytest.mark.parametrize("released", [0, 2_000, 5_000])
def test_an_adopted_payout_that_comes_back_pays_first_what_was_advanced_for_it(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout, released: int
) -> None:
    """Else the seller could withdraw it, while what it was paid from is still to be released."""
    lost.spends(9_000)
    mark = lost.mark
    assert set_up(*lost.named).exit_code == 0
    _relay(lost.desk, mark)
    if released:
        lost.desk.released_order(lost.platform.shop, splits={lost.seller: released})
    bank.sends_back(lost.end_to_end_id)
    lost.desk.collect_returns()
    # Of 10,000 it has spent 9,000; 1,000 of the payout was its own.
    assert lost.has() == {"bank_cash": 9_000, "available": 1_000 + released}
    in_order(set_up)


def test_a_payout_that_had_come_back_already_leaves_nobody_richer(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout
) -> None:
    lost.spends(10_000)
    bank.sends_back(lost.end_to_end_id)
    mark = lost.mark
    assert set_up(*lost.named, "--json").json["owed"] == 4_000
    _relay(lost.desk, mark)
    assert lost.has() == {"bank_cash": 10_000}
    in_order(set_up)


def test_a_shop_that_says_it_again_after_all_gets_the_same_answer_and_nothing_is_paid(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout
) -> None:
    mark = lost.mark
    assert set_up(*lost.named).exit_code == 0
    _relay(lost.desk, mark)
    again = lost.platform.withdraws(lost.seller, 4_000, withdrawal_id=lost.withdrawal)
    assert [told.type for told in lost.desk.seller_withdraws(again)] == ["withdrawal.accepted"]
    other = lost.platform.withdraws(lost.seller, 4_001, withdrawal_id=lost.withdrawal)
    [told] = lost.desk.seller_withdraws(other)
    assert told.data["reason"] == "conflicting_duplicate"
    assert lost.has() == {"available": 6_000, "bank_cash": 4_000}
    in_order(set_up)


def test_a_payout_that_was_refused_when_it_was_said_again_is_adopted_beside_its_refusal(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout
) -> None:
    lost.spends(7_000)
    refused = lost.platform.withdraws(lost.seller, 4_000, withdrawal_id=lost.withdrawal)
    assert lost.desk.seller_withdraws(refused)[-1].data["reason"] == "insufficient_funds"
    mark = lost.mark
    assert set_up(*lost.named, "--json").json["owed"] == 1_000
    _relay(lost.desk, mark)
    assert reported(set_up, bank) == {}
    assert lost.has() == {"bank_cash": 11_000, "receivable": -1_000}
    told = types_since(lost.desk, lost.withdrawal)
    assert sorted(told) == [
        "payout.settled",
        "payout.submitted",
        "withdrawal.accepted",
        "withdrawal.rejected",
    ]
    assert {event.type for event in lost.desk.seller_withdraws(refused)} == {
        "withdrawal.rejected",
        "withdrawal.accepted",
    }
    in_order(set_up)


@pytest.mark.parametrize("state", ["checking", "pending", "accepted"])
def test_what_was_said_again_and_is_on_its_way_is_left_to_the_workers(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout, state: str
) -> None:
    said = lost.platform.withdraws(lost.seller, 4_000, withdrawal_id=lost.withdrawal)
    if state == "checking":
        lost.desk.book_withdrawals(said)
    else:
        if state == "pending":
            limits = ("--currency", "CNY", "--per-withdrawal", "1000")
            set_up("seller", "limits", lost.platform.shop, lost.seller, *limits)
        else:
            # It goes out under the id that the bank knows.
            del bank.words[lost.end_to_end_id]
        lost.desk.seller_withdraws(said)
    before = lost.desk.value("SELECT count(*) FROM postings")
    ran = set_up(*lost.named)
    assert (ran.exit_code, state in ran.err) == (1, True)
    assert lost.desk.value("SELECT count(*) FROM postings") == before


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--withdrawal", "w-other", "the bank has no transfer"),
        ("--shop", "other", "the bank has no transfer"),
        ("--seller", "s-other", "no seller"),
        ("--destination", "d-other", "no destination"),
    ],
)
def test_a_slip_of_the_pen_adopts_nothing(
    set_up: Holdfast, lost: LostPayout, option: str, value: str, says: str
) -> None:
    named = list(lost.named)
    named[named.index(option) + 1] = value
    before = lost.has()
    ran = set_up(*named)
    assert (ran.exit_code, says in ran.err) == (1, True), ran.err
    assert lost.has() == before


def test_what_the_bank_has_rejected_is_not_adopted(
    set_up: Holdfast, bank: ListingBank, lost: LostPayout
) -> None:
    bank.words[lost.end_to_end_id] = BankWord.REJECTED
    assert set_up(*lost.named).exit_code == 1
    assert lost.has() == {"available": 10_000}


def test_a_large_adoption_needs_a_second_name(set_up: Holdfast, bank: ListingBank, lost: LostPayout) -> None:
    bank.amounts[lost.end_to_end_id] = (200_000, "CNY")
    assert set_up(*lost.named).exit_code == 2
    assert set_up(*lost.named, "--second-operator", "ADA").exit_code == 2
    assert set_up(*lost.named, "--second-operator", "grace").exit_code == 0


def test_two_adoptions_at_once_are_one(set_up: Holdfast, lost: LostPayout) -> None:
    payout = payout_adoptions.LostPayout(
        lost.platform.shop, lost.withdrawal, lost.end_to_end_id, lost.seller, "d-1", 4_000, "CNY"
    )
    outcomes: list[bool] = []

    def adopt() -> None:
        with lost.desk.steps.begin("adopt_transfer") as step:
            outcomes.append(payout_adoptions.adopt_payout(step, payout).again)
            details = {"payout_id": payout.payout_id}
            record_actions(step.connection, [Action("ada", "payout_adopted", "it", "why", details)])

    met_at_a_lock(
        lost.desk.engine,
        "SELECT 1 FROM sellers WHERE (shop_id, seller_id) = (:shop, :seller) FOR UPDATE",
        adopt,
        adopt,
        shop=lost.platform.shop,
        seller=lost.seller,
    )
    assert sorted(outcomes) == [False, True]
    assert lost.has() == {"available": 6_000, "in_payout": 4_000}


# --- refunds --------------------------------------------------------------------------------------


def a_lost_refund(desk: Desk, bank: ListingBank, *, released: bool = False) -> tuple[str, str, list[str]]:
    """A refund of 4,000 that the bank has made, of an order of 10,000 here; return how it is named."""
    shop, refund = desk.a_shop(), fresh("r")
    order = order_data(splits={"s-1": 10_000})
    if released:
        order = desk.released_order(shop, splits={"s-1": 10_000})
    else:
        desk.shop_says(order_paid(shop, order))
        desk.bank_says(bank_credited(credit_data(order)))
    id_ = key_id("refund", shop, "refund", refund).hex
    bank.words[id_] = BankWord.SETTLED
    bank.amounts[id_] = (4_000, "CNY")
    named = ["recover", "adopt", "refund", "--shop", shop, "--refund", refund, "--order", order["order_id"]]
    return shop, refund, [*named, *WHY]


def test_a_refund_that_nobody_says_again_is_taken_into_the_books_once(
    set_up: Holdfast, desk_with: DeskWith, bank: ListingBank
) -> None:
    desk = desk_with(bank)
    shop, refund, named = a_lost_refund(desk, bank)
    assert set(reported(set_up, bank).values()) == {"transfer_unknown_to_us"}
    assert set_up(*named, "--part", "s-1=4000", "--dry-run").exit_code == 0
    assert balance(desk.engine, shop, "s-1")["held"] == 10_000
    assert set(reported(set_up, bank).values()) == {"transfer_unknown_to_us"}
    mark = int(desk.value("SELECT max(outbox_id) FROM outbox"))
    set_up("payouts", "pause", "--shop", shop, "--why", "restored")
    assert set_up(*named, "--part", "s-1=4000", "--json").json["again"] is False
    assert set_up(*named, "--part", "s-1=4000", "--json").json["again"] is True
    _relay(desk, mark)
    assert desk.value("SELECT state FROM refunds WHERE refund_id = :r", r=refund) == "settled"
    held = balance(desk.engine, shop, "s-1")
    assert (held["held"], held["bank_cash"], held.get("refundable", 0)) == (6_000, 4_000, 0)
    assert len(bank.amounts) == 1, "nothing was sent"
    assert reported(set_up, bank) == {}
    in_order(set_up)


@pytest.mark.parametrize(
    ("parts", "released"),
    [(["s-1=3999"], False), (["s-2=4000"], False), (["s-1=3000", "s-2=1000"], False), (["s-1=4000"], True)],
)
def test_a_refund_that_does_not_fit_is_not_adopted(
    set_up: Holdfast,
    desk_with: DeskWith,
    bank: ListingBank,
    parts: list[str],
    released: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    desk = desk_with(bank)
    shop, refund, named = a_lost_refund(desk, bank, released=released)
    before = balance(desk.engine, shop, "s-1")
    ran = set_up(*named, *[word for part in parts for word in ("--part", part)])
    assert (ran.exit_code, ran.err.count("\n")) == (1, 1)
    assert balance(desk.engine, shop, "s-1") == before
    assert desk.value("SELECT count(*) FROM refunds WHERE refund_id = :r", r=refund) == 0


@pytest.mark.parametrize("parts", [["s-1"], ["s-1=0"], ["s-1=-1"], ["=1"], ["s-1=1", "s-1=2"], ["s-1=1.5"]])
def test_parts_of_a_refund_are_read_strictly(set_up: Holdfast, bank: ListingBank, parts: list[str]) -> None:
    assert bank
    named = ("recover", "adopt", "refund", "--shop", "s", "--refund", "r", "--order", "o", *WHY)
    assert set_up(*named, *[word for part in parts for word in ("--part", part)]).exit_code == 2
