"""
Release, freeze, refund and chargeback of one hold at one moment: exactly one winner for each cent.

Each race is run so that both sides have begun before either can finish, and also simply at once. Every
test ends with the books checked; see the fixture `desk`.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from recourse_support import (
    SELLER,
    disputed,
    due,
    held_order,
    owed_by,
    refund_state,
    refunded_of,
    released_now,
    state_of,
    types,
)
from sqlalchemy.exc import OperationalError
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import (
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    refund_requested,
)
from workflow_support.races import met_at_a_lock, side_by_side

from workers.escrow.claims import Claim, make_claims
from workers.escrow.recourse_handlers import LostRace
from workers.payment import handlers as payment

Act = Callable[[], Any]
Race = Callable[..., None]

_THE_HOLD = "SELECT 1 FROM holds WHERE order_id = :order FOR UPDATE"


def tried_again(act: Act) -> Act:
    """What the broker does with a message whose transaction was refused: the same again, alone."""

    def try_twice() -> Any:
        try:
            return act()
        except (LostRace, OperationalError):
            return act()

    return try_twice


@pytest.fixture(params=["at the hold's lock", "at once", "at once, the other way round"])
def race(request: pytest.FixtureRequest, desk: Desk) -> Race:
    """Return a function that runs acts on one order's hold against each other, then what follows."""

    def run(order: dict[str, Any], *acts: Act) -> None:
        runners = [tried_again(act) for act in acts]
        if request.param == "at the hold's lock":
            met_at_a_lock(desk.engine, _THE_HOLD, *runners, order=order["order_id"])
        elif request.param == "at once":
            side_by_side(*runners)
        else:
            side_by_side(*reversed(runners))
        desk.run()

    return run


def hold_id_of(desk: Desk, order: dict[str, Any]) -> Any:
    return desk.value("SELECT hold_id FROM holds WHERE order_id = :order", order=order["order_id"])


def a_due_order(desk: Desk, shop: str) -> tuple[dict[str, Any], Act]:
    """An order whose alarm rings in the race."""
    order = held_order(desk, shop)
    due(desk, shop, order)
    hold_id = hold_id_of(desk, order)
    desk.told.clear()
    return order, lambda: desk.release(hold_id)


