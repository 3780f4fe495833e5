"""A step that hopes for new keys is done again, asking, when one is known; nothing of the first try stays."""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from workflow_support.books import balance
from workflow_support.desk import Desk
from workflow_support.events import order_data, order_paid
from workflow_support.races import met_at_a_lock

from infra.postgres import step as step_module
from infra.postgres.bulk import insert_unless_known
from infra.postgres.step import Step
from infra.postgres.tables import events
from ledger.ids import new_id


class Tries:
    """A step's work that writes one event, and remembers how it was asked to."""

    def __init__(self, desk: Desk, shop: str) -> None:
        self.hopes: list[bool] = []
        self._desk = desk
        self._shop = shop

    def tell(self, event_id: UUID) -> None:
        def work(step: Step) -> None:
            self.hopes.append(step.all_new)
            step.emit_text(event_id, self._shop, "order.held", "{}")

        self._desk.steps.carry_out("tell", work)


@pytest.fixture
def tries(desk: Desk) -> Tries:
    return Tries(desk, desk.a_shop())


def test_new_keys_are_written_at_the_first_try(desk: Desk, tries: Tries) -> None:
    event_id = new_id()
    tries.tell(event_id)
    assert tries.hopes == [True]
    assert desk.value("SELECT count(*) FROM events WHERE event_id = :id", id=event_id) == 1


def test_a_known_key_lets_the_work_be_done_again_asking(desk: Desk, tries: Tries) -> None:
    event_id = new_id()
    tries.tell(event_id)
    tries.tell(event_id)
    assert tries.hopes == [True, True, False]


def test_after_a_known_key_every_step_asks_first_for_a_while(
    desk: Desk, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeats come in swarms, and each failed try is work thrown away."""
    clock = 1_000.0
    monkeypatch.setattr(step_module, "monotonic", lambda: clock)
    event_id = new_id()
    tries.tell(event_id)
    tries.tell(event_id)
    tries.hopes.clear()
    clock += 0.99
    tries.tell(new_id())
    clock += 0.02
    tries.tell(new_id())
    assert tries.hopes == [False, True]


def test_what_the_first_try_wrote_is_rolled_back(desk: Desk) -> None:
    """The new order of a batch with a known one is booked once, by the second try."""
    shop = desk.a_shop()
    known, new = order_paid(shop), order_paid(shop)
    [held] = desk.shop_says(known)
    told = desk.shop_says(new, known)
    assert {event.type for event in told} == {"order.held"}
    assert held in told
    assert desk.value("SELECT count(*) FROM payments WHERE shop_id = :shop", shop=shop) == 2
    assert balance(desk.engine, shop) == {"incoming": -20_000, "received": 20_000}


def test_any_other_rule_of_the_database_is_no_reason_to_try_again(desk: Desk) -> None:
    """A row that breaks a check is wrong however it is written."""
    asked: list[bool] = []

    def break_a_check(step: Step) -> None:
        asked.append(step.all_new)
        step.connection.execute(text("UPDATE seal SET seal_id = 2"))

    with pytest.raises(IntegrityError, match="seal"):
        desk.steps.carry_out("break", break_a_check)
    assert asked == [True]


def test_two_workers_with_the_same_order_meet_at_its_key(desk: Desk) -> None:
    """Both hope; one waits for the other's commit, finds its key known, and gives the same answer."""
    shop = desk.a_shop()
    event = order_paid(shop, order_data())
    met_at_a_lock(
        desk.engine,
        # One comes to this lock with its arrival written, the other to that arrival's key.
        "LOCK TABLE payments IN SHARE MODE",
        lambda: desk.shop_says(event),
        lambda: desk.shop_says(event),
    )
    assert desk.value("SELECT count(*) FROM payments WHERE shop_id = :shop", shop=shop) == 1
    assert len({told.event_id for told in desk.told}) == 1
    assert balance(desk.engine, shop, "s-1") == {"held": 10_000, "received": -10_000}


@pytest.mark.parametrize("all_new", [True, False])
@pytest.mark.parametrize(
    "types",
    [["a", "a", "a"], ["a", "b", "a"], ["'; --", "'; --", "'; --"]],
    ids=["equal", "mixed", "hostile"],
)
def test_columns_travel_as_one_value_or_many_and_arrive_the_same(
    desk: Desk, types: list[str], *, all_new: bool
) -> None:
    shop = desk.a_shop()
    ids = [new_id() for _ in types]
    with desk.engine.begin() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        columns = {
            "event_id": ids,
            "shop_id": [shop] * 3,
            "type": types,
            "occurred_at": [now] * 3,
            "data": ['{"n": 1}', '{"n": 2}', '{"n": 3}'],
        }
        left_out = insert_unless_known(
            connection,
            events,
            columns,
            key=("event_id",),
            all_new=all_new,
            often_equal=("shop_id", "type", "occurred_at"),
        )
    assert left_out == []
    found = desk.execute(
        "SELECT event_id, type, occurred_at, data FROM events WHERE shop_id = :shop", shop=shop
    )
    by_id = {row.event_id: row for row in found}
    assert [by_id[id_].type for id_ in ids] == types
    assert [by_id[id_].data["n"] for id_ in ids] == [1, 2, 3]
    assert {row.occurred_at for row in found} == {now}
