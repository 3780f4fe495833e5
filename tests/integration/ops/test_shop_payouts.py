"""A shop's own money leaves on two names' word, once; what is others' never leaves as the shop's."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from command_runs import Holdfast, Ran
from sqlalchemy.exc import IntegrityError
from workflow_support.banks import NO_ANSWER, PENDING, REJECTED, SETTLED, ScriptedBank
from workflow_support.desk import Desk
from workflow_support.events import DESTINATION, bank_debited, debit_data, fresh, order_data, order_paid
from workflow_support.races import side_by_side

from infra.postgres.step import Steps
from ops.commands.shop_payouts import _lock
from workers.payout.decisions import Source
from workers.payout.shop_payouts import CannotPayOut, ShopPayout, carry_out_shop_payout, find_own_money

WHY = ("--why", "because")


@dataclass(frozen=True, slots=True)
class Till:
    """A shop with 100.00 CNY of fees, 50.00 of it recovered from a seller, and an account of its own."""

    desk: Desk
    bank: ScriptedBank
    holdfast: Holdfast
    shop: str

    def proposes(self, amount: int, *, source: str = "fees", reference: str = "p-1", by: str = "ada") -> Ran:
        options = ("--from", source, "--amount", str(amount), "--currency", "CNY", "--to", "main")
        return self._payout("propose", reference, *options, "--by", by)

    def approves(self, reference: str = "p-1", *, by: str = "grace") -> Ran:
        ran = self._payout("approve", reference, "--by", by)
        self.desk.relay()
        return ran

    def rejects(self, reference: str = "p-1") -> Ran:
        return self._payout("reject", reference)

    def _payout(self, what: str, reference: str, *options: str) -> Ran:
        return self.holdfast("shop", "payout", what, self.shop, reference, *options, *WHY)

    @property
    def books(self) -> dict[str, int]:
        """What the shop's own accounts hold; nothing is left out but zeros."""
        rows = self.desk.execute(
            "SELECT account, sum(net_minor) AS minor FROM balance_lines WHERE shop_id = :shop AND"
            " account IN ('fees', 'recovered', 'shop_in_payout') GROUP BY account",
            shop=self.shop,
        )
        return {row.account: int(row.minor) for row in rows if row.minor}

    def payable(self, source: Source) -> int:
        with self.desk.engine.connect() as connection:
            return find_own_money(connection, self.shop, "CNY").payable_minor(source)


@pytest.fixture
def till_with(
    holdfast: Holdfast, desk_with: Callable[[ScriptedBank], Desk]
) -> Iterator[Callable[[ScriptedBank], Till]]:
    """Return a function that opens a shop with money of its own; afterwards every invariant holds."""

    def open_till(bank: ScriptedBank) -> Till:
        assert holdfast("migrate").exit_code == 0
        desk = desk_with(bank)
        shop = desk.a_shop(fee_bps=1_000)
        desk.released_order(shop, splits={"s-1": 100_000})
        claim = ("claim", "add", "--shop", shop, "--seller", seller_of(desk, shop), "--amount", "5000")
        assert holdfast(*claim, "--currency", "CNY", *WHY).err == ""
        account = ("shop", "destination", "add", shop, "main", "--file", "-")
        assert holdfast(*account, *WHY, stdin=json.dumps(DESTINATION)).exit_code == 0
        return Till(desk, bank, holdfast, shop)

    yield open_till
    audited = holdfast("audit", "--json").json
    assert [check for check in audited["checks"] if not check["ok"]] == []


def seller_of(desk: Desk, shop: str) -> str:
    """Enrol the seller to whom the money was released: only those can be claimed from by command."""
    desk.seller_asks(desk.platform(shop).enrols("s-1"))
    return "s-1"


@pytest.fixture
def till(till_with: Callable[[ScriptedBank], Till]) -> Till:
    return till_with(ScriptedBank())


ALL = {"fees": 10_000, "recovered": 5_000}
each_source = pytest.mark.parametrize("source", ["fees", "recovered"])


