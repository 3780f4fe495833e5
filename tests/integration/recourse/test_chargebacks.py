"""`bank.debited`: the bank takes a credit back; what is held waits, what was released is claimed."""

import pytest
from recourse_support import (
    SELLER,
    charged_back,
    credited_again,
    disputed,
    due,
    held_order,
    hold_that_is,
    owed_by,
    released_now,
    resolved,
    state_of,
    the,
    types,
)
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

from infra.postgres.audit import run_audit
from schemas.commands import SettleClaims
from workers.escrow import claims
from workers.payment import handlers as payment
from workers.relay.sweep import sweep

HOUSE = "_house"


def house_suspense(desk: Desk) -> int:
    return balance(desk.engine, HOUSE).get("suspense", 0)


def is_funded(desk: Desk, order: dict[str, object]) -> bool:
    return bool(
        desk.value("SELECT funded_at IS NOT NULL FROM payments WHERE order_id = :o", o=order["order_id"])
    )


def payment_id(desk: Desk, order: dict[str, object]) -> object:
    return desk.value("SELECT payment_id FROM payments WHERE order_id = :o", o=order["order_id"])


def refusals(desk: Desk, line: str) -> list[str]:
    return [
        row.reason
        for row in desk.execute(
            "SELECT reason FROM recorded_messages WHERE position(CAST(:line AS bytea) IN body) > 0",
            line=line.encode(),
        )
    ]


@pytest.mark.parametrize("funding", ["confirmed", "announced"])
def test_a_held_hold_waits_for_the_credit_again_whatever_the_policy(desk: Desk, funding: str) -> None:
    """`announced` takes the shop's word for money that may come; here the bank says that it has gone."""
    shop = desk.a_shop(funding=funding)
    order = held_order(desk, shop)
    assert charged_back(desk, order) == []
    assert not is_funded(desk, order)
    assert released_now(desk, shop, order) == []
    assert state_of(desk, order) == "held"
    assert balance(desk.engine, shop) == {"incoming": -10_000, "received": 10_000}


