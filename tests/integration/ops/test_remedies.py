"""What operators do about money that nobody knows, and about refunds that the bank would not make."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from command_runs import Holdfast
from workflow_support.banks import NEVER_SEEN, NO_ANSWER, PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import (
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from infra.postgres.outbox import CommandRow
from schemas.commands import CheckRefund, CollectReturns
from workers.payout.handlers import refunds, transfers
from workers.payout.transfers import TransferAnswer

DeskWith = Callable[[ScriptedBank], Desk]
WHY = ("--why", "the buyer sent proof", "--operator", "ada")


def _relay(desk: Desk, since: int) -> None:
    """Carry out what a command of `holdfast` has left in the outbox since then, as the relay would."""
    commands = [
        CommandRow(row.queue, row.command, row.arguments, row.delay_ms)
        for row in desk.execute(
            "SELECT queue, command, CAST(arguments AS text) AS arguments, delay_ms FROM outbox"
            " WHERE outbox_id > :since AND command IS NOT NULL AND delay_ms = 0 ORDER BY outbox_id",
            since=since,
        )
    ]
    for row in commands:
        desk.handle(row)
    desk.run()


def _newest(desk: Desk) -> int:
    return int(desk.value("SELECT coalesce(max(outbox_id), 0) FROM outbox"))


def _events(desk: Desk, shop: str) -> list[str]:
    return [
        row.type
        for row in desk.execute(
            "SELECT type FROM events WHERE shop_id = :shop ORDER BY occurred_at", shop=shop
        )
    ]


def _audited(holdfast: Holdfast) -> None:
    ran = holdfast("audit", "--json")
    assert ran.exit_code == 0, [check for check in ran.json["checks"] if not check["ok"]]


# --- credits in suspense --------------------------------------------------------------------------


def _misspelt(desk: Desk, shop: str, amount: int = 10_000, **credit: Any) -> tuple[dict[str, Any], str]:
    """An order, held, whose credit came under another reference; return it and the statement line."""
    order = order_data(splits={"s-1": amount})
    desk.shop_says(order_paid(shop, order))
    line = credit_data(order, bank_reference=fresh("MISSPELT"), **credit)
    desk.bank_says(bank_credited(line))
    return order, line["statement_line"]


def _assign(holdfast: Holdfast, shop: str, order: dict[str, Any], line: str, *more: str) -> Any:
    named = ("--shop", shop, "--order", order["order_id"])
    return holdfast("suspense", "assign", "sim", line, *named, *WHY, *more)


def test_list_shows_the_credit_and_the_order_that_it_may_be_for(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop, amount=7_654_321)
    [found] = [row for row in set_up("suspense", "list", "--json").json if row["statement_line"] == line]
    assert (found["kind"], found["amount_minor"]) == ("credit", 7_654_321)
    assert found["fits"] == [f"{shop}/{order['order_id']}"]
    assert line in set_up("suspense", "list").out


def test_an_assigned_credit_confirms_its_order_and_lets_a_waiting_hold_go(
    set_up: Holdfast, desk: Desk
) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    desk.pass_protection(shop, order["order_id"])
    desk.ring_alarms("release_hold")
    assert balance(desk.engine, shop, "s-1").get("available", 0) == 0
    mark = _newest(desk)
    assert _assign(set_up, shop, order, line).exit_code == 0
    _relay(desk, mark)
    assert balance(desk.engine, shop, "s-1")["available"] == 10_000
    assert {"order.funded", "hold.released"} <= set(_events(desk, shop))
    _audited(set_up)
    traced = set_up("trace", "--shop", shop, "--order", order["order_id"], "--json").json
    assert [credit["statement_line"] for credit in traced["bank_credits"]] == [line]
    assert [(action["operator"], action["action"]) for action in traced["actions"]] == [
        ("ada", "credit_assigned")
    ]


def test_assigning_twice_is_done_once_and_says_so(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    assert _assign(set_up, shop, order, line).exit_code == 0
    again = _assign(set_up, shop, order, line)
    assert (again.exit_code, "already" in again.out) == (0, True)
    assert _events(desk, shop).count("order.funded") == 1
    assert desk.value("SELECT count(*) FROM operator_actions WHERE subject LIKE :it", it=f"{shop}/%") == 1


def test_part_of_the_money_confirms_nothing(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    other = order_data(splits={"s-1": 9_999})
    desk.shop_says(order_paid(shop, other))
    refused = _assign(set_up, shop, other, line)
    assert (refused.exit_code, refused.err.count("\n")) == (1, 1)
    assert "have the bank send it back" in refused.err
    assert _assign(set_up, shop, order, line).exit_code == 0


@pytest.mark.parametrize(
    "spoil",
    ["unknown line", "unknown order", "order confirmed", "credit confirms another", "credit taken back"],
)
def test_what_cannot_be_assigned_changes_nothing(set_up: Holdfast, desk: Desk, spoil: str) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    match spoil:
        case "unknown line":
            line = "no-such-line"
        case "unknown order":
            order = order_data()
        case "order confirmed":
            desk.bank_says(bank_credited(credit_data(order)))
        case "credit confirms another":
            twin = order_data()
            desk.shop_says(order_paid(shop, twin))
            assert _assign(set_up, shop, twin, line).exit_code == 0
        case "credit taken back":
            [credit] = desk.execute(
                "SELECT bank_reference FROM bank_credits WHERE statement_line = :line", line=line
            )
            desk.bank_says(bank_debited(debit_data(order, bank_reference=credit.bank_reference)))
    before = desk.value("SELECT count(*) FROM postings")
    assert _assign(set_up, shop, order, line).exit_code == 1
    assert desk.value("SELECT count(*) FROM postings") == before


def test_a_large_credit_needs_a_second_name(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop, amount=200_000)
    assert _assign(set_up, shop, order, line).exit_code == 2
    assert _assign(set_up, shop, order, line, "--second-operator", "Ada").exit_code == 2
    assert _assign(set_up, shop, order, line, "--second-operator", "grace").exit_code == 0


def test_an_assigned_credit_that_the_bank_takes_back_charges_the_order_back(
    set_up: Holdfast, desk: Desk
) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    mark = _newest(desk)
    assert _assign(set_up, shop, order, line).exit_code == 0
    _relay(desk, mark)
    reference = desk.value("SELECT bank_reference FROM bank_credits WHERE statement_line = :it", it=line)
    desk.bank_says(bank_debited(debit_data(order, bank_reference=reference)))
    desk.pass_protection(shop, order["order_id"])
    desk.ring_alarms("release_hold")
    books = balance(desk.engine, shop, "s-1")
    assert (books["held"], books.get("available", 0)) == (10_000, 0)
    _audited(set_up)


# --- refunds that failed --------------------------------------------------------------------------


def _failed_refund(
    desk: Desk, amount: int = 4_000, *, total: int = 10_000
) -> tuple[str, str, dict[str, Any]]:
    shop = desk.a_shop()
    order = order_data(splits={"s-1": total})
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    refund = fresh("r")
    desk.buyers_ask(refund_requested(shop, order, {"s-1": amount}, refund_id=refund))
    return shop, refund, order


def _state(desk: Desk, refund: str) -> str:
    return str(desk.value("SELECT state FROM refunds WHERE refund_id = :it", it=refund))


def test_a_failed_refund_is_tried_again_under_a_new_id_and_settles_once(
    set_up: Holdfast, desk_with: DeskWith
) -> None:
    bank = ScriptedBank(submit=[REJECTED, SETTLED])
    desk = desk_with(bank)
    shop, refund, order = _failed_refund(desk)
    [listed] = set_up("refund", "list", "--shop", shop, "--state", "failed", "--json").json
    assert (listed["refund_id"], listed["reason"]) == (refund, "AC04")
    mark = _newest(desk)
    ran = set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY, "--json")
    assert (ran.exit_code, ran.json["state"], ran.json["attempt"]) == (0, "ready", 1)
    _relay(desk, mark)
    first, second = bank.submitted
    assert first.end_to_end_id != second.end_to_end_id
    assert (second.amount_minor, second.destination) == (first.amount_minor, first.destination)
    assert _state(desk, refund) == "settled"
    assert balance(desk.engine, shop, "s-1").get("refundable", 0) == 0
    assert balance(desk.engine, shop, "s-1")["bank_cash"] == 4_000
    assert _events(desk, shop)[-2:] == ["refund.failed", "refund.settled"]
    _audited(set_up)
    actions = set_up("trace", "--shop", shop, "--order", order["order_id"], "--json").json["actions"]
    assert [action["action"] for action in actions] == ["refund_retried"]
    # It has settled: there is nothing to try.
    assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 1


def test_a_refund_that_came_back_twice_is_booked_each_time(set_up: Holdfast, desk_with: DeskWith) -> None:
    """The second attempt's postings are its own: under the first one's ids they would be skipped."""
    bank = ScriptedBank(submit=[SETTLED])
    desk = desk_with(bank)
    shop, refund, _ = _failed_refund(desk)
    for attempt in (0, 1):
        bank.sends_back(bank.submitted[attempt].end_to_end_id)
        transfers.collect_returns(
            desk.steps,
            [CollectReturns()],
            tools=desk.transfer_tools,
            book_refunds=refunds.book_refund_answers,
        )
        assert _state(desk, refund) == "failed"
        assert balance(desk.engine, shop, "s-1")["refundable"] == 4_000
        mark = _newest(desk)
        assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 0
        _relay(desk, mark)
        assert _state(desk, refund) == "settled"
        assert balance(desk.engine, shop, "s-1").get("refundable", 0) == 0
    assert len({instruction.end_to_end_id for instruction in bank.submitted}) == 3
    assert _events(desk, shop).count("refund.settled") == 3
    _audited(set_up)


def test_a_refund_paid_in_another_way_is_settled_and_never_sent(
    set_up: Holdfast, desk_with: DeskWith
) -> None:
    bank = ScriptedBank(submit=[REJECTED])
    desk = desk_with(bank)
    shop, refund, _ = _failed_refund(desk)
    mark = _newest(desk)
    ran = set_up("refund", "settle", "--shop", shop, "--refund", refund, *WHY)
    assert ran.exit_code == 0, ran.err
    _relay(desk, mark)
    assert (_state(desk, refund), len(bank.submitted)) == ("settled", 1)
    assert balance(desk.engine, shop, "s-1").get("refundable", 0) == 0
    assert balance(desk.engine, shop, "s-1")["bank_cash"] == 4_000
    assert _events(desk, shop)[-1] == "refund.settled"
    _audited(set_up)
    assert set_up("refund", "settle", "--shop", shop, "--refund", refund, *WHY).exit_code == 1
    assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 1


def test_a_retry_waits_while_the_bank_has_taken_the_credit_back(
    set_up: Holdfast, desk_with: DeskWith
) -> None:
    """The buyer has the money from their own bank by then; twice would be once too often."""
    bank = ScriptedBank(submit=[REJECTED, SETTLED])
    desk = desk_with(bank)
    shop, refund, order = _failed_refund(desk)
    desk.bank_says(bank_debited(debit_data(order)))
    mark = _newest(desk)
    assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 0
    _relay(desk, mark)
    assert (_state(desk, refund), len(bank.submitted)) == ("waiting", 1)
    desk.bank_says(bank_credited(credit_data(order)))
    assert (_state(desk, refund), len(bank.submitted)) == ("settled", 2)
    _audited(set_up)


def test_two_retries_at_once_are_one(set_up: Holdfast, desk_with: DeskWith) -> None:
    bank = ScriptedBank(submit=[REJECTED, SETTLED])
    desk = desk_with(bank)
    shop, refund, _ = _failed_refund(desk)
    mark = _newest(desk)
    codes = [set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code for _ in range(2)]
    assert codes == [0, 1]
    _relay(desk, mark)
    assert len(bank.submitted) == 2


def test_a_large_refund_needs_a_second_name(set_up: Holdfast, desk_with: DeskWith) -> None:
    desk = desk_with(ScriptedBank(submit=[REJECTED, SETTLED]))
    shop, refund, _ = _failed_refund(desk, 150_000, total=200_000)
    one = ("refund", "settle", "--shop", shop, "--refund", refund, *WHY)
    assert set_up(*one).exit_code == 2
    assert set_up(*one, "--second-operator", "grace").exit_code == 0


def test_only_a_refund_that_has_failed_can_be_remedied(set_up: Holdfast, desk_with: DeskWith) -> None:
    desk = desk_with(ScriptedBank(submit=[SETTLED]))
    shop, refund, _ = _failed_refund(desk)
    settled = set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY)
    assert (settled.exit_code, "settled" in settled.err) == (1, True)
    assert set_up("refund", "retry", "--shop", shop, "--refund", "nobody", *WHY).exit_code == 1
    assert set_up("refund", "retry", "--shop", shop, "--dispute", refund, *WHY).exit_code == 1
    assert set_up("refund", "retry", "--shop", shop, *WHY).exit_code == 2


def test_doctor_names_what_waits_for_a_decision(set_up: Holdfast, desk_with: DeskWith) -> None:
    desk = desk_with(ScriptedBank(submit=[REJECTED]))
    _failed_refund(desk)
    _misspelt(desk, desk.a_shop())
    found = {check["name"]: check for check in set_up("doctor", "--json").json["checks"]}
    assert "holdfast refund list" in found["refunds"]["remedy"]
    assert "holdfast suspense list" in found["suspense"]["remedy"]


# --- on record ------------------------------------------------------------------------------------


def test_actions_are_read_by_person_kind_and_subject(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, line = _misspelt(desk, shop)
    assert _assign(set_up, shop, order, line).exit_code == 0
    subject = f"{shop}/{order['order_id']}"
    [action] = set_up("actions", "list", "--subject", subject, "--json").json
    assert (action["operator"], action["action"], action["reason"]) == (
        "ada",
        "credit_assigned",
        "the buyer sent proof",
    )
    assert UUID(action["details"]["credit_id"])
    assert subject in set_up("actions", "list", "--operator", "ada", "--action", "credit_assigned").out
    assert set_up("actions", "list", "--operator", "nobody", "--json").json == []
    assert set_up("actions", "list", "--since", "2100-01-01T00:00:00Z", "--json").json == []


class _SlowBank(ScriptedBank):
    """Something happens elsewhere while it thinks about a question."""

    meanwhile: Callable[[], object] | None = None

    def find(self, end_to_end_id: str) -> TransferAnswer:
        answer = super().find(end_to_end_id)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answer


def test_a_late_word_about_the_attempt_before_is_no_word_about_the_new_one(
    set_up: Holdfast, desk_with: DeskWith
) -> None:
    """Booked as failed while the bank makes it, the refund would be tried a third time, and paid twice."""
    bank = _SlowBank(submit=[NO_ANSWER, PENDING], find=[REJECTED, REJECTED, SETTLED])
    desk = desk_with(bank)
    shop, refund, _ = _failed_refund(desk)
    question = CheckRefund(refund_keys=(_key(desk, refund),))

    def another_worker_hears_it_first_and_the_operator_tries_again() -> None:
        refunds.check_refunds(desk.steps, [question], tools=desk.transfer_tools)
        assert _state(desk, refund) == "failed"
        mark = _newest(desk)
        assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 0
        _relay(desk, mark)
        assert _state(desk, refund) == "submitted"

    bank.meanwhile = another_worker_hears_it_first_and_the_operator_tries_again
    refunds.check_refunds(desk.steps, [question], tools=desk.transfer_tools)
    assert (_state(desk, refund), len(bank.submitted)) == ("submitted", 2)
    refunds.check_refunds(desk.steps, [question], tools=desk.transfer_tools)
    assert _state(desk, refund) == "settled"
    assert balance(desk.engine, shop, "s-1")["bank_cash"] == 4_000
    assert _events(desk, shop).count("refund.failed") == 1
    _audited(set_up)


def test_a_question_about_the_attempt_before_does_not_send_the_new_one(
    set_up: Holdfast, desk_with: DeskWith
) -> None:
    """Sent without being marked, it would wait for the credit after a chargeback, and be paid twice."""
    bank = ScriptedBank(submit=[REJECTED, NO_ANSWER], find=[NEVER_SEEN])
    desk = desk_with(bank)
    shop, refund, order = _failed_refund(desk)
    assert set_up("refund", "retry", "--shop", shop, "--refund", refund, *WHY).exit_code == 0
    question = CheckRefund(refund_keys=(_key(desk, refund),))
    refunds.check_refunds(desk.steps, [question], tools=desk.transfer_tools)
    assert (_state(desk, refund), len(bank.submitted)) == ("ready", 1)
    desk.bank_says(bank_debited(debit_data(order)))
    assert (_state(desk, refund), len(bank.submitted)) == ("waiting", 1)


def _key(desk: Desk, refund: str) -> UUID:
    return UUID(str(desk.value("SELECT refund_key FROM refunds WHERE refund_id = :it", it=refund)))