@each_source
def test_two_names_pay_out_a_shops_own_money_to_its_own_account(till: Till, source: str) -> None:
    proposed = till.proposes(4_000, source=source)
    assert (proposed.exit_code, proposed.err) == (0, "")
    assert till.books == ALL, "one name moves nothing"
    approved = till.approves()
    assert (approved.exit_code, approved.err) == (0, "")
    assert till.books == ALL | {source: ALL[source] - 4_000}
    [instruction] = till.bank.submitted
    assert (instruction.amount_minor, instruction.currency) == (4_000, "CNY")
    assert dict(instruction.destination) == DESTINATION
    [listed] = till.holdfast("shop", "payout", "list", till.shop, "--json").json["payouts"]
    assert (listed["state"], listed["transfer"], listed["destination"]) == (
        "approved",
        "settled",
        "DE89…3000",
    )
    period = ("--from", "2020-01-01T00:00:00Z", "--to", "2100-01-01T00:00:00Z")
    statement = till.holdfast("statement", "--shop", till.shop, *period, "--json").json
    moved = {
        (account["account"], line["amount"])
        for account in statement["accounts"]
        for line in account["movements"]
        if line["withdrawal_id"] == "p-1"
    }
    assert moved == {
        (source, -4_000),
        ("shop_in_payout", 4_000),
        ("shop_in_payout", -4_000),
        ("bank_cash", -4_000),
    }
    told = "SELECT count(*) FROM events WHERE shop_id = :s AND type NOT IN ('order.held', 'order.funded', "
    told += "'hold.released', 'seller.accepted')"
    assert till.desk.value(told, s=till.shop) == 0, "no event of the contract is about it"
    actions = till.desk.execute(
        "SELECT operator, action FROM operator_actions WHERE subject = :s ORDER BY action_id",
        s=f"{till.shop}/p-1",
    )
    assert [tuple(row) for row in actions] == [
        ("ada", "shop_payout_proposed"),
        ("grace", "shop_payout_approved"),
    ]


@each_source
def test_what_the_bank_refuses_is_the_shops_again(
    till_with: Callable[[ScriptedBank], Till], source: str
) -> None:
    till = till_with(ScriptedBank(submit=[REJECTED]))
    till.proposes(4_000, source=source)
    till.approves()
    assert till.books == ALL


@each_source
def test_what_comes_back_after_it_settled_is_the_shops_again(till: Till, source: str) -> None:
    till.proposes(4_000, source=source)
    till.approves()
    till.bank.sends_back(till.bank.submitted[0].end_to_end_id)
    till.desk.collect_returns()
    assert till.books == ALL
    assert till.payable(Source(source)) == ALL[source]


def test_a_time_out_is_asked_for_and_never_sent_again(till_with: Callable[[ScriptedBank], Till]) -> None:
    till = till_with(ScriptedBank(submit=[NO_ANSWER], find=[PENDING, SETTLED]))
    till.proposes(4_000)
    till.approves()
    assert till.books == ALL | {"fees": 6_000, "shop_in_payout": 4_000}
    while any(row.command == "check_transfer" for row in till.desk.delayed):
        till.desk.ring_alarms("check_transfer")
    assert till.books == ALL | {"fees": 6_000}
    assert len(till.bank.submitted) == 1


def test_the_same_name_twice_moves_nothing(till: Till) -> None:
    till.proposes(4_000)
    for name in ("ada", " Ada "):
        assert till.approves(by=name).exit_code == 1
    assert till.books == ALL
    with pytest.raises(IntegrityError, match="two_names"):
        till.desk.execute(
            "UPDATE shop_payouts SET state = 'approved', decided_by = ' ADA', decided_at = now()"
            " WHERE shop_id = :s",
            s=till.shop,
        )


def test_whatever_is_given_twice_happens_once(till: Till) -> None:
    for _ in range(2):
        assert till.proposes(4_000).exit_code == 0
    assert till.proposes(4_001).exit_code == 1, "the same reference with other content"
    for _ in range(2):
        assert till.approves().exit_code == 0
    assert till.rejects().exit_code == 1
    assert (len(till.bank.submitted), till.books["fees"]) == (1, 6_000)


def test_what_was_rejected_can_not_be_approved(till: Till) -> None:
    till.proposes(4_000)
    assert till.rejects().exit_code == 0
    assert till.approves().exit_code == 1
    assert (till.bank.submitted, till.books) == ([], ALL)


@each_source
def test_no_more_leaves_than_is_the_shops(till: Till, source: str) -> None:
    refused = till.proposes(ALL[source] + 1, source=source)
    assert (refused.exit_code, "may leave" in refused.err) == (1, True)
    for reference in ("p-1", "p-2"):
        assert till.proposes(ALL[source], source=source, reference=reference).exit_code == 0
    assert till.approves("p-1").exit_code == 0
    assert till.approves("p-2").exit_code == 1, "it is judged again when it is carried out"
    assert till.payable(Source(source)) == 0


def test_two_approvals_at_once_take_no_cent_twice(till: Till) -> None:
    for reference in ("p-1", "p-2"):
        till.proposes(7_000, reference=reference)

    def approve(reference: str) -> bool:
        steps = Steps(till.desk.engine, after_commit=lambda _rows: None, grace_seconds=0)
        try:
            with steps.begin("approve_shop_payout") as step:
                payout: ShopPayout = _lock(step, till.shop, reference).payout
                carry_out_shop_payout(step, payout, by="grace", why="because")
        except CannotPayOut:
            return False
        return True

    assert sorted(side_by_side(lambda: approve("p-1"), lambda: approve("p-2"))) == [False, True]
    till.desk.relay()
    assert till.books["fees"] == 3_000