def test_a_freeze_beside_a_release_has_one_winner(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order, release = a_due_order(desk, shop)
    dispute = dispute_opened(shop, order, dispute_id=fresh("d"))
    race(order, release, lambda: desk.receive_recourse(dispute))
    assert (state_of(desk, order), types(desk.told)) in (
        ("released", ["dispute.rejected", "hold.released"]),
        ("frozen", ["dispute.accepted", "hold.frozen"]),
    )


def test_a_full_refund_beside_a_release_has_one_winner(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order, release = a_due_order(desk, shop)
    refund = refund_requested(shop, order, {SELLER: 10_000})
    race(order, release, lambda: desk.receive_recourse(refund))
    assert (state_of(desk, order), types(desk.told)) in (
        ("released", ["hold.released", "refund.rejected"]),
        ("refunded", ["hold.refunded", "refund.accepted", "refund.settled"]),
    )


def test_a_partial_refund_beside_a_release_shares_no_cent(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order, release = a_due_order(desk, shop)
    refund = refund_requested(shop, order, {SELLER: 4_000})
    race(order, release, lambda: desk.receive_recourse(refund))
    desk.release(hold_id_of(desk, order))
    available = balance(desk.engine, shop, SELLER)["available"]
    assert (available, refunded_of(desk, order)) in ((10_000, 0), (6_000, 4_000))


def test_two_refunds_that_are_too_much_together_have_one_winner(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    desk.told.clear()
    asked = [refund_requested(shop, order, {SELLER: 6_000}) for _ in range(2)]
    race(order, *[lambda refund=refund: desk.receive_recourse(refund) for refund in asked])
    assert types(desk.told) == ["hold.refunded", "refund.accepted", "refund.rejected", "refund.settled"]
    assert refunded_of(desk, order) == 6_000


def test_two_refunds_that_fit_together_both_win(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    asked = [refund_requested(shop, order, {SELLER: 5_000}) for _ in range(2)]
    race(order, *[lambda refund=refund: desk.receive_recourse(refund) for refund in asked])
    assert state_of(desk, order) == "refunded"


def test_the_same_refund_at_two_workers_is_booked_once(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id = fresh("r")
    asked = [refund_requested(shop, order, {SELLER: 3_000}, refund_id=refund_id) for _ in range(2)]
    race(order, *[lambda refund=refund: desk.receive_recourse(refund) for refund in asked])
    assert refunded_of(desk, order) == 3_000
    assert len({told.event_id for told in desk.told if told.type == "refund.accepted"}) == 1


def test_the_same_dispute_at_two_workers_is_opened_once(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = fresh("d")
    opened = [dispute_opened(shop, order, dispute_id=dispute_id) for _ in range(2)]
    race(order, *[lambda event=event: desk.receive_recourse(event) for event in opened])
    assert len({told.event_id for told in desk.told if told.type == "dispute.accepted"}) == 1
    assert (
        desk.value(
            "SELECT count(*) FROM dispute_holds AS f JOIN disputes AS d USING (dispute_key)"
            " WHERE d.dispute_id = :id",
            id=dispute_id,
        )
        == 1
    )


def test_a_refund_beside_a_resolution_for_the_buyer_gives_back_each_cent_once(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    asked = (
        refund_requested(shop, order, {SELLER: 10_000}),
        dispute_resolved(shop, dispute_id, {SELLER: 10_000}),
    )
    race(order, *[lambda event=event: desk.receive_recourse(event) for event in asked])
    assert (state_of(desk, order), refunded_of(desk, order)) == ("refunded", 10_000)
    assert types(desk.told).count("hold.refunded") == 1


def test_an_alarm_beside_a_resolution_for_the_seller_releases_once(desk: Desk, race: Race) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    due(desk, shop, order)
    hold_id = hold_id_of(desk, order)
    resolution = dispute_resolved(shop, dispute_id)
    race(order, lambda: desk.release(hold_id), lambda: desk.receive_recourse(resolution))
    assert state_of(desk, order) == "released"
    assert types(desk.told).count("hold.released") == 1


def test_two_different_resolutions_have_one_winner(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    asked = [dispute_resolved(shop, dispute_id, {SELLER: amount}) for amount in (1_000, 9_000)]
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM disputes WHERE dispute_id = :id FOR UPDATE",
        *[lambda event=event: desk.receive_recourse(event) for event in asked],
        id=dispute_id,
    )
    desk.run()
    assert refunded_of(desk, order) in (1_000, 9_000)
    assert [told.data["reason"] for told in desk.told if told.type == "dispute.rejected"] == [
        "conflicting_duplicate"
    ]


def test_a_release_that_waited_while_the_bank_took_the_credit_back_lets_nothing_go(desk: Desk) -> None:
    shop = desk.a_shop()
    order, release = a_due_order(desk, shop)
    debit = bank_debited(debit_data(order))
    met_at_a_lock(
        desk.engine,
        _THE_HOLD,
        release,
        meanwhile=lambda: payment.receive_bank_events(desk.steps, [debit]),
        order=order["order_id"],
    )
    desk.run()
    assert (state_of(desk, order), owed_by(desk, shop)) == ("held", 0)


@pytest.mark.parametrize("turn", range(6))
def test_a_chargeback_beside_a_release_either_holds_or_claims(desk: Desk, turn: int) -> None:
    shop = desk.a_shop(fee_bps=100)
    order, release = a_due_order(desk, shop)
    debit = bank_debited(debit_data(order))
    acts = [release, lambda: payment.receive_bank_events(desk.steps, [debit])]
    side_by_side(*(acts if turn % 2 else reversed(acts)))
    desk.run()
    claimed = desk.value("SELECT coalesce(sum(amount_minor), 0) FROM claims WHERE shop_id = :s", s=shop)
    assert (state_of(desk, order), int(claimed)) in (("held", 0), ("released", 9_900))
    assert "available" not in balance(desk.engine, shop, SELLER)


def test_a_release_under_way_is_seen_by_the_claim_of_its_chargeback(desk: Desk) -> None:
    """The release had read the bank's word before the bank took it back; the claim waits for its lock."""
    shop = desk.a_shop()
    desk.released_order(shop)
    order, release = a_due_order(desk, shop)
    debit = bank_debited(debit_data(order))
    with ThreadPoolExecutor(1) as pool:
        claiming: list[Future[None]] = []

        def take_back_and_claim() -> None:
            payment.receive_bank_events(desk.steps, [debit])
            claiming.append(pool.submit(desk.run))

        # Sellers' balances come last in a release: held up there, it has decided and has its hold's lock.
        met_at_a_lock(
            desk.engine,
            "SELECT 1 FROM available_balances WHERE shop_id = :shop FOR UPDATE",
            release,
            meanwhile=take_back_and_claim,
            shop=shop,
        )
        claiming[0].result(20)
    assert state_of(desk, order) == "released"
    assert desk.value("SELECT amount_minor FROM claims WHERE shop_id = :s", s=shop) == 10_000


@pytest.mark.parametrize("turn", range(4))
def test_a_credit_beside_a_refund_leaves_no_refund_waiting(desk: Desk, turn: int) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    refund_id = fresh("r")
    refund = refund_requested(shop, order, {SELLER: 10_000}, refund_id=refund_id)
    credit = bank_credited(credit_data(order))
    acts = [
        lambda: desk.receive_recourse(refund),
        lambda: payment.receive_bank_events(desk.steps, [credit]),
    ]
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM payments WHERE order_id = :order FOR UPDATE",
        *(acts if turn % 2 else reversed(acts)),
        order=order["order_id"],
    )
    desk.run()
    assert refund_state(desk, refund_id) == "settled"


@pytest.mark.parametrize("turn", range(4))
def test_a_chargeback_beside_a_refund_leaves_it_waiting(desk: Desk, turn: int) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    refund_id = fresh("r")
    refund = refund_requested(shop, order, {SELLER: 10_000}, refund_id=refund_id)
    debit = bank_debited(debit_data(order))
    acts = [
        lambda: desk.receive_recourse(refund),
        lambda: payment.receive_bank_events(desk.steps, [debit]),
    ]
    met_at_a_lock(
        desk.engine,
        "SELECT 1 FROM payments WHERE order_id = :order FOR UPDATE",
        *(acts if turn % 2 else reversed(acts)),
        order=order["order_id"],
    )
    desk.run()
    assert refund_state(desk, refund_id) == "waiting"


@pytest.mark.parametrize("turn", range(4))
def test_a_claim_beside_a_release_adds_up(desk: Desk, turn: int) -> None:
    shop = desk.a_shop()
    released_now(desk, shop, held_order(desk, shop, splits={SELLER: 1_000}))
    _, release = a_due_order(desk, shop)
    acts = [release, lambda: a_claim_is_made(desk, shop, 4_000)]
    side_by_side(*[tried_again(act) for act in (acts if turn % 2 else reversed(acts))])
    withdrawable = balance(desk.engine, shop, SELLER).get("available", 0)
    assert withdrawable - owed_by(desk, shop) == 7_000


def test_claims_beside_each_other_take_each_cent_once(desk: Desk) -> None:
    shop = desk.a_shop()
    released_now(desk, shop, held_order(desk, shop))
    side_by_side(*[tried_again(lambda: a_claim_is_made(desk, shop, 4_000)) for _ in range(4)])
    assert (balance(desk.engine, shop, SELLER).get("available", 0), owed_by(desk, shop)) == (0, 6_000)


def test_a_claim_beside_a_withdrawal_never_overdraws(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    asked = platform.withdraws(seller, 8_000)
    side_by_side(
        lambda: desk.seller_withdraws(asked), lambda: a_claim_is_made(desk, shop, 8_000, seller=seller)
    )
    desk.run()
    left = balance(desk.engine, shop, seller).get("available", 0)
    assert (left, owed_by(desk, shop, seller)) in ((2_000, 0), (0, 6_000))


def a_claim_is_made(desk: Desk, shop: str, amount: int, *, seller: str = SELLER) -> None:
    with desk.steps.begin("make_claims") as step:
        make_claims(
            step,
            [
                Claim(
                    claim_id=uuid4(),
                    shop_id=shop,
                    seller_id=seller,
                    currency="CNY",
                    amount_minor=amount,
                    cause="operator",
                    reason="a race",
                    operator="ada",
                )
            ],
        )
