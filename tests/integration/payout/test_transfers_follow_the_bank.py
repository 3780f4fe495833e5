"""Money on its way through the bank: settled only on its word, never sent twice, never lost."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from workflow_support.banks import NEVER_SEEN, NO_ANSWER, PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk, Told
from workflow_support.events import DESTINATION
from workflow_support.races import side_by_side

from workers.payout.handlers import transfers

OpenDesk = Callable[[ScriptedBank], Desk]


@dataclass(frozen=True, slots=True)
class Payout:
    """A withdrawal of 40.00 out of 100.00, as far as the bank's script brings it."""

    desk: Desk
    bank: ScriptedBank
    shop: str
    seller: str
    told: list[Told]

    @property
    def events(self) -> list[str]:
        return [event.type for event in self.desk.told]

    @property
    def state(self) -> str:
        return self.desk.value(
            "SELECT t.state FROM transfers AS t JOIN withdrawals USING (payout_id) WHERE seller_id = :s",
            s=self.seller,
        )

    @property
    def money(self) -> dict[str, int]:
        """Where it is, without the account that payments come in by."""
        accounts = balance(self.desk.engine, self.shop, self.seller)
        del accounts["received"]
        return accounts


ON_ITS_WAY = {"available": 6_000, "in_payout": 4_000}
PAID_OUT = {"available": 6_000, "bank_cash": 4_000}
BACK = {"available": 10_000}


@pytest.fixture
def pay_out(desk_with: OpenDesk) -> Callable[[ScriptedBank], Payout]:
    def withdraw(bank: ScriptedBank) -> Payout:
        desk = desk_with(bank)
        platform = desk.platform(desk.a_shop())
        seller = desk.a_seller(platform, available=10_000)
        told = desk.seller_withdraws(platform.withdraws(seller, 4_000))
        return Payout(desk, bank, platform.shop, seller, told)

    return withdraw


PayOut = Callable[[ScriptedBank], Payout]


def test_a_settled_transfer_is_paid_out(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[SETTLED]))
    assert payout.events == ["withdrawal.accepted", "payout.submitted", "payout.settled"]
    assert payout.money == PAID_OUT
    assert not any(row.command == "check_transfer" for row in payout.desk.delayed), "nothing left to ask"


def test_the_bank_gets_the_instruction_as_it_was_agreed(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank())
    [instruction] = payout.bank.submitted
    assert (instruction.amount_minor, instruction.currency) == (4_000, "CNY")
    assert (instruction.destination_id, dict(instruction.destination)) == ("d-1", DESTINATION)
    assert instruction.end_to_end_id == payout.told[-1].data["end_to_end_id"]
    assert len(instruction.end_to_end_id) <= 35, "ISO 20022 allows no more"


def test_a_rejected_transfer_comes_back_to_available(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[REJECTED]))
    assert payout.events == ["withdrawal.accepted", "payout.failed"]
    assert payout.told[-1].data["reason"] == "AC04"
    assert payout.money == BACK


def test_a_pending_transfer_is_asked_for_until_it_settles(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[PENDING], find=[PENDING, PENDING, SETTLED]))
    assert payout.events == ["withdrawal.accepted", "payout.submitted"]
    assert payout.money == ON_ITS_WAY
    waits: list[int] = []
    while payout.state == "submitted":
        [question] = [row for row in payout.desk.delayed if row.command == "check_transfer"]
        waits.append(question.delay_ms)
        payout.desk.ring_alarms("check_transfer")
    assert waits == [1_000, 2_000, 5_000], "it is asked less often as time goes by"
    assert payout.events == ["withdrawal.accepted", "payout.submitted", "payout.settled"]
    assert payout.money == PAID_OUT
    assert len(payout.bank.submitted) == 1


def test_a_pending_transfer_that_is_rejected_comes_back(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[PENDING], find=[REJECTED]))
    payout.desk.ring_alarms("check_transfer")
    assert payout.events[-1] == "payout.failed"
    assert payout.money == BACK


def test_a_time_out_is_resolved_by_asking_and_never_by_sending_again(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[NO_ANSWER], find=[NO_ANSWER, SETTLED]))
    assert payout.state == "unknown"
    assert payout.money == ON_ITS_WAY, "a time-out is no failure: the money may have gone"
    payout.desk.ring_alarms("check_transfer")
    assert payout.state == "unknown"
    payout.desk.ring_alarms("check_transfer")
    assert payout.events == ["withdrawal.accepted", "payout.submitted", "payout.settled"]
    assert payout.money == PAID_OUT
    assert len(payout.bank.submitted) == 1


def test_what_the_bank_never_saw_is_sent_again_under_the_same_id(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[NO_ANSWER, SETTLED], find=[NEVER_SEEN]))
    payout.desk.ring_alarms("check_transfer")
    assert payout.money == PAID_OUT
    first, second = payout.bank.submitted
    assert first == second


def test_a_bank_that_denies_what_it_accepted_is_not_sent_it_again(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[PENDING], find=[NEVER_SEEN]))
    payout.desk.ring_alarms("check_transfer")
    assert len(payout.bank.submitted) == 1
    assert (payout.state, payout.money) == ("submitted", ON_ITS_WAY)
    assert any(row.command == "check_transfer" for row in payout.desk.delayed)


def test_a_redelivered_submission_asks_before_it_sends(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank(submit=[NO_ANSWER], find=[PENDING]))
    _submit_again(payout)
    assert len(payout.bank.submitted) == 1
    assert payout.state == "submitted"


