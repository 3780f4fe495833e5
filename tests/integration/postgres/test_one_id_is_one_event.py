"""An event's id stands for one content: whoever tells it again tells what was told first."""

import json
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from workflow_support.desk import Desk
from workflow_support.events import order_data, order_paid

from infra.postgres.outbox import EventsRow, OutboxRow, StoredEvent
from infra.postgres.step import Step, Steps
from ledger.ids import new_id
from workers.payment.handlers import receive_orders


@pytest.fixture
def published() -> list[StoredEvent]:
    return []


@pytest.fixture
def steps(desk: Desk, published: list[StoredEvent]) -> Steps:
    def collect(rows: Sequence[OutboxRow]) -> None:
        published.extend(
            # How the JSON text is spaced says nothing.
            replace(event, data=json.dumps(json.loads(event.data), sort_keys=True))
            for row in rows
            if isinstance(row, EventsRow)
            for event in row.events
        )

    return Steps(desk.engine, after_commit=collect, grace_seconds=2.0)


def test_an_event_told_again_is_published_as_it_was(
    desk: Desk, steps: Steps, published: list[StoredEvent]
) -> None:
    """Its time is part of it, and a later step's clock is another."""
    shop, event_id = desk.a_shop(), new_id()
    steps.carry_out("tell", lambda step: step.emit_text(event_id, shop, "order.held", '{"n": 1}'))
    steps.carry_out("tell", lambda step: step.emit_text(event_id, shop, "order.held", '{"n": 2}'))
    first, again = published
    assert again == first


def test_an_event_told_twice_in_one_step_is_published_once(
    desk: Desk, steps: Steps, published: list[StoredEvent]
) -> None:
    shop, event_id = desk.a_shop(), new_id()

    def tell_twice(step: Step) -> None:
        step.emit_text(event_id, shop, "order.held", "{}")
        step.emit_text(event_id, shop, "order.held", "{}")

    steps.carry_out("tell", tell_twice)
    assert [event.event_id for event in published] == [event_id]


def test_a_conflict_that_comes_twice_is_refused_with_the_same_event(
    desk: Desk, steps: Steps, published: list[StoredEvent]
) -> None:
    """The contract: the first answer is published again under its first id, so that a shop may compare."""
    shop, order = desk.a_shop(), order_data()
    event = order_paid(shop, order)
    other = order_paid(shop, order | {"buyer_id": "b-2"}, event_id=event.envelope.id)
    receive_orders(steps, [event])
    published.clear()
    receive_orders(steps, [other])
    receive_orders(steps, [other])
    first, again = published
    assert first.type == "order.rejected"
    assert again == first
