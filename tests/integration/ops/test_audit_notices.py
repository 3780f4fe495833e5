"""Each invariant of the audit holds in a rich history, and notices when one thing is broken."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from workflow_support.banks import PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.desk import DAY_SECONDS, Desk
from workflow_support.events import (
    PASSWORD,
    WRONG_PASSWORD,
    SellersPlatform,
    bank_credited,
    bank_debited,
    credit_data,
    debit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
    refund_requested,
)

from infra.postgres.audit import CHECKS, run_audit
from infra.postgres.chain import chain_postings
from infra.postgres.ledger_store import seal_postings
from infra.postgres.outbox import CommandRow
from infra.security.destinations import destination_context
from ops.store.actions import Action, record_actions
from ops.store.password_resets import find_reset, open_reset, propose_reset
from workers.payout.adoptions import LostPayout, adopt_payout
from workers.payout.decisions import Proposal, Source, Verdict
from workers.payout.handlers.withdrawals import carry_out_approval, carry_out_rejection
from workers.payout.shop_payouts import ShopPayout, carry_out_shop_payout, propose_shop_payout
from workers.payout.withdrawal_store import lock_pending, mark_decided_by, write_proposal


def _paid(desk: Desk, shop: str, splits: dict[str, int]) -> dict[str, object]:
    order = order_data(splits=splits)
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order)))
    return order


def _orders(desk: Desk, shop: str, announced: str) -> None:
    desk.released_order(shop, splits={"s-1": 10_000, "s-2": 1})
    first = order_data()
    # Twice, then with other content, and another order that claims its bank reference.
    desk.shop_says(order_paid(shop, first), order_paid(shop, first))
    desk.shop_says(order_paid(shop, first | {"buyer_id": "b-2"}))
    desk.shop_says(order_paid(shop, order_data(bank_reference=first["bank_reference"])))
    desk.shop_says(order_paid(shop, order_data() | {"amount": 1}))
    # A credit before its order, one that nothing explains, and a debit before its credit.
    early = order_data()
    desk.bank_says(bank_credited(credit_data(early)), bank_credited(credit_data(order_data())))
    desk.shop_says(order_paid(shop, early))
    desk.bank_says(bank_debited(debit_data(order_data())))
    word_is_enough = order_data()
    desk.shop_says(order_paid(announced, word_is_enough))
    desk.pass_protection(announced, str(word_is_enough["order_id"]))
    desk.ring_alarms("release_hold")


def _recourse(desk: Desk, shop: str) -> None:
    resolved, open_, refunded = (_paid(desk, shop, {"s-1": 500, "s-2": 700}) for _ in range(3))
    desk.buyers_ask(dispute_opened(shop, resolved, dispute_id="d-resolved"))
    desk.buyers_ask(dispute_resolved(shop, "d-resolved", {"s-1": 100}))
    desk.buyers_ask(dispute_opened(shop, open_, dispute_id="d-open"))
    desk.buyers_ask(dispute_opened(shop, {"order_id": "o-none"}, dispute_id="d-refused"))
    desk.buyers_ask(refund_requested(shop, refunded, {"s-2": 700}))
    desk.buyers_ask(refund_requested(shop, refunded, {"s-2": 1}))
    charged_back = desk.released_order(shop, splits={"s-3": 2_000})
    desk.bank_says(bank_debited(debit_data(charged_back)))


def _withdrawals(engine: Engine, shop: str) -> None:
    for script in ([SETTLED], [REJECTED], [PENDING]):
        bank = ScriptedBank(submit=script)
        desk = Desk(engine, bank=bank)
        platform = desk.platform(shop)
        seller = desk.a_seller(platform, available=5_000)
        desk.seller_withdraws(platform.withdraws(seller, 2_000))
        if script == [SETTLED]:
            bank.sends_back(bank.submitted[0].end_to_end_id)
            desk.handle(CommandRow("payout.bank", "collect_returns", "{}"))
            desk.seller_withdraws(platform.withdraws(seller, 1_000))
            desk.seller_withdraws(platform.withdraws(seller, 9_000))
            desk.seller_withdraws(platform.withdraws(seller, 1, password=WRONG_PASSWORD))
            _withdrawals_that_wait(desk, platform)
            # Booked, and its password not looked at yet.
            desk.book_withdrawals(platform.withdraws(seller, 1))
        desk.close()


def _withdrawals_that_wait(desk: Desk, platform: SellersPlatform) -> None:
    """One that was approved, one that was rejected, one in review, one that cools off, one that has."""
    careful = [desk.a_seller(platform, available=5_000) for _ in range(3)]
    desk.execute(
        "INSERT INTO withdrawal_limits (shop_id, scope, seller_id, currency, per_withdrawal_minor)"
        " SELECT :shop, 'seller', unnest(CAST(:sellers AS text[])), 'CNY', 100",
        shop=platform.shop,
        sellers=careful,
    )
    for seller in careful:
        desk.seller_withdraws(platform.withdraws(seller, 2_000))
    acts = {"approve": carry_out_approval, "reject": carry_out_rejection}
    for seller, (verdict, act) in zip(careful, acts.items(), strict=False):
        with desk.steps.begin("review_withdrawal") as step:
            payout_id = desk.value("SELECT payout_id FROM withdrawals WHERE seller_id = :s", s=seller)
            [pending] = lock_pending(step.connection, [payout_id])
            write_proposal(
                step.connection, payout_id, Proposal(Verdict(verdict), "ada"), why="", now=step.now
            )
            mark_decided_by(step.connection, payout_id, by="bob", why="", now=step.now)
            act(step, pending)
        desk.run()
    changed = desk.a_seller(platform, available=5_000)
    desk.seller_asks(platform.enrols(changed, destination_id="d-2"))
    for _ in range(2):
        desk.seller_withdraws(platform.withdraws(changed, 1_000, destination_id="d-2"))
    desk.execute(
        "UPDATE withdrawals SET pending_until = clock_timestamp() - interval '1 second'"
        " WHERE payout_id = (SELECT min(payout_id::text)::uuid FROM withdrawals WHERE seller_id = :s)",
        s=changed,
    )
    desk.ring_alarms("resume_withdrawal")


def _passwords_that_change(desk: Desk, platform: SellersPlatform) -> None:
    """One by the old password, one by two operators; and one that may be replaced still."""
    by_the_old, by_operators, open_ = (desk.a_seller(platform) for _ in range(3))
    desk.seller_asks(platform.changes_password(by_the_old, old=PASSWORD, new="the next one"))
    for seller in (by_operators, open_):
        event_id = fresh("e")
        desk.seller_asks(platform.enrols(seller, password="the next one", event_id=event_id))
        with desk.engine.begin() as connection:
            now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            propose_reset(connection, platform.shop, seller, event_id, by="ada", why="", now=now)
            reset = find_reset(connection, platform.shop, event_id)
            assert reset is not None
            open_reset(connection, platform.shop, seller, reset.reset_id, by="bob", why="", now=now)
    desk.seller_asks(platform.enrols(by_operators, password="the next one"))


def _money_of_the_shops_own(engine: Engine, shop: str) -> None:
    """Fees that went, fees that came back, and fees that one name wants paid."""
    bank = ScriptedBank(submit=[SETTLED])
    desk = Desk(engine, bank=bank)
    desk.released_order(shop, splits={"s-9": 100_000})
    desk.execute(
        "INSERT INTO destinations (shop_id, seller_id, destination_id, details_encrypted, masked, added_at)"
        " VALUES (:shop, '', 'own', :details, '', clock_timestamp())",
        shop=shop,
        details=desk.vault.encrypt(b"{}", destination_context(shop, "", "own")),
    )
    for reference in ("goes", "comes back", "waits"):
        payout = ShopPayout(shop, reference, Source.FEES, 100, "CNY", "own")
        with desk.steps.begin("propose_shop_payout") as step:
            propose_shop_payout(step, payout, by="ada", why="")
        if reference != "waits":
            with desk.steps.begin("approve_shop_payout") as step:
                carry_out_shop_payout(step, payout, by="bob", why="")
            desk.run()
    bank.sends_back(bank.submitted[-1].end_to_end_id)
    desk.collect_returns()
    desk.close()


def _what_a_restore_had_forgotten(engine: Engine, shop: str) -> None:
    """One payout that the bank has kept, and one that came back; both advanced in part."""
    bank = ScriptedBank(find=[SETTLED])
    desk = Desk(engine, bank=bank)
    platform = desk.platform(shop)
    for withdrawal in ("kept", "came back"):
        seller = desk.a_seller(platform, available=1_000)
        lost = LostPayout(shop, withdrawal, "e", seller, "d-1", 4_000, "CNY")
        with desk.steps.begin("adopt_transfer") as step:
            adopt_payout(step, lost)
            details = {"payout_id": lost.payout_id}
            record_actions(step.connection, [Action("ada", "payout_adopted", withdrawal, "", details)])
        desk.run()
    bank.sends_back(lost.payout_id.hex)
    desk.collect_returns()
    desk.close()


@pytest.fixture(scope="module")
def history(engine: Engine) -> Iterator[Engine]:
    """Return a database in which everything that the audit judges has happened."""
    desk = Desk(engine)
    desk.execute(
        "INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :day)", day=DAY_SECONDS
    )
    shop = desk.a_shop(fee_bps=250)
    _orders(desk, shop, desk.a_shop(funding="announced"))
    _recourse(desk, shop)
    _withdrawals(engine, shop)
    _passwords_that_change(desk, desk.platform(shop))
    _money_of_the_shops_own(engine, shop)
    _what_a_restore_had_forgotten(engine, shop)
    with engine.begin() as connection:
        assert seal_postings(connection) > 0
    with engine.begin() as connection:
        assert chain_postings(connection) > 0
    # The newest postings lie behind the seal.
    desk.shop_says(order_paid(shop, order_data(splits={fresh("s"): 1})))
    yield engine
    desk.close()


# For each check, statements that break what it promises and nothing that the database itself refuses.
_LET_ME = "ALTER TABLE postings DISABLE TRIGGER postings_insert_only;"
_SABOTAGE = {
    "postings_are_sound": _LET_ME
    + "ALTER TABLE postings DROP CONSTRAINT postings_seller_check;"
    + "UPDATE postings SET credit = 'fees' WHERE kind = 'held'",
    "posted_rows_are_guarded": _LET_ME,
    "chain_links_follow_each_other": """
        ALTER TABLE chain_links DISABLE TRIGGER chain_links_insert_only;
        UPDATE chain_links SET total_postings = total_postings + 1
    """,
    "chained_postings_are_unchanged": _LET_ME + "UPDATE postings SET booked_at = booked_at - interval '1 us'",
    "past_postings_are_chained": """
        INSERT INTO postings (posting_id, kind, cause_id, shop_id, seller_id, currency, debit, credit,
                              amount_minor, booked_at, xact)
        SELECT gen_random_uuid(), kind, cause_id, shop_id, seller_id, currency, debit, credit,
               amount_minor, booked_at, '3' FROM postings LIMIT 1
    """,
    "sealed_subtotals_equal_postings": "UPDATE subtotals SET total_minor = total_minor + 1",
    "available_balances_equal_postings": "UPDATE available_balances SET available_minor = 1",
    "receivables_equal_postings": "UPDATE receivables SET owed_minor = owed_minor + 1",
    "no_balance_is_negative": _LET_ME + "DELETE FROM postings WHERE kind = 'payment_received'",
    "orders_add_up": "UPDATE payments SET amount_minor = amount_minor + 1",
    "holds_add_up": "UPDATE holds SET amount_minor = amount_minor + 1 WHERE state = 'held'",
    "held_equals_open_holds": "UPDATE holds SET amount_minor = amount_minor + 1 WHERE state = 'held'",
    "refunds_add_up": "DELETE FROM refund_parts",
    "claims_add_up": "UPDATE claims SET amount_minor = amount_minor + 1",
    "credits_add_up": "UPDATE bank_credits SET amount_minor = amount_minor + 1 WHERE payment_id IS NOT NULL",
    "suspense_is_explained": """
        UPDATE bank_credits SET amount_minor = amount_minor + 1
        WHERE payment_id IS NULL AND taken_back_at IS NULL
    """,
    "funded_payments_have_their_credit": "UPDATE bank_credits SET payment_id = NULL, matched_at = NULL",
    "protection_period_is_exact": "UPDATE deployment SET protection_day_seconds = 86399",
    "no_hold_released_early": """
        ALTER TABLE holds DROP CONSTRAINT holds_never_early_check;
        UPDATE holds SET held_at = held_at + interval '1 day', release_at = release_at + interval '1 day'
        WHERE state = 'released'
    """,
    "no_hold_released_while_frozen": """
        UPDATE disputes SET opened_at = opened_at - interval '1 day' WHERE state = 'open';
        INSERT INTO dispute_holds (dispute_key, hold_id)
        SELECT dispute_key, hold_id FROM disputes, holds
        WHERE disputes.state = 'open' AND holds.state = 'released'
    """,
    "frozen_holds_have_their_dispute": "UPDATE holds SET state = 'held' WHERE state = 'frozen'",
    "no_release_without_credit": "UPDATE shops SET funding = 'confirmed'",
    "no_release_after_charge_back": """
        UPDATE holds SET released_at = released_at + interval '1 hour' WHERE state = 'released'
    """,
    "one_effect_per_business_key": """
        ALTER TABLE payments DROP CONSTRAINT payments_shop_id_order_id_key;
        UPDATE payments SET order_id = 'o-same'
    """,
    "one_posting_per_effect": _LET_ME + "UPDATE postings SET posting_id = gen_random_uuid()",
    "effects_come_from_events": "UPDATE inbox SET content_hash = 'other' WHERE type = 'order.paid'",
    "withdrawals_had_one_password": "DELETE FROM password_attempts WHERE state = 'accepted'",
    "cancelled_money_is_back": """
        UPDATE withdrawals SET state = 'rejected', reason = 'over_limit' WHERE state = 'pending'
    """,
    "reviews_had_two_names": "DELETE FROM withdrawal_reviews",
    "nothing_left_before_its_cooling_off": """
        UPDATE withdrawals SET pending_until = clock_timestamp() + interval '1 day' WHERE state = 'accepted'
    """,
    "cooled_off_withdrawals_go_on": """
        UPDATE withdrawals SET pending_until = clock_timestamp() - interval '1 hour' WHERE state = 'pending'
    """,
    "passwords_changed_rightly": "DELETE FROM password_resets",
    "adoptions_are_on_record": "DELETE FROM operator_actions WHERE action = 'payout_adopted'",
    "debts_are_repaid_by_what_came_back": "UPDATE transfers SET state = 'settled' WHERE state = 'returned'",
    "shop_payouts_had_two_names": "UPDATE shop_payouts SET amount_minor = amount_minor + 1",
    "one_instruction_per_withdrawal": "DELETE FROM transfers",
    "payouts_follow_the_bank": "UPDATE transfers SET state = 'failed' WHERE state = 'settled'",
    "every_fact_has_its_event": "DELETE FROM events WHERE type = 'hold.released'",
    "outbox_rows_are_whole": "DELETE FROM events WHERE type = 'hold.released'",
    "outbox_is_published": "UPDATE outbox SET next_attempt_at = clock_timestamp() - interval '1 hour'",
    "received_payments_are_held": """
        DELETE FROM holds; UPDATE payments SET received_at = received_at - interval '1 hour'
    """,
    "due_holds_are_released": """
        UPDATE payments SET funded_at = funded_at - interval '9 days';
        UPDATE disputes SET opened_at = opened_at - interval '9 days',
                            resolved_at = resolved_at - interval '9 days';
        UPDATE holds SET held_at = held_at - interval '9 days', release_at = release_at - interval '9 days',
                         rearmed_at = NULL
        WHERE state = 'held'
    """,
    "passwords_are_decided": """
        UPDATE password_attempts SET requested_at = requested_at - interval '1 hour' WHERE state = 'waiting'
    """,
    "transfers_are_asked_for": """
        UPDATE transfers SET touched_at = touched_at - interval '1 day' WHERE state = 'submitted'
    """,
    "charge_backs_are_claimed": _LET_ME
    + """
        ALTER TABLE holds DROP CONSTRAINT holds_never_early_check;
        DELETE FROM claims;
        UPDATE postings SET booked_at = booked_at - interval '1 day';
        UPDATE payments SET charged_back_at = charged_back_at - interval '1 day';
        UPDATE bank_debits SET received_at = received_at - interval '1 day';
        UPDATE holds SET released_at = released_at - interval '2 days' WHERE state = 'released'
    """,
    "every_event_has_its_answer": """
        DELETE FROM events; UPDATE inbox SET received_at = received_at - interval '1 hour'
    """,
}
# One row is both sides of a posting, so that no single row can break this.
_UNBREAKABLE = {"ledger_sums_to_zero"}


def test_every_invariant_holds_in_a_rich_history(history: Engine) -> None:
    with history.connect() as connection:
        findings = run_audit(connection)
    assert {finding.check.name: finding.examples for finding in findings if not finding.ok} == {}


def test_every_invariant_has_something_to_judge_in_it(history: Engine) -> None:
    """Else the test above would prove nothing."""
    with history.connect() as connection:
        assert [finding.check.name for finding in run_audit(connection) if finding.checked == 0] == []


def test_every_check_has_a_test_that_breaks_it() -> None:
    assert {check.name for check in CHECKS} - _UNBREAKABLE == set(_SABOTAGE)


@pytest.mark.parametrize("name", sorted(_SABOTAGE))
def test_the_audit_notices(history: Engine, name: str) -> None:
    with history.connect() as connection:
        for statement in _SABOTAGE[name].split(";"):
            if statement.strip():
                connection.execute(text(statement))
        findings = {finding.check.name: finding for finding in run_audit(connection)}
        connection.rollback()
    assert not findings[name].ok
    assert 1 <= len(findings[name].examples) <= 5
    assert findings[name].violations >= len(findings[name].examples)