def test_a_crash_after_sending_and_before_booking_sends_nothing_twice(
    desk_with: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank has the transfer, the worker died with its answer; the command comes again."""

    class Killed(BaseException):
        pass

    def die(*_arguments: object, **_named: object) -> None:
        raise Killed

    bank = ScriptedBank(submit=[SETTLED], find=[SETTLED])
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    with monkeypatch.context() as dying:
        dying.setattr(transfers, "_book_answers", die)
        with pytest.raises(Killed):
            desk.seller_withdraws(platform.withdraws(seller, 4_000))
    payout = Payout(desk, bank, platform.shop, seller, [])
    assert (len(bank.submitted), payout.state, payout.money) == (1, "sending", ON_ITS_WAY)
    _submit_again(payout)
    assert len(bank.submitted) == 1
    assert bank.asked == [bank.submitted[0].end_to_end_id]
    assert payout.money == PAID_OUT


def test_the_banks_last_word_is_booked_and_counted_once_however_often_it_comes(pay_out: PayOut) -> None:
    before = _counted("settled")
    payout = pay_out(ScriptedBank(submit=[PENDING], find=[SETTLED]))
    questions = [row for row in payout.desk.delayed if row.command == "check_transfer"]
    side_by_side(*[lambda: payout.desk.handle(*questions) for _ in range(4)])
    payout.desk.run()
    assert payout.events.count("payout.settled") == 1
    assert payout.money == PAID_OUT
    assert _counted("settled") == before + 1


def test_two_workers_told_different_last_words_book_one_of_them(desk_with: OpenDesk) -> None:
    """No bank should say both; if one does, the money still goes one way only."""
    desk = desk_with(ScriptedBank(submit=[PENDING], find=[SETTLED, REJECTED]))
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    desk.seller_withdraws(platform.withdraws(seller, 4_000))
    questions = [row for row in desk.delayed if row.command == "check_transfer"]
    side_by_side(*[lambda: desk.handle(*questions) for _ in range(2)])
    last_words = [told.type for told in desk.told if told.type in {"payout.settled", "payout.failed"}]
    assert len(last_words) == 1


def test_a_bank_that_takes_its_last_word_back_moves_nothing_and_is_told_of(pay_out: PayOut) -> None:
    """The seller has the money again; if it was paid all the same, people must hear of it."""
    payout = pay_out(ScriptedBank(submit=[REJECTED]))
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    with capture_logs() as logged:
        _collect_returns(payout)
    assert (payout.state, payout.money) == ("failed", BACK)
    assert [(line["event"], line["state"], line["word"]) for line in logged if "word" in line] == [
        ("bank_contradicts_itself", "failed", "returned")
    ]


def test_a_transfer_returned_after_it_settled_goes_to_available_and_never_to_held(
    pay_out: PayOut,
) -> None:
    payout = pay_out(ScriptedBank())
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    _collect_returns(payout)
    assert payout.events[-1] == "payout.returned"
    assert payout.desk.told[-1].data["reason"] == "AC04"
    assert payout.money == BACK
    assert payout.state == "returned"


def test_a_return_is_booked_once_and_read_once(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank())
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    side_by_side(*[lambda: _collect_returns(payout) for _ in range(4)])
    _collect_returns(payout)
    assert payout.events.count("payout.returned") == 1
    assert payout.money == BACK


def test_a_return_that_is_heard_of_before_its_settlement_books_and_counts_both(pay_out: PayOut) -> None:
    before = _counted("settled"), _counted("returned")
    payout = pay_out(ScriptedBank(submit=[NO_ANSWER]))
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    _collect_returns(payout)
    assert payout.events == ["withdrawal.accepted", "payout.submitted", "payout.settled", "payout.returned"]
    assert payout.money == BACK
    assert (_counted("settled"), _counted("returned")) == (before[0] + 1, before[1] + 1)


def test_a_return_of_a_transfer_that_nobody_made_stops_nothing(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank())
    payout.bank.sends_back("f" * 32)
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    _collect_returns(payout)
    assert payout.money == BACK


def test_a_bank_that_is_away_loses_no_return(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank())
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    payout.bank.is_away = True
    _collect_returns(payout)
    payout.bank.is_away = False
    _collect_returns(payout)
    assert payout.money == BACK


def test_returned_money_can_be_withdrawn_again(pay_out: PayOut) -> None:
    payout = pay_out(ScriptedBank())
    payout.bank.sends_back(payout.bank.submitted[0].end_to_end_id)
    _collect_returns(payout)
    platform = payout.desk.platform(payout.shop)
    told = payout.desk.seller_withdraws(platform.withdraws(payout.seller, 10_000))
    assert told[-1].type == "payout.settled"


def _counted(result: str) -> float:
    return REGISTRY.get_sample_value("holdfast_payouts_total", {"result": result}) or 0


def _submit_again(payout: Payout) -> None:
    [row] = payout.desk.execute("SELECT payout_id FROM withdrawals WHERE seller_id = :s", s=payout.seller)
    transfers.submit_transfers(
        payout.desk.steps,
        [transfers.SubmitTransfer(payout_ids=(row.payout_id,))],
        tools=payout.desk.transfer_tools,
    )


def _collect_returns(payout: Payout) -> None:
    with payout.desk.steps.begin() as step:
        step.command("payout.bank", transfers.CollectReturns())
    payout.desk.run()
