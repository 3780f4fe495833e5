"""After a restore: what the report leaves to people, and what they can do about it."""

from collections.abc import Callable

import pytest
from command_runs import Holdfast
from workflow_support.banks import MoodyBank, ScriptedBank
from workflow_support.desk import Desk
from workflow_support.events import (
    bank_credited,
    credit_data,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from infra.postgres.outbox import CommandRow
from ledger.ids import key_id
from ops.commands import recover
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
def set_up(holdfast: Holdfast) -> Holdfast:
    assert holdfast("migrate").exit_code == 0
    return holdfast


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch) -> ListingBank:
    bank = ListingBank()
    monkeypatch.setenv("HOLDFAST_BANK_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(recover, "HttpBank", lambda *_given, **_named: bank)
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