@pytest.mark.parametrize("state", ["held", "frozen", "refunded"])
def test_a_chargeback_claims_nothing_that_was_not_released(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    charged_back(desk, order)
    assert state_of(desk, order) == state
    assert desk.value("SELECT count(*) FROM claims WHERE shop_id = :shop", shop=shop) == 0


def test_a_new_credit_confirms_a_charged_back_order_again(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    charged_back(desk, order)
    assert types(credited_again(desk, order)) == ["order.funded"]
    assert is_funded(desk, order)
    assert types(released_now(desk, shop, order)) == ["hold.released"]


def test_a_bank_takes_back_only_what_it_credited_itself(desk: Desk) -> None:
    """The money lies at the other bank, which has said nothing; this debit waits for a credit of its own."""
    shop = desk.a_shop()
    order = held_order(desk, shop)
    desk.bank_says(bank_debited(debit_data(order), bank="other-bank"))
    assert is_funded(desk, order)
    sweep(desk.steps, grace_seconds=0, queue_depth=lambda _queue: 0)
    assert "match_credits" not in {row.command for row in desk.commands}
    desk.run()
    # The order's own credit stands when the other bank's comes late and is taken back at once.
    desk.bank_says(bank_credited(credit_data(order), bank="other-bank"))
    assert is_funded(desk, order)
    assert types(released_now(desk, shop, order)) == ["hold.released"]
    assert (
        desk.value("SELECT count(*) FROM bank_debits WHERE bank_id = 'other-bank' AND credit_id IS NULL") == 0
    )


def test_a_due_hold_is_released_with_the_new_credit(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    charged_back(desk, order)
    released_now(desk, shop, order)
    assert types(credited_again(desk, order)) == ["hold.released", "order.funded"]


def test_a_frozen_hold_that_was_charged_back_waits_for_both(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    dispute_id = disputed(desk, shop, order)
    charged_back(desk, order)
    due(desk, shop, order)
    assert types(resolved(desk, shop, dispute_id)) == ["dispute.accepted", "hold.unfrozen"]
    assert state_of(desk, order) == "held"
    assert types(credited_again(desk, order)) == ["hold.released", "order.funded"]


def test_released_money_is_claimed_from_its_seller_with_the_fee_returned(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=250)
    order, _ = hold_that_is(desk, shop, "released")
    charged_back(desk, order)
    [claimed] = desk.execute("SELECT * FROM claims WHERE shop_id = :shop", shop=shop)
    assert (claimed.amount_minor, claimed.taken_minor, claimed.fee_minor) == (9_750, 9_750, 250)
    assert claimed.cause == "chargeback"
    assert claimed.reason == f"the bank took back {order['bank_reference']}: MD06"
    whole = balance(desk.engine, shop)
    seller = balance(desk.engine, shop, SELLER)
    assert whole["recovered"] + seller["recovered"] == 10_000
    assert whole["fees"] + seller["fees"] == 0
    assert "available" not in seller
    assert state_of(desk, order) == "released"


def test_released_and_withdrawn_money_is_owed_and_paid_off_by_later_releases(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform)
    order = desk.released_order(shop, splits={seller: 10_000})
    desk.seller_withdraws(platform.withdraws(seller, 8_000))
    charged_back(desk, order)
    assert owed_by(desk, shop, seller) == 8_000
    desk.released_order(shop, splits={seller: 9_000})
    assert (owed_by(desk, shop, seller), balance(desk.engine, shop, seller)["available"]) == (0, 1_000)


def test_only_what_was_released_is_claimed_of_a_partly_refunded_hold(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    desk.buyers_ask(refund_requested(shop, order, {SELLER: 4_000}))
    released_now(desk, shop, order)
    charged_back(desk, order)
    assert desk.value("SELECT amount_minor FROM claims WHERE shop_id = :shop", shop=shop) == 6_000


def test_only_released_sellers_of_an_order_are_claimed_from(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, splits={"a": 6_000, "b": 4_000})
    disputed(desk, shop, order, seller_ids=["b"])
    released_now(desk, shop, order)
    charged_back(desk, order)
    [claimed] = desk.execute("SELECT * FROM claims WHERE shop_id = :shop", shop=shop)
    assert (claimed.seller_id, claimed.amount_minor) == ("a", 6_000)
    assert state_of(desk, order, "b") == "frozen"


@pytest.mark.parametrize(("amount", "fee_bps"), [(1, 5_001), (10_000, 10_000)])
def test_a_fee_that_took_all_is_returned_alone_each_time(desk: Desk, amount: int, fee_bps: int) -> None:
    """The seller got nothing and owes nothing; a claim of 0 still says what became of the fee."""
    shop = desk.a_shop(fee_bps=fee_bps)
    order = held_order(desk, shop, splits={SELLER: amount})
    told = the(released_now(desk, shop, order), "hold.released")
    assert (told.data["amount"], told.data["fee"]) == (0, amount)
    for times in (1, 2):
        charged_back(desk, order)
        claimed = desk.execute(
            "SELECT * FROM claims WHERE shop_id = :shop AND returned_at IS NULL", shop=shop
        )
        assert [(row.amount_minor, row.taken_minor, row.fee_minor) for row in claimed] == [(0, 0, amount)]
        assert _of_shop_and_seller(desk, shop, "recovered", "fees") == (amount, 0)
        assert owed_by(desk, shop) == 0
        credited_again(desk, order)
        assert _of_shop_and_seller(desk, shop, "recovered", "fees") == (0, amount)
        assert desk.value("SELECT count(*) FROM claims WHERE shop_id = :shop", shop=shop) == times
    assert desk.value("SELECT min(amount_minor) FROM postings WHERE shop_id = :shop", shop=shop) == amount


def _of_shop_and_seller(desk: Desk, shop: str, *accounts: str) -> tuple[int, ...]:
    whole, seller = balance(desk.engine, shop), balance(desk.engine, shop, SELLER)
    return tuple(whole.get(account, 0) + seller.get(account, 0) for account in accounts)


def test_a_new_credit_gives_a_claim_back_to_its_seller(desk: Desk) -> None:
    """The seller earned it, and the bank says again that the buyer paid."""
    shop = desk.a_shop(fee_bps=250)
    order, _ = hold_that_is(desk, shop, "released")
    before = balance(desk.engine, shop, SELLER)["available"]
    charged_back(desk, order)
    assert types(credited_again(desk, order)) == ["order.funded"]
    whole, seller = balance(desk.engine, shop), balance(desk.engine, shop, SELLER)
    assert seller["available"] == before == 9_750
    assert whole.get("recovered", 0) + seller.get("recovered", 0) == 0
    assert whole.get("fees", 0) + seller["fees"] == 250


def test_a_claim_given_back_pays_what_its_seller_owes_first(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform)
    order = desk.released_order(shop, splits={seller: 10_000})
    desk.seller_withdraws(platform.withdraws(seller, 8_000))
    charged_back(desk, order)
    credited_again(desk, order)
    assert (owed_by(desk, shop, seller), balance(desk.engine, shop, seller)["available"]) == (0, 2_000)


def test_a_credit_that_comes_and_goes_is_claimed_once_each_time(desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=100)
    order, _ = hold_that_is(desk, shop, "released")
    for _ in range(3):
        charged_back(desk, order)
        assert balance(desk.engine, shop, SELLER).get("available", 0) == 0
        credited_again(desk, order)
        assert balance(desk.engine, shop, SELLER)["available"] == 9_900
    assert desk.value("SELECT count(*) FROM claims WHERE shop_id = :shop", shop=shop) == 3


def test_settling_claims_again_changes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "released")
    command = SettleClaims.model_validate({"payment_ids": (payment_id(desk, order),)})
    charged_back(desk, order)
    claims.settle_claims(desk.steps, [command, command])
    assert desk.value("SELECT count(*) FROM claims WHERE shop_id = :shop", shop=shop) == 1
    credited_again(desk, order)
    claims.settle_claims(desk.steps, [command])
    assert balance(desk.engine, shop, SELLER)["available"] == 10_000


def test_a_command_that_comes_after_the_new_credit_claims_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "released")
    payment.receive_bank_events(desk.steps, [bank_debited(debit_data(order))])
    payment.receive_bank_events(desk.steps, [bank_credited(credit_data(order))])
    desk.run()
    assert desk.value("SELECT count(*) FROM claims WHERE shop_id = :shop", shop=shop) == 0


def test_the_sweep_finds_claims_whose_command_was_lost(desk: Desk) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "released")

    def swept(column: str) -> int:
        desk.execute(
            f"UPDATE payments SET {column} = {column} - interval '1 hour' WHERE order_id = :o",
            o=order["order_id"],
        )
        found = sweep(desk.steps, grace_seconds=60, queue_depth=lambda _: 0)["unsettled_claims"]
        desk.run()
        return found

    payment.receive_bank_events(desk.steps, [bank_debited(debit_data(order))])
    desk.commands.clear()
    assert swept("charged_back_at") == 1
    assert balance(desk.engine, shop, SELLER).get("available", 0) == 0
    payment.receive_bank_events(desk.steps, [bank_credited(credit_data(order))])
    desk.commands.clear()
    assert swept("funded_at") == 1
    assert balance(desk.engine, shop, SELLER)["available"] == 10_000
    assert swept("funded_at") == 0


def test_a_credit_in_suspense_that_is_taken_back_leaves_suspense(desk: Desk) -> None:
    order = order_data()
    before = house_suspense(desk)
    desk.bank_says(bank_credited(credit_data(order)))
    charged_back(desk, order)
    assert house_suspense(desk) == before
    shop = desk.a_shop()
    assert types(desk.shop_says(order_paid(shop, order))) == ["order.held"]
    assert not is_funded(desk, order)


def test_a_debit_before_its_credit_is_made_good_by_the_credit(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    before = house_suspense(desk)
    charged_back(desk, order)
    assert house_suspense(desk) == before - 10_000
    assert desk.bank_says(bank_credited(credit_data(order))) == []
    assert house_suspense(desk) == before
    assert not is_funded(desk, order)
    assert types(credited_again(desk, order)) == ["order.funded"]


@pytest.mark.parametrize("comes_again", [True, False])
def test_a_debit_and_the_credit_that_makes_it_good_may_be_booked_at_one_moment(
    desk: Desk, *, comes_again: bool
) -> None:
    """The clock may have been set back between them: the audit counts them, whatever their order."""
    shop = desk.a_shop()
    order = held_order(desk, shop)
    if comes_again:
        charged_back(desk, order)
        credited_again(desk, order)
        desk.execute("ALTER TABLE postings DISABLE TRIGGER postings_insert_only")
        desk.execute(
            "UPDATE postings SET booked_at = (SELECT min(booked_at) FROM postings WHERE shop_id = :s)"
            " WHERE shop_id = :s AND kind IN ('payment_funded', 'payment_unfunded')",
            s=shop,
        )
        desk.execute("ALTER TABLE postings ENABLE TRIGGER postings_insert_only")
    released_now(desk, shop, order)
    if not comes_again:
        charged_back(desk, order)
    # An hour later than it was, which is what a release after a charge-back would look like.
    desk.execute("UPDATE holds SET released_at = released_at + interval '1 hour' WHERE shop_id = :s", s=shop)
    with desk.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        [finding] = [
            found for found in run_audit(connection) if found.check.name == "no_release_after_charge_back"
        ]
    hold_id = str(desk.value("SELECT hold_id FROM holds WHERE shop_id = :s", s=shop))
    assert (hold_id in finding.examples) is not comes_again
    desk.execute("UPDATE holds SET released_at = released_at - interval '1 hour' WHERE shop_id = :s", s=shop)


def test_a_debit_and_its_credit_in_one_batch_cancel_out(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    before = house_suspense(desk)
    told = desk.bank_says(bank_debited(debit_data(order)), bank_credited(credit_data(order)))
    assert not is_funded(desk, order)
    assert house_suspense(desk) == before
    assert [event.type for event in told] in ([], ["order.funded"])


def test_a_debit_that_nobody_knows_is_owed_by_suspense(desk: Desk) -> None:
    before = house_suspense(desk)
    charged_back(desk, order_data())
    assert house_suspense(desk) == before - 10_000


@pytest.mark.parametrize("change", [{"amount": 9_999}, {"currency": "EUR"}, {"bank_reference": "ELSE"}])
def test_a_debit_of_something_else_leaves_the_order_alone(desk: Desk, change: dict[str, object]) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    charged_back(desk, order, **change)
    assert is_funded(desk, order)


def test_a_buyer_who_paid_twice_gets_the_second_payment_back(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    before = house_suspense(desk)
    desk.bank_says(bank_credited(credit_data(order)))
    charged_back(desk, order)
    assert is_funded(desk, order)
    assert house_suspense(desk) == before


def test_the_same_debit_again_changes_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, "released")
    debit = debit_data(order)
    event = bank_debited(debit)
    desk.bank_says(event)
    credited_again(desk, order)
    desk.bank_says(event)
    desk.bank_says(bank_debited(debit), bank_debited(debit))
    assert is_funded(desk, order)
    assert balance(desk.engine, shop, SELLER)["available"] == 10_000


def test_a_known_debit_line_with_other_content_is_kept_for_the_operator(desk: Desk) -> None:
    shop = desk.a_shop()
    order, other = held_order(desk, shop), held_order(desk, shop)
    line = fresh("line")
    charged_back(desk, order, statement_line=line)
    charged_back(desk, other, statement_line=line)
    assert is_funded(desk, other)
    assert refusals(desk, line) == ["conflicting_duplicate"]


def test_a_debit_beside_its_credit_that_neither_saw_is_settled_by_the_sweep(desk: Desk) -> None:
    """Both commit without seeing the other: the credit has confirmed its order, the debit is left over."""
    shop = desk.a_shop()
    order = held_order(desk, shop, funded=False)
    charged_back(desk, order)
    before = house_suspense(desk)
    debit = desk.value(
        "SELECT debit_id FROM bank_debits WHERE bank_reference = :r", r=order["bank_reference"]
    )
    # Hidden while the credit comes, as an uncommitted row is.
    desk.execute("UPDATE bank_debits SET bank_reference = 'HIDDEN' WHERE debit_id = :id", id=debit)
    assert types(credited_again(desk, order)) == ["order.funded"]
    desk.execute(
        "UPDATE bank_debits SET bank_reference = :r, received_at = received_at - interval '1 hour'"
        " WHERE debit_id = :id",
        r=order["bank_reference"],
        id=debit,
    )
    assert sweep(desk.steps, grace_seconds=60, queue_depth=lambda _: 0)["matchable_credits"] == 1
    desk.run()
    assert not is_funded(desk, order)
    assert house_suspense(desk) == before + 10_000


def test_a_refund_asked_for_after_a_chargeback_waits_for_the_new_credit(desk: Desk) -> None:
    shop = desk.a_shop()
    order = held_order(desk, shop)
    charged_back(desk, order)
    told = desk.buyers_ask(refund_requested(shop, order, {SELLER: 10_000}))
    assert types(told) == ["hold.refunded", "refund.accepted"]
    assert the(credited_again(desk, order), "refund.settled").data["order_id"] == order["order_id"]


@pytest.mark.parametrize("state", ["released", "refunded"])
def test_an_alarm_after_a_chargeback_leaves_a_closed_hold_alone(desk: Desk, state: str) -> None:
    shop = desk.a_shop()
    order, _ = hold_that_is(desk, shop, state)
    charged_back(desk, order)
    due(desk, shop, order)
    desk.release(desk.value("SELECT hold_id FROM holds WHERE order_id = :o", o=order["order_id"]))
    assert (desk.told, state_of(desk, order)) == ([], state)


@pytest.mark.parametrize("state", ["held", "frozen", "released", "refunded"])
def test_a_credit_that_comes_late_changes_no_closed_hold(desk: Desk, state: str) -> None:
    """Under `announced` a hold may be released before its credit; the credit then only confirms it."""
    shop = desk.a_shop(funding="announced")
    order, _ = hold_that_is(desk, shop, state, funded=False)
    told = desk.bank_says(bank_credited(credit_data(order)))
    assert types(told) == ["order.funded", *(["refund.settled"] if state == "refunded" else [])]
    assert state_of(desk, order) == state
