"""`bank.credited`: the bank's word finds its order, whichever comes first; what explains nothing is kept."""

from datetime import UTC, datetime

from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import bank_credited, credit_data, fresh, order_data, order_paid
from workflow_support.races import met_at_a_lock, side_by_side

HOUSE = "_house"


def is_funded(desk: Desk, shop: str, order_id: str) -> bool:
    return desk.value(
        "SELECT funded_at IS NOT NULL FROM payments WHERE (shop_id, order_id) = (:shop, :order)",
        shop=shop,
        order=order_id,
    )


def in_suspense(desk: Desk, reference: str) -> int:
    return desk.value(
        "SELECT count(*) FROM bank_credits WHERE payment_id IS NULL AND bank_reference = :reference",
        reference=reference,
    )


def house_suspense(desk: Desk) -> int:
    return balance(desk.engine, HOUSE).get("suspense", 0)


def test_a_credit_after_its_order_confirms_it(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    [told] = desk.bank_says(bank_credited(credit_data(order)))
    assert told.type == "order.funded"
    assert told.data["order_id"] == order["order_id"]
    assert datetime.fromisoformat(told.data["booked_at"]) == datetime(2026, 11, 23, 8, tzinfo=UTC)
    assert balance(desk.engine, shop) == {"bank_cash": -10_000, "received": 10_000}


def test_a_credit_before_its_order_waits_in_suspense_and_is_claimed(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    before = house_suspense(desk)
    assert desk.bank_says(bank_credited(credit_data(order))) == []
    assert house_suspense(desk) == before + 10_000
    told = desk.shop_says(order_paid(shop, order))
    assert sorted(event.type for event in told) == ["order.funded", "order.held"]
    assert house_suspense(desk) == before
    assert balance(desk.engine, shop) == {"bank_cash": -10_000, "received": 10_000}


def test_an_order_whose_credit_was_first_is_held_as_funded(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    desk.bank_says(bank_credited(credit_data(order)))
    told = {event.type: event for event in desk.shop_says(order_paid(shop, order))}
    assert told["order.held"].data["funded"] is True


def test_the_same_statement_line_again_has_no_further_effect(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    credit = credit_data(order)
    desk.shop_says(order_paid(shop, order))
    event = bank_credited(credit)
    desk.bank_says(event)
    assert desk.bank_says(event, bank_credited(credit)) == []
    assert balance(desk.engine, shop)["bank_cash"] == -10_000
    assert in_suspense(desk, order["bank_reference"]) == 0


def test_a_second_credit_for_a_confirmed_order_stays_in_suspense(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    told = desk.bank_says(bank_credited(credit_data(order)), bank_credited(credit_data(order)))
    assert [event.type for event in told] == ["order.funded"]
    assert in_suspense(desk, order["bank_reference"]) == 1
    assert balance(desk.engine, shop)["bank_cash"] == -10_000


def test_a_credit_of_another_amount_or_currency_confirms_nothing(desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    wrong = [credit_data(order, amount=9_999), credit_data(order, currency="EUR")]
    assert desk.bank_says(*map(bank_credited, wrong)) == []
    assert not is_funded(desk, shop, order["order_id"])
    assert in_suspense(desk, order["bank_reference"]) == 2
    assert [told.type for told in desk.bank_says(bank_credited(credit_data(order)))] == ["order.funded"]


def test_a_credit_that_two_shops_wait_for_is_nobodys_until_there_are_two(desk: Desk) -> None:
    """A reference is unique within a shop only; a guess could release what another shop's buyer paid."""
    shops = [desk.a_shop(), desk.a_shop()]
    order = order_data()
    desk.shop_says(*[order_paid(shop, order) for shop in shops])
    assert desk.bank_says(bank_credited(credit_data(order))) == []
    assert [is_funded(desk, shop, order["order_id"]) for shop in shops] == [False, False]
    told = desk.bank_says(bank_credited(credit_data(order)))
    assert sorted(event.shop for event in told) == sorted(shops)
    assert in_suspense(desk, order["bank_reference"]) == 0


def test_other_content_under_a_known_statement_line_is_recorded_for_the_operator(desk: Desk) -> None:
    """A bank gets no replies, so nobody would ever hear of it otherwise."""
    shop = desk.a_shop()
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    credit = credit_data(order)
    desk.bank_says(bank_credited(credit))
    other = bank_credited(credit | {"amount": 1})
    assert desk.bank_says(other) == []
    [row] = desk.execute(
        "SELECT reason, kind, convert_from(body, 'UTF8') AS body FROM recorded_messages"
        " WHERE convert_from(body, 'UTF8') LIKE :id",
        id=f"%{other.envelope.id}%",
    )
    assert (row.kind, row.reason) == ("quarantine", "conflicting_duplicate")
    assert balance(desk.engine, shop)["bank_cash"] == -10_000


def test_the_same_line_of_two_banks_is_two_credits(desk: Desk) -> None:
    line, reference = fresh("line"), fresh("REF")
    credit = credit_data(order_data(bank_reference=reference), statement_line=line)
    desk.bank_says(bank_credited(credit, bank="one"), bank_credited(credit, bank="two"))
    assert in_suspense(desk, reference) == 2


def test_a_rejected_order_claims_no_credit(desk: Desk) -> None:
    shop = desk.a_shop(state="suspended")
    order = order_data()
    desk.shop_says(order_paid(shop, order))
    assert desk.bank_says(bank_credited(credit_data(order))) == []
    assert in_suspense(desk, order["bank_reference"]) == 1


def test_an_order_and_its_credit_that_commit_without_seeing_each_other_still_meet(desk: Desk) -> None:
    """Both write, then look for the other, then commit: a second look brings them together."""
    shop = desk.a_shop()
    order = order_data()
    met_at_a_lock(
        desk.engine,
        # Both transactions end with a row of the outbox, so neither can commit before both have looked.
        "LOCK TABLE outbox IN SHARE MODE",
        lambda: desk.shop_says(order_paid(shop, order)),
        lambda: desk.bank_says(bank_credited(credit_data(order))),
    )
    assert not is_funded(desk, shop, order["order_id"])
    told = desk.ring_alarms("match_credits")
    assert [event.type for event in told] == ["order.funded"]
    assert balance(desk.engine, shop) == {"bank_cash": -10_000, "received": 10_000}


def test_many_orders_and_credits_at_once_confirm_each_order_once(desk: Desk) -> None:
    shop = desk.a_shop()
    orders = [order_data() for _ in range(40)]
    chunks = [orders[start : start + 10] for start in range(0, 40, 10)]
    acts = [
        *[lambda c=chunk: desk.shop_says(*[order_paid(shop, o) for o in c]) for chunk in chunks],
        *[
            lambda c=chunk: desk.bank_says(*[bank_credited(credit_data(o)) for o in reversed(c)])
            for chunk in chunks
        ],
    ]
    side_by_side(*acts)
    desk.ring_alarms("match_credits")
    assert balance(desk.engine, shop) == {"bank_cash": -400_000, "received": 400_000}
    funded = [told.data["order_id"] for told in desk.told if told.type == "order.funded"]
    assert sorted(funded) == sorted(order["order_id"] for order in orders)
