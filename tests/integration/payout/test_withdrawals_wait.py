"""Withdrawals that wait, after a change or over a limit: their money is set aside and moves once."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from workflow_support.banks import PENDING, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import DAY_SECONDS, Desk, Told, command_of
from workflow_support.events import PASSWORD, WRONG_PASSWORD, SellersPlatform, fresh
from workflow_support.races import met_at_a_lock, side_by_side

from infra.postgres.outbox import CommandRow
from infra.rabbitmq.ingress import InboundEvent
from workers.payout.handlers import passwords, withdrawals
from workers.payout.withdrawal_store import lock_pending
from workers.relay.sweep import sweep

NEW_PASSWORD = "an entirely new one"
ACCEPTED = ("withdrawal.accepted", None)
COOLING_OFF = ("withdrawal.pending", "cooling_off")
OVER_LIMIT = ("withdrawal.pending", "over_limit")


@pytest.fixture
def desk(desk_with: Callable[[ScriptedBank], Desk]) -> Desk:
    """At a bank that accepts every transfer and settles none, so that money rests on its way."""
    return desk_with(ScriptedBank(submit=[PENDING], find=[PENDING]))


@pytest.fixture
def platform(desk: Desk) -> SellersPlatform:
    return desk.platform(desk.a_shop())


def judged(told: list[Told]) -> list[tuple[str, str | None]]:
    return [(e.type, e.data.get("reason")) for e in told if e.type.startswith("withdrawal.")]


def money(desk: Desk, platform: SellersPlatform, seller: str) -> tuple[int, int]:
    """Return what is available and what is on its way out."""
    accounts = balance(desk.engine, platform.shop, seller)
    return accounts.get("available", 0), accounts.get("in_payout", 0)


def change_password(desk: Desk, platform: SellersPlatform, seller: str) -> None:
    [told] = desk.seller_asks(platform.changes_password(seller, old=PASSWORD, new=NEW_PASSWORD))
    assert told.type == "seller.accepted"
    desk.told.clear()


def a_cooling_withdrawal(
    desk: Desk, platform: SellersPlatform, amount: int = 4_000
) -> tuple[str, list[Told]]:
    seller = desk.a_seller(platform, available=10_000)
    change_password(desk, platform, seller)
    return seller, desk.seller_withdraws(platform.withdraws(seller, amount, password=NEW_PASSWORD))


def let_time_pass(desk: Desk, seller: str) -> None:
    """End the cooling-off of all that waits for it, without waiting."""
    desk.execute(
        "UPDATE withdrawals SET pending_until = clock_timestamp() - interval '1 minute'"
        " WHERE seller_id = :s AND pending_until IS NOT NULL",
        s=seller,
    )


def set_limits(
    desk: Desk, shop: str, seller: str | None = None, *, scope: str = "seller", **limits: int
) -> None:
    desk.execute(
        """
        INSERT INTO withdrawal_limits
            (shop_id, scope, seller_id, currency, per_withdrawal_minor, per_day_minor, per_hour_count)
        VALUES (:shop, :scope, :seller, 'CNY', :per_withdrawal, :per_day, :per_hour)
        """,
        shop=shop,
        scope=scope,
        seller=seller or "",
        **{name: limits.get(name) for name in ("per_withdrawal", "per_day", "per_hour")},
    )


def payout_of(desk: Desk, seller: str) -> Any:
    return desk.value("SELECT payout_id FROM withdrawals WHERE seller_id = :s", s=seller)


# Cooling-off.


def test_after_a_new_password_a_withdrawal_waits_with_its_money_set_aside(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller, told = a_cooling_withdrawal(desk, platform)
    assert judged(told) == [COOLING_OFF]
    [waits] = desk.execute(
        """
        SELECT w.pending_until - s.password_changed_at AS waits, w.pending_until FROM withdrawals AS w
        JOIN sellers AS s USING (shop_id, seller_id) WHERE seller_id = :s
        """,
        s=seller,
    )
    assert waits.waits == timedelta(seconds=DAY_SECONDS)
    assert told[0].data["until"].startswith(f"{waits.pending_until:%Y-%m-%dT%H:%M:%S}")
    assert money(desk, platform, seller) == (6_000, 4_000)
    assert desk.value("SELECT count(*) FROM transfers WHERE payout_id = :p", p=payout_of(desk, seller)) == 0
    more = desk.seller_withdraws(platform.withdraws(seller, 6_001, password=NEW_PASSWORD))
    assert judged(more) == [("withdrawal.rejected", "insufficient_funds")], "what waits is not there twice"


def test_it_goes_on_by_itself_when_it_has_cooled_off(desk: Desk, platform: SellersPlatform) -> None:
    seller, waiting = a_cooling_withdrawal(desk, platform)
    let_time_pass(desk, seller)
    told = desk.ring_alarms("resume_withdrawal")
    assert [event.type for event in told] == ["withdrawal.accepted", "payout.submitted"]
    assert told[0].event_id != waiting[0].event_id, "each answer has an id of its own"
    assert told[0].data["event_id"] == waiting[0].data["event_id"]
    assert money(desk, platform, seller) == (6_000, 4_000)
    assert desk.ring_alarms("resume_withdrawal") == []


def test_an_alarm_that_rings_early_goes_back_to_sleep_and_a_second_one_does_nothing(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller, _ = a_cooling_withdrawal(desk, platform)
    alarms = [row for row in desk.delayed if row.command == "resume_withdrawal"]
    assert [0 < row.delay_ms <= DAY_SECONDS * 1000 for row in alarms] == [True]
    assert desk.ring_alarms("resume_withdrawal") == []
    assert len([row for row in desk.delayed if row.command == "resume_withdrawal"]) == 1, "armed again"
    let_time_pass(desk, seller)
    side_by_side(*[lambda: desk.handle(alarms[0]) for _ in range(3)])
    desk.run()
    assert judged(desk.told[-3:]).count(ACCEPTED) == 1
    assert money(desk, platform, seller) == (6_000, 4_000)


def test_the_sweep_finds_a_lost_alarm_and_no_withdrawal_that_still_cools_off(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller, _ = a_cooling_withdrawal(desk, platform)
    desk.delayed.clear()
    found = sweep(desk.steps, grace_seconds=15, queue_depth=lambda _queue: 0)
    assert found["cooled_off_withdrawals"] == 0
    let_time_pass(desk, seller)
    found = sweep(desk.steps, grace_seconds=15, queue_depth=lambda _queue: 0)
    assert found["cooled_off_withdrawals"] == 1
    desk.run()
    assert ACCEPTED in judged(desk.told)


def test_a_new_destination_cools_off_and_the_old_one_does_not_wait(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1_000))) == [ACCEPTED], "the first is none"
    desk.seller_asks(platform.enrols(seller, destination_id="d-2"))
    to_new, to_old = (
        desk.seller_withdraws(platform.withdraws(seller, 1_000, destination_id=destination))
        for destination in ("d-2", "d-1")
    )
    assert (judged(to_new), judged(to_old)) == ([COOLING_OFF], [ACCEPTED])


def test_a_hash_made_anew_is_no_change_of_the_password(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    [before] = desk.execute(
        "SELECT password_hash, password_changed_at FROM sellers WHERE seller_id = :s", s=seller
    )
    tools = desk.password_tools
    stronger = passwords.Passwords(memory_kib=16, iterations=2, parallelism=1)
    desk.password_tools = passwords.PasswordTools(
        stronger, tools.vault, tools.opener, tools.pool, tools.cooling_off_seconds
    )
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1, password=WRONG_PASSWORD))) == [
        ("withdrawal.rejected", "wrong_password")
    ]
    for _ in range(2):
        assert judged(desk.seller_withdraws(platform.withdraws(seller, 1_000))) == [ACCEPTED]
    [after] = desk.execute(
        "SELECT password_hash, password_changed_at FROM sellers WHERE seller_id = :s", s=seller
    )
    assert "m=8,t=1" in before.password_hash
    assert "m=16,t=2" in after.password_hash
    assert after.password_changed_at == before.password_changed_at


def test_the_same_request_again_gets_all_that_was_told_about_it(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    change_password(desk, platform, seller)
    event = platform.withdraws(seller, 4_000, password=NEW_PASSWORD)
    sealed_anew = platform.withdraws(
        seller,
        4_000,
        password=NEW_PASSWORD,
        withdrawal_id=event.data.withdrawal_id,  # type: ignore[union-attr]
    )
    [waiting] = desk.seller_withdraws(event)
    assert desk.seller_withdraws(event) == desk.seller_withdraws(sealed_anew) == [waiting]
    let_time_pass(desk, seller)
    accepted = desk.ring_alarms("resume_withdrawal")[0]
    for again in (event, sealed_anew):
        told = desk.seller_withdraws(again)
        assert {one.event_id for one in told} == {waiting.event_id, accepted.event_id}
    assert money(desk, platform, seller) == (6_000, 4_000)


# Limits.


def test_over_the_limit_of_one_withdrawal_it_waits_for_people_without_until(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_withdrawal=1_000)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1_000))) == [ACCEPTED]
    told = desk.seller_withdraws(platform.withdraws(seller, 1_001))
    assert judged(told) == [OVER_LIMIT]
    assert "until" not in told[0].data
    assert money(desk, platform, seller) == (10_000 - 2_001, 2_001)
    assert [row for row in desk.delayed if row.command == "resume_withdrawal"] == []
    desk.handle(_alarm(desk, seller, "pending"))
    assert judged(desk.told[-1:]) == [OVER_LIMIT], "no alarm moves it"


def _alarm(desk: Desk, seller: str, state: str) -> Any:
    payout_id = desk.value(
        "SELECT payout_id FROM withdrawals WHERE seller_id = :s AND state = :state", s=seller, state=state
    )
    return CommandRow("payout.bank", "resume_withdrawal", f'{{"payout_ids": ["{payout_id}"]}}')


def test_a_days_limit_counts_what_went_today_in_utc(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_day=1_000)
    for amount, expected in ((600, ACCEPTED), (401, OVER_LIMIT), (400, ACCEPTED), (1, OVER_LIMIT)):
        assert judged(desk.seller_withdraws(platform.withdraws(seller, amount))) == [expected]
    # Midnight of UTC passes.
    desk.execute(
        "UPDATE withdrawals SET reserved_at = date_trunc('day', clock_timestamp(), 'UTC') - interval '1 s'"
        " WHERE seller_id = :s",
        s=seller,
    )
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1_000))) == [ACCEPTED]


def test_an_hours_limit_counts_withdrawals_of_the_last_sixty_minutes(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_hour=2)
    for expected in (ACCEPTED, ACCEPTED, OVER_LIMIT):
        assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == [expected]
    desk.execute(
        "UPDATE withdrawals SET reserved_at = reserved_at - interval '60 minutes' WHERE seller_id = :s",
        s=seller,
    )
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 1))) == [ACCEPTED]


def test_a_sellers_own_limits_stand_instead_of_those_of_all_sellers(
    desk: Desk, platform: SellersPlatform
) -> None:
    trusted, other = (desk.a_seller(platform, available=10_000) for _ in range(2))
    set_limits(desk, platform.shop, scope="sellers", per_withdrawal=100)
    set_limits(desk, platform.shop, trusted, per_withdrawal=5_000)
    for seller, expected in ((trusted, ACCEPTED), (other, OVER_LIMIT)):
        assert judged(desk.seller_withdraws(platform.withdraws(seller, 5_000))) == [expected]
    assert judged(desk.seller_withdraws(platform.withdraws(trusted, 5_000))) == [ACCEPTED], "none a day"


def test_a_shops_limit_holds_for_all_its_sellers_together_and_for_no_other_shop(
    desk: Desk, platform: SellersPlatform
) -> None:
    elsewhere = desk.platform(desk.a_shop())
    sellers = [desk.a_seller(platform, available=10_000) for _ in range(3)]
    stranger = desk.a_seller(elsewhere, available=10_000)
    set_limits(desk, platform.shop, scope="shop", per_day=2_000)
    told = desk.seller_withdraws(
        *[platform.withdraws(seller, 1_000) for seller in sellers], elsewhere.withdraws(stranger, 10_000)
    )
    assert sorted(judged(told), key=str) == [ACCEPTED] * 3 + [OVER_LIMIT], "in one batch too"


def test_no_two_withdrawals_at_once_slip_under_a_sellers_limit(desk: Desk, platform: SellersPlatform) -> None:
    """Six at the same moment, of which three fit: all have begun before any can finish."""
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_day=3_000)
    desk.book_withdrawals(*[platform.withdraws(seller, 1_000) for _ in range(6)])
    _check_all_at_once(desk, "SELECT 1 FROM sellers WHERE seller_id = :seller FOR UPDATE", seller=seller)
    assert sorted(judged(desk.told), key=str) == [ACCEPTED] * 3 + [OVER_LIMIT] * 3


def test_no_two_sellers_at_once_slip_under_their_shops_limit(desk: Desk, platform: SellersPlatform) -> None:
    sellers = [desk.a_seller(platform, available=10_000) for _ in range(6)]
    set_limits(desk, platform.shop, scope="shop", per_hour=3)
    desk.book_withdrawals(*[platform.withdraws(seller, 1_000) for seller in sellers])
    _check_all_at_once(
        desk,
        "SELECT pg_advisory_xact_lock(hashtextextended('withdrawal limits ' || :shop || ' CNY', 0))",
        shop=platform.shop,
    )
    assert sorted(judged(desk.told), key=str) == [ACCEPTED] * 3 + [OVER_LIMIT] * 3


def _check_all_at_once(desk: Desk, lock: str, **values: object) -> None:
    [row] = desk.commands
    desk.commands.clear()
    desk.told.clear()
    command: Any = command_of(row)
    singles = [type(command)(attempt_ids=(id_,)) for id_ in command.attempt_ids]
    met_at_a_lock(
        desk.engine,
        lock,
        *[
            lambda single=single: passwords.check_passwords(desk.steps, [single], tools=desk.password_tools)
            for single in singles
        ],
        **values,
    )
    desk.run()
    while any(row.command == "check_password" for row in desk.delayed):
        desk.ring_alarms("check_password")


def test_a_wrong_password_over_a_limit_is_wrong_and_counts(desk: Desk, platform: SellersPlatform) -> None:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_withdrawal=1)
    told = desk.seller_withdraws(platform.withdraws(seller, 5_000, password=WRONG_PASSWORD))
    assert judged(told) == [("withdrawal.rejected", "wrong_password")]
    assert money(desk, platform, seller) == (10_000, 0)


# Reviews. The commands are tried in tests/integration/ops.


def review(desk: Desk, payout_id: Any, act: Callable[..., Any]) -> list[Told]:
    """Do what the second name of two does."""
    before = len(desk.told)
    with desk.steps.begin("review_withdrawal") as step:
        for pending in lock_pending(step.connection, [payout_id]):
            verdict = "reject" if act is withdrawals.carry_out_rejection else "approve"
            desk.execute(
                """
                INSERT INTO withdrawal_reviews (payout_id, verdict, proposed_by, proposed_why, proposed_at,
                                                decided_by, decided_why, decided_at)
                VALUES (:p, :v, 'ada', '', clock_timestamp(), 'bob', '', clock_timestamp())
                """,
                p=payout_id,
                v=verdict,
            )
            act(step, pending)
    desk.run()
    return desk.told[before:]


def an_over_limit_withdrawal(desk: Desk, platform: SellersPlatform) -> str:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_withdrawal=1_000)
    assert judged(desk.seller_withdraws(platform.withdraws(seller, 4_000))) == [OVER_LIMIT]
    return seller


def test_approved_it_goes_to_the_bank_once_and_then_counts(desk: Desk, platform: SellersPlatform) -> None:
    seller = an_over_limit_withdrawal(desk, platform)
    payout_id = payout_of(desk, seller)
    told = review(desk, payout_id, withdrawals.carry_out_approval)
    assert [event.type for event in told] == ["withdrawal.accepted", "payout.submitted"]
    assert review(desk, payout_id, withdrawals.carry_out_approval) == []
    assert review(desk, payout_id, withdrawals.carry_out_rejection) == []
    assert money(desk, platform, seller) == (6_000, 4_000)


def test_rejected_its_money_is_withdrawable_again_and_the_answer_is_final(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = an_over_limit_withdrawal(desk, platform)
    payout_id = payout_of(desk, seller)
    told = review(desk, payout_id, withdrawals.carry_out_rejection)
    assert judged(told) == [("withdrawal.rejected", "over_limit")]
    assert money(desk, platform, seller) == (10_000, 0)
    assert review(desk, payout_id, withdrawals.carry_out_approval) == []
    assert money(desk, platform, seller) == (10_000, 0)


def test_approved_and_rejected_at_once_it_is_one_of_both(desk: Desk, platform: SellersPlatform) -> None:
    """Two pairs of operators meet at the row; whoever comes second finds nothing that waits."""
    seller = an_over_limit_withdrawal(desk, platform)
    payout_id = payout_of(desk, seller)
    desk.told.clear()

    def decide(act: Callable[..., Any]) -> None:
        with desk.steps.begin("review_withdrawal") as step:
            for pending in lock_pending(step.connection, [payout_id]):
                act(step, pending)

    desk.execute(
        "INSERT INTO withdrawal_reviews VALUES"
        " (:p, 'approve', 'ada', '', clock_timestamp(), 'bob', '', clock_timestamp())",
        p=payout_id,
    )
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM withdrawals WHERE payout_id = :p FOR UPDATE",
        lambda: decide(withdrawals.carry_out_approval),
        lambda: decide(withdrawals.carry_out_rejection),
        p=payout_id,
    )
    desk.run()
    [answer] = judged(desk.told)
    if answer == ACCEPTED:
        assert money(desk, platform, seller) == (6_000, 4_000)
    else:
        assert money(desk, platform, seller) == (10_000, 0)
        # What the books expect of a review that ended so.
        desk.execute("UPDATE withdrawal_reviews SET verdict = 'reject' WHERE payout_id = :p", p=payout_id)


def test_rejected_in_the_moment_its_alarm_rings_it_is_one_of_both(
    desk: Desk, platform: SellersPlatform
) -> None:
    """The operators' transaction and the worker's meet at the row; money moves one way only."""
    seller, _ = a_cooling_withdrawal(desk, platform)
    payout_id = payout_of(desk, seller)
    let_time_pass(desk, seller)
    alarm = _alarm(desk, seller, "pending")
    desk.told.clear()

    def reject() -> None:
        with desk.steps.begin("review_withdrawal") as step:
            for pending in lock_pending(step.connection, [payout_id]):
                step.connection.execute(
                    text(
                        "INSERT INTO withdrawal_reviews VALUES"
                        " (:p, 'reject', 'ada', '', clock_timestamp(), 'bob', '', clock_timestamp())"
                    ),
                    {"p": payout_id},
                )
                withdrawals.carry_out_rejection(step, pending)

    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM withdrawals WHERE payout_id = :p FOR UPDATE",
        lambda: desk.handle(alarm),
        reject,
        p=payout_id,
    )
    desk.run()
    [answer] = judged(desk.told)
    expected = {ACCEPTED: (6_000, 4_000), ("withdrawal.rejected", "cooling_off"): (10_000, 0)}
    assert money(desk, platform, seller) == expected[answer]


def test_over_a_limit_and_changed_it_waits_for_people_first_and_then_for_its_time(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = desk.a_seller(platform, available=10_000)
    set_limits(desk, platform.shop, seller, per_withdrawal=1_000)
    change_password(desk, platform, seller)
    event = platform.withdraws(seller, 4_000, password=NEW_PASSWORD)
    first = desk.seller_withdraws(event)
    assert judged(first) == [OVER_LIMIT]
    second = review(desk, payout_of(desk, seller), withdrawals.carry_out_approval)
    assert judged(second) == [COOLING_OFF]
    assert second[0].event_id != first[0].event_id
    let_time_pass(desk, seller)
    third = desk.ring_alarms("resume_withdrawal")
    assert judged(third) == [ACCEPTED]
    again = {one.event_id for one in desk.seller_withdraws(event)}
    assert again == {first[0].event_id, second[0].event_id, third[0].event_id}


def test_what_somebody_proposes_to_reject_does_not_go_on_by_itself(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller, _ = a_cooling_withdrawal(desk, platform)
    payout_id = payout_of(desk, seller)
    desk.execute(
        "INSERT INTO withdrawal_reviews (payout_id, verdict, proposed_by, proposed_why, proposed_at)"
        " VALUES (:p, 'reject', 'ada', 'not the seller', clock_timestamp())",
        p=payout_id,
    )
    let_time_pass(desk, seller)
    assert desk.ring_alarms("resume_withdrawal") == []
    assert sweep(desk.steps, grace_seconds=15, queue_depth=lambda _q: 0)["cooled_off_withdrawals"] == 0
    assert money(desk, platform, seller) == (6_000, 4_000)


def test_a_review_without_a_step_of_its_own_can_not_name_one_person_twice(desk: Desk) -> None:
    """The database has the last word on two names."""
    with pytest.raises(IntegrityError, match="two_names"):
        desk.execute(
            "INSERT INTO withdrawal_reviews VALUES"
            " (gen_random_uuid(), 'approve', 'ada', '', clock_timestamp(), ' Ada ', '', clock_timestamp())"
        )


# Unknown sellers and floods.


def test_an_unknown_seller_costs_the_same_work_as_a_wrong_password(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait their turn for one argon2 check with the same parameters; only then are they answered."""
    seller = desk.a_seller(platform, available=10_000)
    checks: list[str] = []
    hasher = desk.password_tools.passwords._hasher
    verify = type(hasher).verify

    def counted(self: Any, hash_: str, secret: Any) -> bool:
        checks.append(hash_.rsplit("$", 2)[0])
        return verify(self, hash_, secret)

    monkeypatch.setattr(type(hasher), "verify", counted)
    asked = {
        "unknown_seller": [
            lambda: desk.seller_withdraws(platform.withdraws("nobody", 1)),
            lambda: desk.seller_asks(platform.changes_password("nobody", old=PASSWORD, new=NEW_PASSWORD)),
        ],
        "wrong_password": [
            lambda: desk.seller_withdraws(platform.withdraws(seller, 1, password=WRONG_PASSWORD)),
            lambda: desk.seller_asks(platform.changes_password(seller, old=WRONG_PASSWORD, new=NEW_PASSWORD)),
        ],
    }
    work = {}
    for reason, ways in asked.items():
        checks.clear()
        for ask in ways:
            [told] = ask()
            assert told.data["reason"] == reason
        work[reason] = list(checks)
    assert work["unknown_seller"] == work["wrong_password"] != []
    assert desk.value("SELECT count(*) FROM sellers WHERE seller_id = 'nobody'") == 0