def test_while_payouts_are_paused_it_waits_and_then_goes(till: Till) -> None:
    till.holdfast("payouts", "pause", "--shop", till.shop, *WHY)
    till.proposes(4_000)
    till.approves()
    assert (till.bank.submitted, till.books["shop_in_payout"]) == ([], 4_000)
    till.holdfast("payouts", "resume", "--shop", till.shop, *WHY)
    till.desk.relay()
    assert len(till.bank.submitted) == 1
    assert till.books == ALL | {"fees": 6_000}


def test_what_was_claimed_for_a_credit_that_the_bank_took_back_is_not_the_shops(till: Till) -> None:
    """The bank has that money already; to pay it out would take other sellers' money."""
    order = till.desk.released_order(till.shop, splits={"s-2": 20_000})
    till.desk.bank_says(bank_debited(debit_data(order)))
    assert till.books == {"fees": 10_000, "recovered": 25_000}
    assert (till.payable(Source.FEES), till.payable(Source.RECOVERED)) == (10_000, 5_000)


def test_what_sellers_still_owe_is_not_there_to_be_paid(till: Till) -> None:
    seller = till.desk.a_seller(till.desk.platform(till.shop))
    claim = ("claim", "add", "--shop", till.shop, "--seller", seller, "--amount", "12000")
    till.holdfast(*claim, "--currency", "CNY", *WHY)
    assert till.books == {"fees": 10_000, "recovered": 17_000}
    assert till.payable(Source.RECOVERED) == 15_000, "fees and what was taken: no more is at the bank"


def test_fees_on_money_that_no_bank_has_confirmed_do_not_leave(till: Till) -> None:
    till.desk.execute("UPDATE shops SET funding = 'announced' WHERE shop_id = :s", s=till.shop)
    order = order_data(splits={"s-3": 10_000})
    till.desk.shop_says(order_paid(till.shop, order))
    assert till.payable(Source.FEES) == 10_000, "what is protected still is in nobody's way"
    till.desk.pass_protection(till.shop, str(order["order_id"]))
    till.desk.ring_alarms("release_hold")
    assert till.books["fees"] == 11_000
    assert till.payable(Source.FEES) == 6_000, "15.00 more are withdrawable than that order brought"


def test_a_chargeback_after_the_fees_have_left_is_the_shops_debt(till: Till) -> None:
    order = till.desk.released_order(till.shop, splits={"s-2": 20_000})
    till.proposes(12_000)
    till.approves()
    assert "fees" not in till.books
    till.desk.bank_says(bank_debited(debit_data(order)))
    assert till.books == {"fees": -2_000, "recovered": 25_000}
    assert (till.payable(Source.FEES), till.payable(Source.RECOVERED)) == (0, 3_000)
    till.desk.released_order(till.shop, splits={"s-1": 30_000})
    assert till.payable(Source.FEES) == 1_000, "new fees cover it first"


def test_an_account_is_checked_kept_encrypted_and_shown_masked(till: Till) -> None:
    wrong = DESTINATION | {"iban": "DE89370400440532013001"}
    add = ("shop", "destination", "add", till.shop)
    ran = till.holdfast(*add, "other", "--file", "-", *WHY, stdin=json.dumps(wrong))
    assert (ran.exit_code, "DE8937" in ran.err, ran.err.count("\n")) == (2, False, 1)
    assert till.holdfast(*add, "main", "--file", "-", *WHY, stdin=json.dumps(DESTINATION)).exit_code == 0
    other = DESTINATION | {"holder_name": "Somebody Else"}
    assert till.holdfast(*add, "main", "--file", "-", *WHY, stdin=json.dumps(other)).exit_code == 1
    shown = till.holdfast("shop", "destination", "list", till.shop)
    assert "DE89…3000" in shown.out
    stored = till.desk.value(
        "SELECT encode(details_encrypted, 'escape') FROM destinations WHERE shop_id = :s AND seller_id = ''",
        s=till.shop,
    )
    assert DESTINATION["iban"] not in stored + shown.out
    assert till.proposes(1, reference=fresh("p")).exit_code == 0
    unknown = ("--from", "fees", "--amount", "1", "--currency", "CNY", "--to", "nowhere")
    assert till.holdfast("shop", "payout", "propose", till.shop, "p-9", *unknown, *WHY).exit_code == 1
