"""`withdrawal.requested`: the right password and enough money, judged once, counted always."""

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from workflow_support.banks import PENDING, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk, Told, command_of
from workflow_support.events import (
    PASSWORD,
    WRONG_PASSWORD,
    SellersPlatform,
    bank_credited,
    credit_data,
    fresh,
    order_data,
    order_paid,
)
from workflow_support.races import met_at_a_lock, side_by_side

from workers.payout.handlers import passwords


@pytest.fixture
def desk(desk_with: Callable[[ScriptedBank], Desk]) -> Desk:
    """At a bank that accepts every transfer and settles none, so that money rests on its way."""
    return desk_with(ScriptedBank(submit=[PENDING], find=[PENDING]))


@pytest.fixture
def platform(desk: Desk) -> SellersPlatform:
    return desk.platform(desk.a_shop())


def judged(told: list[Told]) -> list[tuple[str, str | None]]:
    """Return the answers to withdrawals, without what the bank made of them."""
    return [(e.type, e.data.get("reason")) for e in told if e.type.startswith("withdrawal.")]


ACCEPTED = [("withdrawal.accepted", None)]


def rejected(reason: str) -> list[tuple[str, str | None]]:
    return [("withdrawal.rejected", reason)]


def failures(desk: Desk, platform: SellersPlatform, seller: str) -> int:
    return desk.value(
        "SELECT failed_attempts FROM sellers WHERE (shop_id, seller_id) = (:shop, :seller)",
        shop=platform.shop,
        seller=seller,
    )


def drain(desk: Desk) -> None:
    """Let everybody have their turn whose password could not be checked at once."""
    while any(row.command == "check_password" for row in desk.delayed):
        desk.ring_alarms("check_password")


def guess(desk: Desk, platform: SellersPlatform, seller: str, times: int) -> list[tuple[str, str | None]]:
    answers: list[tuple[str, str | None]] = []
    for _ in range(times):
        answers += judged(desk.seller_withdraws(platform.withdraws(seller, 1, password=WRONG_PASSWORD)))
    return answers


def test_the_right_password_reserves_the_money(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    event = platform.withdraws(seller, 4_000)
    told = desk.seller_withdraws(event)
    assert [e.type for e in told] == ["withdrawal.accepted", "payout.submitted"]
    assert told[0].data["event_id"] == event.envelope.id
    assert (told[0].data["amount"], told[0].data["currency"]) == (4_000, "CNY")
    assert balance(desk.engine, platform.shop, seller) == {
        "available": 6_000,
        "in_payout": 4_000,
        "received": -10_000,
    }


def test_a_wrong_password_moves_nothing_and_is_final_for_its_withdrawal(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    withdrawal_id = fresh("w")
    wrong = platform.withdraws(seller, 4_000, password=WRONG_PASSWORD, withdrawal_id=withdrawal_id)
    first = desk.seller_withdraws(wrong)
    assert judged(first) == rejected("wrong_password")
    right = platform.withdraws(seller, 4_000, withdrawal_id=withdrawal_id)
    assert desk.seller_withdraws(right) == first, "a mistyped password needs a new withdrawal_id"
    assert balance(desk.engine, platform.shop, seller)["available"] == 10_000
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 4_000))) == ACCEPTED


def test_all_that_is_available_can_be_withdrawn_and_not_one_unit_more(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 10_001))) == rejected("insufficient_funds")
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 10_000))) == ACCEPTED
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == rejected("insufficient_funds")


def test_money_that_is_held_is_not_withdrawable(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=500)
    desk.shop_says(order_paid(platform.shop, order_data(splits={seller: 500})))
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 501))) == rejected("insufficient_funds")


