"""What operators decide about sellers and their money: locks, limits, reviews and pauses, all on record."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from command_runs import Holdfast, Ran
from prometheus_client import REGISTRY
from workflow_support.banks import NEVER_SEEN, NO_ANSWER, PENDING, SETTLED, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk, command_of
from workflow_support.events import (
    PASSWORD,
    WRONG_PASSWORD,
    SellersPlatform,
    bank_credited,
    credit_data,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)
from workflow_support.races import met_at_a_lock, side_by_side

from infra.postgres.step import Steps
from ops.commands.withdrawals import _carry_out, _lock
from ops.failures import CommandFailed
from workers.payout.decisions import Verdict, decide_review
from workers.payout.handlers import passwords
from workers.relay.sweep import report_what_waits_for_people, sweep

WHY = ("--why", "because")


def actions(desk: Desk, subject: str) -> list[tuple[str, str, str]]:
    return [
        (row.operator, row.action, row.reason)
        for row in desk.execute(
            "SELECT operator, action, reason FROM operator_actions WHERE subject = :s ORDER BY action_id",
            s=subject,
        )
    ]


def money(desk: Desk, shop: str, seller: str) -> tuple[int, int]:
    accounts = balance(desk.engine, shop, seller)
    return accounts.get("available", 0), accounts.get("in_payout", 0)


# Locks.


def test_unlocking_forgets_wrong_passwords_and_is_on_record(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=1_000)
    shop = platform.shop
    desk.execute(
        "UPDATE sellers SET failed_attempts = 15, locked_by_failures = true WHERE seller_id = :s", s=seller
    )
    assert set_up("seller", "show", shop, seller, "--json").json["locked"] is True
    assert set_up("seller", "unlock", shop, seller).exit_code == 2, "a reason is needed"
    ran = set_up("seller", "unlock", shop, seller, "--reason", "called back", "--by", "grace")
    assert (ran.exit_code, ran.err) == (0, "")
    assert actions(desk, f"{shop}/{seller}") == [("grace", "seller_unlocked", "called back")]
    [listed] = set_up("actions", "list", "--subject", f"{shop}/{seller}", "--json").json
    assert listed["database_login"] == desk.value("SELECT session_user"), "the name is only said"
    [told, *_] = desk.seller_withdraws(platform.withdraws(seller, 1_000))
    assert told.type == "withdrawal.accepted"
    again = set_up("seller", "unlock", shop, seller, *WHY)
    assert again.exit_code == 0
    assert "not locked" in again.out
    assert len(actions(desk, f"{shop}/{seller}")) == 1


def test_a_guess_that_is_being_checked_while_the_seller_is_unlocked_locks_nobody(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=1_000)
    desk.execute("UPDATE sellers SET failed_attempts = 14 WHERE seller_id = :s", s=seller)
    desk.book_withdrawals(platform.withdraws(seller, 1, password=WRONG_PASSWORD))
    passwords._count(desk.steps, command_of(desk.commands[0]).attempt_ids)  # type: ignore[attr-defined]
    assert set_up("seller", "unlock", platform.shop, seller, *WHY).exit_code == 0
    desk.run()
    shown = set_up("seller", "show", platform.shop, seller, "--json").json
    assert (shown["locked"], shown["failed_attempts"]) == (False, 0)


def test_an_unknown_seller_or_shop_is_named(set_up: Holdfast, platform: SellersPlatform) -> None:
    for command in (("seller", "unlock"), ("seller", "show")):
        reason = WHY if command[1] == "unlock" else ()
        for shop, seller in ((platform.shop, "nobody"), ("nowhere", "s-1")):
            ran = set_up(*command, shop, seller, *reason)
            assert ran.exit_code == 1
            assert (seller if shop == platform.shop else shop) in ran.err


def test_accounts_are_shown_masked_everywhere(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=1_000)
    set_up("seller", "limits", platform.shop, seller, "--currency", "CNY", "--per-withdrawal", "0")
    withdrawal = fresh("w")
    desk.seller_withdraws(platform.withdraws(seller, 1_000, withdrawal_id=withdrawal))
    for command in (
        ("seller", "show", platform.shop, seller),
        ("withdrawal", "list", "--shop", platform.shop),
        ("trace", "--shop", platform.shop, "--withdrawal", withdrawal),
    ):
        for more in ((), ("--json",)):
            printed = set_up(*command, *more).out
            assert "370400440532013000" not in printed
            assert "Ada Seller" not in printed
    assert "DE89…3000" in set_up("seller", "show", platform.shop, seller).out


# Limits.


def test_limits_are_set_changed_shown_and_cleared_by_command(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    shop = platform.shop
    for command in (("shop", "limits", shop), ("seller", "limits", shop), ("seller", "limits", shop, "s-1")):
        ran = set_up(*command, "--currency", "EUR", "--per-day", "500", "--per-hour", "3", *WHY, "--json")
        assert ran.exit_code == 0, ran.err
        expected = {"per_withdrawal": None, "per_day": 500, "per_hour": 3}
        assert ran.json["limits"] == {"EUR": expected}
        ran = set_up(*command, "--currency", "EUR", "--per-hour", "none", "--per-withdrawal", "0", "--json")
        assert ran.json["limits"] == {"EUR": {"per_withdrawal": 0, "per_day": 500, "per_hour": None}}
        assert set_up(*command, "--json").json == ran.json
        assert "5.00" in set_up(*command).out
        assert set_up(*command, "--currency", "EUR", "--clear", "--json").json["limits"] == {}
    recorded = desk.execute(
        "SELECT details FROM operator_actions WHERE action = 'withdrawal_limits_changed'"
        " AND subject LIKE '%' || :shop || '%' ORDER BY action_id",
        shop=shop,
    )
    assert len(recorded) == 3 * 3
    assert recorded[0].details["after"]["per_day"] == 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--per-day", "5"), "--currency"),
        (("--currency", "EURO", "--per-day", "5"), "ISO 4217"),
        (("--currency", "EUR", "--per-day", "-1"), "per-day"),
        (("--currency", "EUR", "--per-day", "1.5"), "minor units"),
        (("--currency", "EUR", "--per-hour", "many"), "per-hour"),
        (("--currency", "EUR", "--per-day", "5", "--clear"), "--clear"),
    ],
)
def test_a_wrong_limit_is_bad_usage(
    set_up: Holdfast, platform: SellersPlatform, arguments: tuple[str, ...], said: str
) -> None:
    ran = set_up("shop", "limits", platform.shop, *arguments)
    assert ran.exit_code == 2
    assert said in ran.err


# Reviews.


def an_over_limit_withdrawal(set_up: Holdfast, desk: Desk, platform: SellersPlatform) -> tuple[str, str]:
    seller = desk.a_seller(platform, available=10_000)
    set_up("seller", "limits", platform.shop, seller, "--currency", "CNY", "--per-withdrawal", "1000")
    withdrawal = fresh("w")
    [told] = desk.seller_withdraws(platform.withdraws(seller, 4_000, withdrawal_id=withdrawal))
    assert told.data["reason"] == "over_limit"
    return seller, withdrawal


def decide(set_up: Holdfast, verdict: str, platform: SellersPlatform, withdrawal: str, by: str) -> Ran:
    return set_up("withdrawal", verdict, platform.shop, withdrawal, "--reason", f"{by} looked", "--by", by)


def test_two_names_approve_and_the_money_goes(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller, withdrawal = an_over_limit_withdrawal(set_up, desk, platform)
    [listed] = set_up("withdrawal", "list", "--shop", platform.shop, "--json").json
    assert (listed["withdrawal"], listed["over_limit"], listed["until"]) == (
        withdrawal,
        "per_withdrawal",
        None,
    )
    for by, said in (
        ("ada", "second name"),
        ("Ada", "already"),
        ("ada ", "already"),
        ("\uff21da", "already"),
    ):
        ran = decide(set_up, "approve", platform, withdrawal, by)
        assert ran.exit_code == 0, ran.err
        assert said in ran.out
        desk.relay()
        assert money(desk, platform.shop, seller) == (6_000, 4_000)
    report_what_waits_for_people(desk.steps, dispute_alarm_seconds=1)
    assert (REGISTRY.get_sample_value("holdfast_withdrawals_in_review") or 0) >= 1
    [listed] = set_up("withdrawal", "list", "--json", "--shop", platform.shop).json
    assert (listed["proposed"], listed["proposed_by"]) == ("approve", "ada")
    ran = decide(set_up, "approve", platform, withdrawal, "bob")
    assert "goes to the bank" in ran.out
    desk.relay()
    assert [e.type for e in desk.told[-3:]] == ["withdrawal.accepted", "payout.submitted", "payout.settled"]
    assert money(desk, platform.shop, seller) == (6_000, 0)
    assert actions(desk, f"{platform.shop}/{withdrawal}") == [
        ("ada", "withdrawal_reviewed", "ada looked"),
        ("bob", "withdrawal_approved", "bob looked"),
    ]
    for verdict in ("approve", "reject"):
        late = decide(set_up, verdict, platform, withdrawal, "carol")
        assert late.exit_code == 1
        assert "it is accepted" in late.err
    timeline = set_up("trace", "--shop", platform.shop, "--withdrawal", withdrawal).out
    assert "ada proposed to approve" in timeline
    assert "bob said so too" in timeline


def test_two_names_reject_and_the_money_is_back(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller, withdrawal = an_over_limit_withdrawal(set_up, desk, platform)
    # One for and one against decide nothing.
    decide(set_up, "approve", platform, withdrawal, "ada")
    assert "second name" in decide(set_up, "reject", platform, withdrawal, "bob").out
    assert money(desk, platform.shop, seller) == (6_000, 4_000)
    assert "withdrawable again" in decide(set_up, "reject", platform, withdrawal, "ada").out
    desk.relay()
    assert (desk.told[-1].type, desk.told[-1].data["reason"]) == ("withdrawal.rejected", "over_limit")
    assert money(desk, platform.shop, seller) == (10_000, 0)


def test_two_second_names_at_once_pay_once(set_up: Holdfast, desk: Desk, platform: SellersPlatform) -> None:
    """Both have begun before either can finish; the second finds that nothing waits any more."""
    seller, withdrawal = an_over_limit_withdrawal(set_up, desk, platform)
    decide(set_up, "approve", platform, withdrawal, "ada")
    steps = Steps(desk.engine, after_commit=lambda _rows: None, grace_seconds=0)

    def approve(by: str) -> str:
        try:
            with steps.begin("review_withdrawal") as step:
                pending = _lock(step, platform.shop, withdrawal)
                said = decide_review(pending.proposal, verdict=Verdict.APPROVE, by=by)
                return _carry_out(step, pending, said, verdict=Verdict.APPROVE, why="", by=by)
        except CommandFailed as failed:
            return str(failed)

    said = met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM withdrawals WHERE withdrawal_id = :w FOR UPDATE",
        lambda: approve("bob"),
        lambda: approve("carol"),
        w=withdrawal,
    )
    assert sorted("goes to the bank" in one for one in said) == [False, True]
    assert sorted("it is accepted" in one for one in said) == [False, True]
    desk.relay()
    assert money(desk, platform.shop, seller) == (6_000, 0)


def test_what_cools_off_can_be_stopped_but_not_hurried(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    desk.seller_asks(platform.changes_password(seller, old=PASSWORD, new="stolen by now"))
    withdrawal = fresh("w")
    desk.seller_withdraws(
        platform.withdraws(seller, 4_000, password="stolen by now", withdrawal_id=withdrawal)
    )
    hurried = decide(set_up, "approve", platform, withdrawal, "ada")
    assert hurried.exit_code == 1
    assert "cools off until" in hurried.err
    # The first name against it keeps it back, and two for it let it cool off again.
    decide(set_up, "reject", platform, withdrawal, "ada")
    decide(set_up, "approve", platform, withdrawal, "bob")
    assert "when it has cooled off" in decide(set_up, "approve", platform, withdrawal, "carol").out
    decide(set_up, "reject", platform, withdrawal, "ada")
    decide(set_up, "reject", platform, withdrawal, "bob")
    desk.relay()
    assert (desk.told[-1].type, desk.told[-1].data["reason"]) == ("withdrawal.rejected", "cooling_off")
    assert money(desk, platform.shop, seller) == (10_000, 0)


def test_an_unknown_withdrawal_is_named(set_up: Holdfast, platform: SellersPlatform) -> None:
    ran = decide(set_up, "approve", platform, "w-none", "ada")
    assert ran.exit_code == 1
    assert "no withdrawal w-none" in ran.err


# Pauses.


@pytest.fixture
def resume_after(set_up: Holdfast) -> Any:
    """Whatever the test does, nobody's payouts stay paused for the next one."""
    yield
    set_up("payouts", "resume", *WHY)


