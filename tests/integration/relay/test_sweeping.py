"""The sweep puts back what fell off its way, counts it, and is no storm of its own."""

from collections.abc import Callable

import pytest
from workflow_support.desk import Desk
from workflow_support.events import bank_credited, credit_data, order_data, order_paid

from infra.observability.metrics import SWEPT
from infra.rabbitmq.topology import ESCROW_HOLD, ESCROW_RELEASE, PAYOUT_BANK, PAYOUT_PASSWORD
from workers.payment import handlers as payment
from workers.relay.sweep import sweep


def found(desk: Desk, *, grace_seconds: float = 0.0, full: tuple[str, ...] = ()) -> dict[str, int]:
    """Sweep while these queues have messages waiting; return what was found of each kind."""
    told = sweep(desk.steps, grace_seconds=grace_seconds, queue_depth=lambda queue: 1 if queue in full else 0)
    return {what: count for what, count in told.items() if count}


def an_order_nobody_holds(desk: Desk, shop: str) -> None:
    payment.receive_orders(desk.steps, [order_paid(shop, order_data(splits={"s-1": 100}))])


def a_due_hold_without_alarm(desk: Desk, shop: str) -> None:
    data = order_data(splits={"s-1": 100})
    desk.shop_says(order_paid(shop, data))
    desk.bank_says(bank_credited(credit_data(data)))
    desk.pass_protection(shop, data["order_id"])


def a_password_nobody_checks(desk: Desk, shop: str) -> None:
    platform = desk.platform(shop)
    desk.book_withdrawals(platform.withdraws(desk.a_seller(platform, available=100), 100))


def a_payout_nobody_sends(desk: Desk, shop: str) -> None:
    a_password_nobody_checks(desk, shop)
    (check,) = desk.commands
    desk.commands = []
    desk.handle(check)


LOST: list[tuple[Callable[[Desk, str], None], str, str, str]] = [
    (an_order_nobody_holds, "unheld_payments", ESCROW_HOLD, "order.held"),
    (a_due_hold_without_alarm, "overdue_holds", ESCROW_RELEASE, "hold.released"),
    (a_password_nobody_checks, "resting_attempts", PAYOUT_PASSWORD, "withdrawal.accepted"),
    (a_payout_nobody_sends, "resting_transfers", PAYOUT_BANK, "payout.settled"),
]


@pytest.mark.parametrize(("lose", "what", "queue", "event"), LOST, ids=[what for _, what, _, _ in LOST])
def test_what_fell_off_its_way_is_found_counted_and_goes_on_through_the_same_code(
    desk: Desk, lose: Callable[[Desk, str], None], what: str, queue: str, event: str
) -> None:
    lose(desk, desk.a_shop())
    desk.commands, desk.delayed, desk.told = [], [], []
    assert what not in found(desk, grace_seconds=60), "it is not late enough yet"
    assert what not in found(desk, full=(queue,)), "a queue that drains gets nothing more: it may be in there"
    assert [row for row in desk.commands if row.queue == queue] == []
    desk.commands = []
    before = SWEPT.labels(what=what)._value.get()
    assert found(desk)[what] == 1
    assert SWEPT.labels(what=what)._value.get() == before + 1
    desk.run()
    assert event in [told.type for told in desk.told]
    assert what not in found(desk)


def test_what_was_put_back_a_moment_ago_is_left_alone(desk: Desk) -> None:
    """Its command may still be on its way: twice would be the beginning of a storm."""
    a_due_hold_without_alarm(desk, desk.a_shop())
    desk.commands = []
    desk.execute(
        "UPDATE holds SET held_at = held_at - interval '1 minute',"
        " release_at = release_at - interval '1 minute' WHERE state = 'held'"
    )
    assert found(desk, grace_seconds=15) == {"overdue_holds": 1}
    assert found(desk, grace_seconds=15) == {}
    desk.run()
