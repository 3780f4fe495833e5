"""A refund's life at the bank: submitted, settled, refused, unknown, returned; and sent once."""

from collections.abc import Callable

import pytest
from recourse_support import SELLER, charged_back, credited_again, held_order, refund_state, the, types
from workflow_support.banks import NEVER_SEEN, NO_ANSWER, PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import bank_credited, credit_data, fresh, refund_requested

from schemas.commands import CheckRefund, CollectReturns, SubmitRefund
from workers.payout.handlers import refunds, transfers
from workers.payout.transfers import BankWord, TransferAnswer
from workers.relay.sweep import sweep

DeskWith = Callable[[ScriptedBank], Desk]


def a_refund(desk: Desk, *, funded: bool = True, amount: int = 4_000) -> tuple[str, dict[str, str], str]:
    """Ask for a refund and let the bank hear of it; return the shop, the order and the refund's id."""
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=funded)
    refund_id = fresh("r")
    desk.buyers_ask(refund_requested(shop, order, {SELLER: amount}, refund_id=refund_id))
    return shop, order, refund_id


def refundable(desk: Desk, shop: str) -> int:
    return balance(desk.engine, shop, SELLER).get("refundable", 0)


def test_the_bank_is_told_to_return_the_credit_that_came(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[SETTLED])
    desk = desk_with(bank)
    _, order, refund_id = a_refund(desk)
    [instruction] = bank.submitted
    assert (instruction.amount_minor, instruction.currency) == (4_000, "CNY")
    assert instruction.destination == {
        "type": "return_of_credit",
        "bank_reference": order["bank_reference"],
    }
    assert refund_state(desk, refund_id) == "settled"


def test_a_settled_refund_has_left_the_bank(desk_with: DeskWith) -> None:
    desk = desk_with(ScriptedBank(submit=[SETTLED]))
    shop, _, refund_id = a_refund(desk)
    assert balance(desk.engine, shop, SELLER) == {"received": -10_000, "held": 6_000, "bank_cash": 4_000}
    assert the(desk.told, "refund.settled").data["refund_id"] == refund_id


def test_a_refused_refund_fails_and_stays_refundable(desk_with: DeskWith) -> None:
    """Never back into the hold: that may be closed by now. What becomes of it is for people to decide."""
    desk = desk_with(ScriptedBank(submit=[REJECTED]))
    shop, _, refund_id = a_refund(desk)
    failed = the(desk.told, "refund.failed").data
    assert (failed["refund_id"], failed["reason"]) == (refund_id, "AC04")
    assert refund_state(desk, refund_id) == "failed"
    assert refundable(desk, shop) == 4_000
    assert desk.ring_alarms("check_refund") == []


def test_a_pending_refund_is_asked_for_until_it_settles(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[PENDING], find=[PENDING, SETTLED])
    desk = desk_with(bank)
    shop, _, refund_id = a_refund(desk)
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("submitted", 4_000)
    assert desk.ring_alarms("check_refund") == []
    assert types(desk.ring_alarms("check_refund")) == ["refund.settled"]
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("settled", 0)
    assert len(bank.submitted) == 1


def test_a_time_out_is_asked_after_and_never_sent_again(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[NO_ANSWER], find=[NO_ANSWER, SETTLED])
    desk = desk_with(bank)
    shop, _, refund_id = a_refund(desk)
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("unknown", 4_000)
    assert desk.ring_alarms("check_refund") == []
    assert types(desk.ring_alarms("check_refund")) == ["refund.settled"]
    assert len(bank.submitted) == 1


def test_what_the_bank_has_certainly_never_seen_is_sent_again_under_its_one_id(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[NO_ANSWER, SETTLED], find=[NEVER_SEEN])
    desk = desk_with(bank)
    _, _, refund_id = a_refund(desk)
    assert types(desk.ring_alarms("check_refund")) == ["refund.settled"]
    assert refund_state(desk, refund_id) == "settled"
    first, second = bank.submitted
    assert first == second


def test_a_refund_that_the_bank_accepted_and_forgot_is_not_sent_again(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[PENDING], find=[NEVER_SEEN])
    desk = desk_with(bank)
    _, _, refund_id = a_refund(desk)
    desk.ring_alarms("check_refund")
    assert (len(bank.submitted), refund_state(desk, refund_id)) == (1, "submitted")


def test_a_second_submit_command_asks_and_does_not_send(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[PENDING], find=[PENDING])
    desk = desk_with(bank)
    _, _, refund_id = a_refund(desk)
    key = desk.value("SELECT refund_key FROM refunds WHERE refund_id = :id", id=refund_id)
    refunds.submit_refunds(desk.steps, [SubmitRefund(refund_keys=(key, key))], tools=desk.transfer_tools)
    assert (len(bank.submitted), len(bank.asked)) == (1, 1)


def test_a_settled_refund_is_not_settled_twice(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[SETTLED], find=[SETTLED])
    desk = desk_with(bank)
    shop, _, refund_id = a_refund(desk)
    key = desk.value("SELECT refund_key FROM refunds WHERE refund_id = :id", id=refund_id)
    desk.told.clear()
    refunds.submit_refunds(desk.steps, [SubmitRefund(refund_keys=(key,))], tools=desk.transfer_tools)
    refunds.check_refunds(desk.steps, [CheckRefund(refund_keys=(key,))], tools=desk.transfer_tools)
    assert (desk.told, len(bank.submitted), refundable(desk, shop)) == ([], 1, 0)