def test_a_seller_who_enrols_before_the_turn_of_an_early_withdrawal_is_judged_like_any_other(
    desk: Desk, platform: SellersPlatform
) -> None:
    seller = fresh("s")
    desk.book_withdrawals(
        platform.withdraws(seller, 1, destination_id="nowhere"), platform.withdraws(seller, 1)
    )
    early = list(desk.commands)
    desk.commands.clear()
    desk.seller_asks(platform.enrols(seller))
    desk.told.clear()
    desk.handle(*early)
    desk.run()
    assert sorted(reason or "" for _, reason in judged(desk.told)) == [
        "insufficient_funds",
        "unknown_destination",
    ]


def test_a_flood_of_attempts_gives_way_and_is_decided_in_the_end(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits behind a flood for the same thread gets it after a moment, not after the flood."""
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", -1.0)
    desk.book_withdrawals(*[platform.withdraws(fresh("nobody"), 1) for _ in range(3 * passwords._ROUND)])
    turns = 0
    while desk.commands:
        row = desk.commands.pop(0)
        before = len(desk.told)
        desk.handle(row)
        assert len(desk.told) - before <= passwords._ROUND
        turns += 1
    assert turns == 3
    assert judged(desk.told) == [("withdrawal.rejected", "unknown_seller")] * 3 * passwords._ROUND


@pytest.mark.parametrize("flood", ["of names that nobody knows", "of guesses at one seller"])
def test_a_shop_behind_anothers_flood_is_among_the_next_few(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    """It is asked last, after more than one round can do, and decided before the flood gives way once."""
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", -1.0)
    other = desk.platform(desk.a_shop())
    paid, guessed = desk.a_seller(other, available=10_000), desk.a_seller(platform, available=10_000)
    names = [guessed if flood.endswith("seller") else fresh("nobody") for _ in range(3 * passwords._ROUND)]
    asked = [platform.withdraws(name, 1, password=WRONG_PASSWORD) for name in names]
    assert turns_until_paid(desk, asked, other.withdraws(paid, 100)) == 1


def test_a_seller_behind_guesses_at_another_one_is_among_the_next_few(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", -1.0)
    guessed, paid = (desk.a_seller(platform, available=10_000) for _ in range(2))
    guesses = [platform.withdraws(guessed, 1, password=WRONG_PASSWORD) for _ in range(3 * passwords._ROUND)]
    assert turns_until_paid(desk, guesses, platform.withdraws(paid, 100)) == 1


@pytest.mark.parametrize("flooding", ["shops", "sellers of the same shop"])
def test_more_floods_than_a_round_can_serve_overtake_nobody_for_ever(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch, flooding: str
) -> None:
    """Each flood has an attempt for every turn; whoever comes last has as good a chance as they."""
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", -1.0)
    turns = 12
    paid = desk.a_seller(platform, available=10_000)
    guesses = []
    for _ in range(passwords._ROUND):
        theirs = platform if "same" in flooding else desk.platform(desk.a_shop())
        guessed = fresh("nobody")
        guesses += [theirs.withdraws(guessed, 1, password=WRONG_PASSWORD) for _ in range(turns)]
    # Left behind in one turn with a chance of 1 in 9, in all of them never.
    assert turns_until_paid(desk, guesses, platform.withdraws(paid, 100)) < turns


def turns_until_paid(desk: Desk, before: list[InboundEvent], withdrawal: InboundEvent) -> int:
    """Ask for all these at once, the withdrawal last; return in which turn it was accepted; end them all."""
    desk.told.clear()
    desk.book_withdrawals(*before, withdrawal)
    turns = 0
    while ACCEPTED not in judged(desk.told):
        heard = len(judged(desk.told))
        desk.handle(desk.commands.pop(0))
        assert heard < len(judged(desk.told)) <= heard + passwords._ROUND
        turns += 1
    desk.run()
    assert len(judged(desk.told)) == len(before) + 1
    return turns


def test_in_a_flood_several_attempts_of_one_seller_are_all_decided(
    desk: Desk, platform: SellersPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take turns, one at a time; giving way must not lose those whose turn has not come."""
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", -1.0)
    seller = desk.a_seller(platform, available=10_000)
    told = desk.seller_withdraws(*[platform.withdraws(seller, 100) for _ in range(2 * passwords._ROUND)])
    assert judged(told) == [ACCEPTED] * 2 * passwords._ROUND


def test_a_hash_that_needs_a_missing_pepper_waits_for_it_and_harms_no_neighbour(
    desk: Desk, platform: SellersPlatform
) -> None:
    lost, other = (desk.a_seller(platform, available=10_000) for _ in range(2))
    [row] = desk.execute("SELECT password_hash FROM sellers WHERE seller_id = :s", s=lost)
    desk.execute("UPDATE sellers SET password_hash = '$hp$7' || password_hash WHERE seller_id = :s", s=lost)
    told = desk.seller_withdraws(platform.withdraws(lost, 1_000), platform.withdraws(other, 1_000))
    assert [event.data["seller_id"] for event in told if event.type == "withdrawal.accepted"] == [other]
    assert judged(told) == [ACCEPTED], "nobody is told of a wrong password"
    # The pepper is back, and the sweep finds the attempt.
    desk.execute("UPDATE sellers SET password_hash = :h WHERE seller_id = :s", h=row.password_hash, s=lost)
    assert sweep(desk.steps, grace_seconds=0, queue_depth=lambda _q: 0)["resting_attempts"] == 1
    desk.run()
    assert judged(desk.told[-3:])[-1] == ACCEPTED
    assert desk.value("SELECT failed_attempts FROM sellers WHERE seller_id = :s", s=lost) == 0