def test_while_paused_nothing_new_is_handed_to_the_bank_and_then_it_goes_on(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform, resume_after: None
) -> None:
    bank: Any = desk.bank
    other = desk.platform(desk.a_shop())
    seller, free = desk.a_seller(platform, available=10_000), desk.a_seller(other, available=10_000)
    assert (
        set_up(
            "payouts", "pause", "--shop", platform.shop, "--reason", "an odd payout", "--by", "ada"
        ).exit_code
        == 0
    )
    assert "an odd payout" in set_up("doctor").out
    [told] = desk.seller_withdraws(platform.withdraws(seller, 4_000))
    assert told.type == "withdrawal.accepted", "withdrawals are still judged"
    assert bank.submitted == []
    assert desk.seller_withdraws(other.withdraws(free, 1_000))[-1].type == "payout.settled"
    found = sweep(desk.steps, grace_seconds=0, queue_depth=lambda _q: 0)
    assert found["resting_transfers"] == 0, "it is not lost, it waits"
    assert set_up("payouts", "pause", *WHY).exit_code == 0
    assert len(set_up("payouts", "status", "--json").json) == 2
    report_what_waits_for_people(desk.steps, dispute_alarm_seconds=1)
    assert REGISTRY.get_sample_value("holdfast_payout_pauses") == 2
    # All shops go on, but for the one that is paused on its own account.
    assert "0 go to the bank" in set_up("payouts", "resume", *WHY).out
    desk.relay()
    assert len(bank.submitted) == 1
    ran = set_up("payouts", "resume", "--shop", platform.shop, "--reason", "explained", "--by", "bob")
    assert "1 go to the bank" in ran.out
    desk.relay()
    assert desk.told[-1].type == "payout.settled"
    assert actions(desk, platform.shop) == [
        ("ada", "payouts_paused", "an odd payout"),
        ("bob", "payouts_resumed", "explained"),
    ]
    assert "were not paused" in set_up("payouts", "resume", *WHY).out