def test_money_of_another_currency_does_not_count(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    event = platform.withdraws(seller, 1, currency="EUR")
    assert judged(desk.seller_withdraws(event)) == rejected("insufficient_funds")


def test_unknown_sellers_and_destinations_are_told_so_without_a_password_check(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    nobody = platform.withdraws("nobody", 1)
    nowhere = platform.withdraws(seller, 1, destination_id="nowhere", password=WRONG_PASSWORD)
    assert judged(desk.seller_withdraws(nobody)) == rejected("unknown_seller")
    assert judged(desk.seller_withdraws(nowhere)) == rejected("unknown_destination")
    assert failures(desk, platform, seller) == 0


def test_a_sealed_part_that_does_not_match_is_refused_and_names_the_field(
    desk: Desk, platform: SellersPlatform
) -> None:
    """A right password sealed for one request serves no other one."""
    seller = desk.a_seller(platform, available=10_000)
    others: list[dict[str, Any]] = [
        {"amount": 1},
        {"currency": "EUR"},
        {"destination_id": "d-2"},
        {"withdrawal_id": "w-other"},
        {"seller_id": "s-other"},
        {"shop_id": "other"},
        {"event_id": "e-other"},
    ]
    for other in others:
        [told] = desk.seller_withdraws(platform.withdraws(seller, 4_000, sealed=other))
        assert told.data["reason"] == "invalid_data"
        assert f"sealed.{next(iter(other))}" in told.data["detail"]
    assert balance(desk.engine, platform.shop, seller)["available"] == 10_000
    assert failures(desk, platform, seller) == 0


def test_a_sealed_part_that_does_not_open_is_refused(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    told = desk.seller_withdraws(platform.withdraws(seller, 1, sealed="not.a.token"))
    assert judged(told) == rejected("invalid_data")


def test_a_suspended_shops_sellers_wait(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    desk.execute("UPDATE shops SET state = 'suspended' WHERE shop_id = :shop", shop=platform.shop)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == rejected("shop_suspended")


def test_the_same_request_again_gets_the_first_answer_and_counts_once(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    event = platform.withdraws(seller, 4_000)
    first = desk.seller_withdraws(event)[:1]
    assert desk.seller_withdraws(event) == first
    other_event = platform.withdraws(seller, 4_000, withdrawal_id=first[0].data["withdrawal_id"])
    assert desk.seller_withdraws(other_event) == first, "sealed anew, it is the same request"
    assert balance(desk.engine, platform.shop, seller)["in_payout"] == 4_000


def test_other_content_under_a_known_withdrawal_is_refused_and_changes_nothing(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    withdrawal_id = fresh("w")
    desk.seller_withdraws(platform.withdraws(seller, 4_000, withdrawal_id=withdrawal_id))
    other = platform.withdraws(seller, 5_000, withdrawal_id=withdrawal_id)
    told = desk.seller_withdraws(other)
    assert judged(told) == rejected("conflicting_duplicate")
    assert told[0].data["event_id"] == other.envelope.id
    assert desk.seller_withdraws(other) == told
    assert balance(desk.engine, platform.shop, seller)["in_payout"] == 4_000


def test_duplicates_in_one_batch_reserve_once(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    event = platform.withdraws(seller, 4_000)
    told = desk.seller_withdraws(event, event)
    assert judged(told) == ACCEPTED
    assert balance(desk.engine, platform.shop, seller)["in_payout"] == 4_000


def test_a_batch_with_one_wrong_password_and_one_refusal_harms_no_neighbour(
    desk: Desk, platform: SellersPlatform
) -> None:
    sellers = [desk.a_seller(platform, available=100) for _ in range(4)]
    told = desk.seller_withdraws(
        platform.withdraws(sellers[0], 100),
        platform.withdraws(sellers[1], 100, password=WRONG_PASSWORD),
        platform.withdraws(sellers[2], 101),
        platform.withdraws(sellers[3], 100),
    )
    by_seller = {e.data["seller_id"]: e.data.get("reason") for e in told if e.type.startswith("withdrawal.")}
    assert [by_seller[seller] for seller in sellers] == [None, "wrong_password", "insufficient_funds", None]


# Guessing.


def test_the_fifth_wrong_password_locks_and_the_right_one_is_refused_then(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    assert guess(desk, platform, seller, 5) == rejected("wrong_password") * 5
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == rejected("locked")
    assert balance(desk.engine, platform.shop, seller)["available"] == 10_000


def test_a_lock_ends_by_itself_and_a_right_password_clears_the_count(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    guess(desk, platform, seller, 5)
    [row] = desk.execute(
        "SELECT locked_until - clock_timestamp() AS left FROM sellers WHERE seller_id = :s", s=seller
    )
    assert 890 < row.left.total_seconds() <= 900
    desk.execute("UPDATE sellers SET locked_until = clock_timestamp() WHERE seller_id = :s", s=seller)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == ACCEPTED
    assert failures(desk, platform, seller) == 0


def test_ten_lock_for_a_day_and_fifteen_until_an_operator_lifts_it_over_restarts_too(
    desk: Desk, platform: SellersPlatform, desk_with: Callable[[ScriptedBank], Desk]
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    named = {15: "15_minutes", 24 * 60: "24_hours", None: "operator"}
    for minutes, until in named.items():
        before = REGISTRY.get_sample_value("holdfast_password_locks_total", {"until": until}) or 0
        # A worker that knows nothing of the guesses before takes over.
        worker = desk_with(ScriptedBank(submit=[PENDING], find=[PENDING]))
        assert guess(worker, platform, seller, 5) == rejected("wrong_password") * 5
        for asked in (platform.withdraws(seller, 1), platform.withdraws(seller, 1, password=WRONG_PASSWORD)):
            assert judged(worker.seller_withdraws(asked)) == rejected("locked")
        [row] = desk.execute(
            """
            SELECT extract(epoch FROM locked_until - clock_timestamp()) / 60 AS minutes, locked_by_failures
            FROM sellers WHERE seller_id = :s
            """,
            s=seller,
        )
        assert row.locked_by_failures is (minutes is None)
        assert REGISTRY.get_sample_value("holdfast_password_locks_total", {"until": until}) == before + 1
        if minutes is not None:
            assert minutes - 1 < row.minutes <= minutes
        # The time passes; it ends the first two locks and not the third.
        desk.execute("UPDATE sellers SET locked_until = clock_timestamp() WHERE seller_id = :s", s=seller)
    assert failures(desk, platform, seller) == 15
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == rejected("locked")
    assert balance(desk.engine, platform.shop, seller)["available"] == 10_000


def test_four_wrong_passwords_and_a_right_one_start_the_count_anew(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    guess(desk, platform, seller, 4)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == ACCEPTED
    assert guess(desk, platform, seller, 4) == rejected("wrong_password") * 4


def test_a_right_password_counts_even_where_the_money_is_not_enough(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10)
    guess(desk, platform, seller, 4)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 11))) == rejected("insufficient_funds")
    assert failures(desk, platform, seller) == 0


def test_a_lock_guards_enrolment_and_change_of_password_too(desk: Desk, platform: SellersPlatform) -> None:
    """Otherwise they would be the way to go on guessing."""
    seller = desk.a_seller(platform)
    guess(desk, platform, seller, 5)
    asked = [
        platform.enrols(seller, destination_id="d-2"),
        platform.changes_password(seller, old=PASSWORD, new="an entirely new one"),
    ]
    told = desk.seller_asks(*asked)
    assert [event.data["reason"] for event in told] == ["locked", "locked"]


def test_guesses_at_the_same_moment_each_count(desk: Desk, platform: SellersPlatform) -> None:
    """Eight at once, all of them past the first look at the lock: five are checked, three are not."""
    seller = desk.a_seller(platform, available=10_000)
    events = [platform.withdraws(seller, 1, password=WRONG_PASSWORD) for _ in range(8)]
    desk.book_withdrawals(*events)
    [row] = desk.commands
    desk.commands.clear()
    command = command_of(row)
    singles = [type(command)(attempt_ids=(id_,)) for id_ in command.attempt_ids]
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM sellers WHERE seller_id = :seller FOR UPDATE",
        *[
            lambda single=single: passwords.check_passwords(desk.steps, [single], tools=desk.password_tools)
            for single in singles
        ],
        seller=seller,
    )
    drain(desk)
    assert sorted(judged(desk.told)) == rejected("locked") * 3 + rejected("wrong_password") * 5
    assert failures(desk, platform, seller) == 5
    assert desk.value("SELECT locked_until > clock_timestamp() FROM sellers WHERE seller_id = :s", s=seller)


def test_guesses_in_one_batch_each_count(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    told = desk.seller_withdraws(*[platform.withdraws(seller, 1, password=WRONG_PASSWORD) for _ in range(8)])
    assert sorted(judged(told)) == rejected("locked") * 3 + rejected("wrong_password") * 5


def test_one_sellers_guesses_lock_no_other_seller(desk: Desk, platform: SellersPlatform) -> None:
    guessed, other = desk.a_seller(platform, available=100), desk.a_seller(platform, available=100)
    guess(desk, platform, guessed, 6)
    assert judged(desk.seller_withdraws(platform.withdraws(other, 100))) == ACCEPTED


def test_a_crash_between_count_and_decision_costs_one_attempt_not_two(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    desk.book_withdrawals(platform.withdraws(seller, 4_000))
    [row] = desk.commands
    # The worker dies right after it has counted: nothing of the rest happens.
    passwords._count(desk.steps, command_of(row).attempt_ids)
    assert failures(desk, platform, seller) == 1
    desk.run()
    assert judged(desk.told) == ACCEPTED
    assert failures(desk, platform, seller) == 0, "the redelivered attempt was checked, and was right"


def test_a_crash_at_each_wrong_guess_gives_no_free_guess(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    for _ in range(5):
        desk.book_withdrawals(platform.withdraws(seller, 1, password=WRONG_PASSWORD))
        passwords._count(desk.steps, command_of(desk.commands[0]).attempt_ids)
        desk.run()
    assert failures(desk, platform, seller) == 5
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == rejected("locked")


def test_a_right_password_meets_no_lock_that_only_its_neighbour_has_caused(
    desk: Desk, platform: SellersPlatform
) -> None:
    """The fifth attempt locks before it is checked; it is right, so the lock was never deserved."""
    seller = desk.a_seller(platform, available=10_000)
    guess(desk, platform, seller, 4)
    desk.told.clear()
    desk.book_withdrawals(platform.withdraws(seller, 1_000))
    fifth = list(desk.commands)
    desk.commands.clear()
    # One worker is checking the fifth; others book a sixth and come to its turn meanwhile.
    passwords._count(desk.steps, command_of(fifth[0]).attempt_ids)
    desk.seller_withdraws(platform.withdraws(seller, 2_000))
    assert desk.told == [], "it waits for the fifth to be decided"
    desk.handle(*fifth)
    drain(desk)
    desk.run()
    assert judged(desk.told) == ACCEPTED * 2


def test_an_attempt_handled_twice_is_decided_once(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    desk.book_withdrawals(platform.withdraws(seller, 4_000))
    rows = list(desk.commands)
    desk.run()
    desk.handle(*rows)
    desk.run()
    assert judged(desk.told) == ACCEPTED
    assert balance(desk.engine, platform.shop, seller)["in_payout"] == 4_000


# Money for one.


def test_two_withdrawals_beside_each_other_with_money_for_one(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    events = [platform.withdraws(seller, 10_000) for _ in range(2)]
    side_by_side(*[lambda event=event: desk.seller_withdraws(event) for event in events])
    drain(desk)
    assert sorted(judged(desk.told)) == ACCEPTED + rejected("insufficient_funds")
    assert balance(desk.engine, platform.shop, seller) == {"in_payout": 10_000, "received": -10_000}


def test_two_withdrawals_in_one_batch_with_money_for_one(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    told = desk.seller_withdraws(*[platform.withdraws(seller, 10_000) for _ in range(2)])
    assert sorted(judged(told)) == ACCEPTED + rejected("insufficient_funds")


def test_the_database_itself_refuses_a_negative_withdrawable_balance(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    with pytest.raises(Exception, match="available_balances_not_negative_check"):
        desk.execute(
            "UPDATE available_balances SET available_minor = available_minor - 10001 WHERE seller_id = :s",
            s=seller,
        )


def test_a_withdrawal_beside_a_release_sees_either_balance_and_loses_nothing(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=250)
    for _ in range(5):
        order = order_data(splits={seller: 100})
        desk.shop_says(order_paid(platform.shop, order))
        desk.bank_says(bank_credited(credit_data(order)))
        desk.pass_protection(platform.shop, order["order_id"])
        alarms = [row for row in desk.delayed if row.command == "release_hold"]
        desk.delayed.clear()
        side_by_side(
            lambda alarms=alarms: desk.handle(*alarms),
            lambda: desk.seller_withdraws(platform.withdraws(seller, 50)),
        )
        desk.run()
    left = balance(desk.engine, platform.shop, seller)
    assert (left["available"], left["in_payout"]) == (500, 250)