def test_a_refund_that_comes_back_after_it_settled_is_refundable_again(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[SETTLED])
    desk = desk_with(bank)
    shop, _, refund_id = a_refund(desk)
    bank.sends_back(bank.submitted[0].end_to_end_id, "AC06")
    desk.told.clear()
    for _ in range(2):
        transfers.collect_returns(
            desk.steps,
            [CollectReturns()],
            tools=desk.transfer_tools,
            book_refunds=refunds.book_refund_answers,
        )
    [told] = desk.told
    assert (told.type, told.data["reason"]) == ("refund.failed", "AC06")
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("failed", 4_000)


def test_a_refund_that_came_back_before_we_heard_of_its_settling_is_booked_both_ways(
    desk_with: DeskWith,
) -> None:
    bank = ScriptedBank(submit=[PENDING], find=[TransferAnswer(BankWord.RETURNED, "AC06")])
    desk = desk_with(bank)
    shop, _, refund_id = a_refund(desk)
    assert types(desk.ring_alarms("check_refund")) == ["refund.failed"]
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("failed", 4_000)
    assert [
        row.kind
        for row in desk.execute(
            "SELECT kind FROM postings WHERE shop_id = :shop AND kind LIKE 'refund%' ORDER BY kind", shop=shop
        )
    ] == ["refund_reserved", "refund_returned", "refund_settled"]


def test_a_refund_that_waits_is_not_sent_by_any_command(desk_with: DeskWith) -> None:
    bank = ScriptedBank()
    desk = desk_with(bank)
    _, order, refund_id = a_refund(desk, funded=False)
    key = desk.value("SELECT refund_key FROM refunds WHERE refund_id = :id", id=refund_id)
    refunds.submit_refunds(desk.steps, [SubmitRefund(refund_keys=(key,))], tools=desk.transfer_tools)
    refunds.check_refunds(desk.steps, [CheckRefund(refund_keys=(key,))], tools=desk.transfer_tools)
    assert (bank.submitted, bank.asked) == ([], [])
    desk.bank_says(bank_credited(credit_data(order)))
    assert (len(bank.submitted), refund_state(desk, refund_id)) == (1, "settled")


def test_a_refund_is_not_sent_when_the_bank_takes_the_credit_back_first(desk_with: DeskWith) -> None:
    """The buyer has the money back from their own bank; sending ours too would pay twice."""
    bank = ScriptedBank()
    desk = desk_with(bank)
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id = fresh("r")
    desk.receive_recourse(refund_requested(shop, order, {SELLER: 4_000}, refund_id=refund_id))
    assert refund_state(desk, refund_id) == "ready"
    charged_back(desk, order)
    assert (bank.submitted, refund_state(desk, refund_id)) == ([], "waiting")
    credited_again(desk, order)
    assert (len(bank.submitted), refund_state(desk, refund_id)) == (1, "settled")


def test_a_refund_that_never_reached_the_bank_is_not_sent_after_a_chargeback(desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[NO_ANSWER, SETTLED], find=[NEVER_SEEN])
    desk = desk_with(bank)
    _, order, refund_id = a_refund(desk)
    charged_back(desk, order)
    desk.ring_alarms("check_refund")
    assert (len(bank.submitted), refund_state(desk, refund_id)) == (1, "unknown")
    credited_again(desk, order)
    desk.ring_alarms("check_refund")
    assert (len(bank.submitted), refund_state(desk, refund_id)) == (2, "settled")


@pytest.mark.parametrize(
    ("state", "bank_word"), [("ready", SETTLED), ("sending", SETTLED), ("unknown", NO_ANSWER)]
)
def test_the_sweep_finds_a_refund_whose_command_was_lost(
    desk_with: DeskWith, state: str, bank_word: TransferAnswer
) -> None:
    bank = ScriptedBank(submit=[bank_word], find=[SETTLED])
    desk = desk_with(bank)
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id = fresh("r")
    desk.receive_recourse(refund_requested(shop, order, {SELLER: 4_000}, refund_id=refund_id))
    desk.commands.clear()
    desk.execute(
        "UPDATE refunds SET state = :state, touched_at = touched_at - interval '1 day' WHERE refund_id = :id",
        state=state,
        id=refund_id,
    )
    assert sweep(desk.steps, grace_seconds=60, queue_depth=lambda _: 0)["resting_refunds"] == 1
    desk.run()
    assert refund_state(desk, refund_id) == "settled"
    assert len(bank.submitted) == (state == "ready")


def test_a_chargeback_after_a_settled_refund_leaves_it_settled(desk_with: DeskWith) -> None:
    """The buyer has been paid twice; what the hold does not cover any more shows in `incoming`."""
    desk = desk_with(ScriptedBank(submit=[SETTLED]))
    shop, order, refund_id = a_refund(desk)
    charged_back(desk, order)
    assert (refund_state(desk, refund_id), refundable(desk, shop)) == ("settled", 0)
    assert balance(desk.engine, shop)["incoming"] == -10_000
    assert balance(desk.engine, shop, SELLER)["held"] == 6_000