def test_what_is_in_flight_is_still_asked_for_while_paused_and_never_sent_again(
    set_up: Holdfast, desk_with: Callable[[ScriptedBank], Desk], resume_after: None
) -> None:
    bank = ScriptedBank(submit=[NO_ANSWER, NO_ANSWER, SETTLED], find=[SETTLED, NEVER_SEEN, NEVER_SEEN])
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    sellers = [desk.a_seller(platform, available=10_000) for _ in range(2)]
    for seller in sellers:
        desk.seller_withdraws(platform.withdraws(seller, 4_000))
    assert len(bank.submitted) == 2
    set_up("payouts", "pause", *WHY)
    told = desk.ring_alarms("check_transfer")
    assert [e.type for e in told] == ["payout.submitted", "payout.settled"], "one had arrived"
    assert len(bank.submitted) == 2, "the other had not, and is not sent while paused"
    set_up("payouts", "resume", *WHY)
    desk.relay()
    assert desk.told[-1].type == "payout.settled"
    ids = [one.end_to_end_id for one in bank.submitted]
    assert len(ids) == 3
    assert len(set(ids)) == 2, "sent again under its one id"


def test_refunds_wait_for_the_end_of_a_pause_too(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform, resume_after: None
) -> None:
    bank: Any = desk.bank
    order = order_data(splits={"s-1": 500})
    desk.shop_says(order_paid(platform.shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    set_up("payouts", "pause", *WHY)
    told = desk.buyers_ask(refund_requested(platform.shop, order, {"s-1": 500}))
    assert "refund.accepted" in [e.type for e in told]
    assert bank.submitted == []
    assert sweep(desk.steps, grace_seconds=0, queue_depth=lambda _q: 0)["resting_refunds"] == 0
    assert "1 go to the bank" in set_up("payouts", "resume", *WHY).out
    desk.relay()
    assert desk.told[-1].type == "refund.settled"


def test_a_pause_and_a_transfer_at_once_are_one_after_the_other(
    set_up: Holdfast, desk_with: Callable[[ScriptedBank], Desk], resume_after: None
) -> None:
    """Once the command has returned, nobody begins to hand over anything: it is sent before, or waits."""
    desk = desk_with(ScriptedBank(submit=[PENDING], find=[PENDING]))
    bank: Any = desk.bank
    platform = desk.platform(desk.a_shop())
    for _ in range(4):
        seller = desk.a_seller(platform, available=10_000)
        desk.book_withdrawals(platform.withdraws(seller, 4_000))
        check = [row for row in desk.commands if row.command == "check_password"]
        desk.commands.clear()
        desk.handle(*check)
        submit = list(desk.commands)
        desk.commands.clear()
        before = len(bank.submitted)
        side_by_side(partial(desk.handle, *submit), partial(set_up, "payouts", "pause", *WHY))
        sent = len(bank.submitted) - before
        state = desk.value(
            "SELECT t.state FROM transfers AS t JOIN withdrawals USING (payout_id) WHERE seller_id = :s",
            s=seller,
        )
        assert (sent, state) in {(1, "submitted"), (0, "ready")}
        desk.handle(*submit)
        assert len(bank.submitted) == before + sent, "after it has returned, never"
        set_up("payouts", "resume", *WHY)
        desk.relay()
        assert len(bank.submitted) == before + 1
