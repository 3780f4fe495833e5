"""Claims: what was released and has to come back is taken from available; the rest is owed."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from recourse_support import SELLER, held_order, owed_by, released_now, the
from sqlalchemy.exc import IntegrityError
from workflow_support.banks import PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import fresh

from workers.escrow.claims import Claim, make_claims
from workers.payout.decisions import Proposal, Verdict
from workers.payout.handlers.withdrawals import carry_out_rejection
from workers.payout.withdrawal_store import lock_pending, mark_decided_by, write_proposal


def a_claim(
    shop: str, amount: int, *, seller: str = SELLER, claim_id: UUID | None = None, currency: str = "CNY"
) -> Claim:
    return Claim(
        claim_id=claim_id or uuid4(),
        shop_id=shop,
        seller_id=seller,
        currency=currency,
        amount_minor=amount,
        cause="operator",
        reason="sold what was not theirs",
        operator="ada",
    )


def claim(desk: Desk, *claims: Claim) -> int:
    with desk.steps.begin("make_claims") as step:
        return make_claims(step, claims)


def a_shop_where(desk: Desk, released: int) -> str:
    shop = desk.a_shop()
    released_now(desk, shop, held_order(desk, shop, splits={SELLER: released}))
    return shop


def available(desk: Desk, shop: str, seller: str = SELLER) -> int:
    return balance(desk.engine, shop, seller).get("available", 0)


def test_a_claim_takes_from_what_is_withdrawable(desk: Desk) -> None:
    shop = a_shop_where(desk, released=10_000)
    assert claim(desk, a_claim(shop, 4_000)) == 1
    assert (available(desk, shop), owed_by(desk, shop)) == (6_000, 0)
    assert balance(desk.engine, shop, SELLER)["recovered"] == 4_000


def test_what_a_claim_can_not_take_is_owed(desk: Desk) -> None:
    shop = a_shop_where(desk, released=10_000)
    claim(desk, a_claim(shop, 15_000))
    assert (available(desk, shop), owed_by(desk, shop)) == (0, 5_000)
    assert balance(desk.engine, shop, SELLER)["recovered"] == 15_000


def test_a_claim_against_a_seller_who_has_nothing_is_owed_in_full(desk: Desk) -> None:
    shop = desk.a_shop()
    claim(desk, a_claim(shop, 7_000, seller="newcomer"))
    assert owed_by(desk, shop, "newcomer") == 7_000


def test_later_releases_pay_off_what_is_owed_first(desk: Desk) -> None:
    shop = a_shop_where(desk, released=1_000)
    claim(desk, a_claim(shop, 6_000))
    for released, left, withdrawable in ((2_000, 3_000, 0), (2_000, 1_000, 0), (2_000, 0, 1_000)):
        told = the(
            released_now(desk, shop, held_order(desk, shop, splits={SELLER: released})), "hold.released"
        )
        assert told.data["amount"] == released
        assert (owed_by(desk, shop), available(desk, shop)) == (left, withdrawable)


def test_releases_of_one_batch_pay_one_debt_once(desk: Desk) -> None:
    shop = desk.a_shop()
    claim(desk, a_claim(shop, 5_000))
    for order in [held_order(desk, shop, splits={SELLER: 3_000}) for _ in range(3)]:
        desk.pass_protection(shop, order["order_id"])
    desk.ring_alarms("release_hold")
    assert (owed_by(desk, shop), available(desk, shop)) == (0, 4_000)


def test_the_fee_goes_before_the_debt(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=1_000)
    claim(desk, a_claim(shop, 20_000))
    released_now(desk, shop, held_order(desk, shop))
    assert (owed_by(desk, shop), balance(desk.engine, shop, SELLER)["fees"]) == (11_000, 1_000)


def test_a_release_that_the_fee_takes_whole_pays_nothing_off(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=10_000)
    claim(desk, a_claim(shop, 5_000))
    released_now(desk, shop, held_order(desk, shop))
    assert owed_by(desk, shop) == 5_000


def test_several_claims_on_one_seller_in_one_step_share_what_is_there(desk: Desk) -> None:
    shop = a_shop_where(desk, released=10_000)
    assert claim(desk, *[a_claim(shop, 4_000) for _ in range(3)]) == 3
    assert (available(desk, shop), owed_by(desk, shop)) == (0, 2_000)
    taken = [
        row.taken_minor
        for row in desk.execute("SELECT taken_minor FROM claims WHERE shop_id = :shop", shop=shop)
    ]
    assert sorted(taken) == [2_000, 4_000, 4_000]


def test_claims_one_after_the_other_add_up(desk: Desk) -> None:
    shop = a_shop_where(desk, released=5_000)
    for _ in range(3):
        claim(desk, a_claim(shop, 3_000))
    assert (available(desk, shop), owed_by(desk, shop)) == (0, 4_000)


def test_a_claim_whose_id_is_known_is_made_once(desk: Desk) -> None:
    shop = a_shop_where(desk, released=10_000)
    once = a_claim(shop, 4_000)
    assert [claim(desk, once), claim(desk, once)] == [1, 0]
    assert available(desk, shop) == 6_000


def test_a_claim_touches_no_other_seller_shop_or_currency(desk: Desk) -> None:
    shop = a_shop_where(desk, released=10_000)
    claim(desk, a_claim(shop, 4_000, seller="other"), a_claim(desk.a_shop(), 4_000))
    claim(desk, a_claim(shop, 4_000, currency="EUR"))
    assert available(desk, shop) == 10_000
    released_now(desk, shop, held_order(desk, shop, splits={SELLER: 500}))
    assert available(desk, shop) == 10_500


def test_a_claimed_seller_can_withdraw_only_what_is_left(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    claim(desk, a_claim(shop, 4_000, seller=seller))
    [refused] = desk.seller_withdraws(platform.withdraws(seller, 6_001))
    assert refused.data["reason"] == "insufficient_funds"
    told = desk.seller_withdraws(platform.withdraws(seller, 6_000))
    assert "withdrawal.accepted" in [event.type for event in told]


def test_money_on_its_way_to_the_seller_is_not_called_back(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    desk.seller_withdraws(platform.withdraws(seller, 9_000))
    claim(desk, a_claim(shop, 4_000, seller=seller))
    assert (available(desk, shop, seller), owed_by(desk, shop, seller)) == (0, 3_000)


def test_a_held_hold_is_not_touched_by_a_claim(desk: Desk) -> None:
    shop = desk.a_shop()
    held_order(desk, shop)
    claim(desk, a_claim(shop, 4_000))
    assert balance(desk.engine, shop, SELLER)["held"] == 10_000


@pytest.mark.parametrize("change", ["owed_minor = -1"])
def test_the_database_itself_refuses_a_negative_debt(desk: Desk, change: str) -> None:
    shop = desk.a_shop()
    claim(desk, a_claim(shop, 1, seller=fresh("s")))
    with pytest.raises(IntegrityError, match="receivables_not_negative_check"):
        desk.execute(f"UPDATE receivables SET {change} WHERE shop_id = :shop", shop=shop)


@pytest.mark.parametrize("how", ["refused", "returned", "rejected in review"])
@pytest.mark.parametrize(("claimed", "left"), [(4_000, (6_000, 0)), (15_000, (0, 5_000))])
def test_money_of_a_payout_that_comes_back_pays_debts_first(
    desk_with: Callable[[ScriptedBank], Desk], how: str, claimed: int, left: tuple[int, int]
) -> None:
    """Else whoever fears a claim could have everything sent where it can't arrive, and withdraw it again."""
    bank = ScriptedBank(submit=[PENDING if how == "refused" else SETTLED], find=[REJECTED])
    desk = desk_with(bank)
    platform = desk.platform(desk.a_shop())
    shop, seller = platform.shop, desk.a_seller(platform, available=10_000)
    if how == "rejected in review":
        desk.execute(
            "INSERT INTO withdrawal_limits (shop_id, scope, seller_id, currency, per_withdrawal_minor)"
            " VALUES (:shop, 'seller', :seller, 'CNY', 1)",
            shop=shop,
            seller=seller,
        )
    desk.seller_withdraws(platform.withdraws(seller, 10_000))
    claim(desk, a_claim(shop, claimed, seller=seller))
    assert (available(desk, shop, seller), owed_by(desk, shop, seller)) == (0, claimed)
    match how:
        case "refused":
            desk.ring_alarms("check_transfer")
        case "returned":
            bank.sends_back(bank.submitted[0].end_to_end_id)
            desk.collect_returns()
        case _:
            payout_id = desk.value("SELECT payout_id FROM withdrawals WHERE seller_id = :s", s=seller)
            with desk.steps.begin("review_withdrawal") as step:
                [pending] = lock_pending(step.connection, [payout_id])
                write_proposal(
                    step.connection, payout_id, Proposal(Verdict.REJECT, "ada"), why="", now=step.now
                )
                mark_decided_by(step.connection, payout_id, by="bob", why="", now=step.now)
                carry_out_rejection(step, pending)
    assert (available(desk, shop, seller), owed_by(desk, shop, seller)) == left
