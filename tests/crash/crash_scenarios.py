"""
What happens outside while the process dies, told once, from the first message to the final state.

A scenario does not know where the process will die: it speaks and waits, as shops do. `begin` starts the
process that is going to die; what a scenario does before that is the past that the place needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crash_sites import DAY_SECONDS, LONG_DAY_SECONDS, RICHES, Site, random_bytes_text, wait_until
from workflow_support.outsider import Ed25519Key, Message, Received, fresh, order_data, signed

from infra.crash_points import CRASH_EXIT_CODE
from infra.rabbitmq.delay_lanes import period_lanes

Begin = Callable[..., None]
NET = 9_750  # of 10,000, after the shop's fee
RICH = RICHES * NET // 10_000


def an_order_is_held_funded_and_released(site: Site, begin: Begin) -> None:
    """Said twice, said differently, paid before it was announced: held once and released once."""
    begin()
    shop, seller = site.shop, fresh("s")
    first, second = order_data(splits={seller: 10_000}), order_data(splits={seller: 10_000})
    site.credits(second)
    wait_until(
        lambda: site.value("SELECT count(*) FROM bank_credits") >= 1 and _credit_is_known(site, second),
        what="the credit has come",
    )
    message = shop.message(shop.event("order.paid", first))
    shop.publish(message, message)
    shop.says("order.paid", second)
    site.credits(first)
    held = [shop.hears("order.held", order_id=order["order_id"]) for order in (first, second)]
    conflict = shop.says("order.paid", first | {"buyer_id": "b-2"})
    shop.hears("order.rejected", event_id=conflict, reason="conflicting_duplicate")
    # Both are funded when they are released.
    for event in held:
        [part] = event.data["holds"]
        released = shop.hears("hold.released", hold_id=part["hold_id"])
        assert (released.data["amount"], released.data["fee"]) == (NET, 10_000 - NET)
        assert released.data["released_at"] >= event.data["release_at"]
    site.come_to_rest()
    assert site.balance(seller) == {"available": 2 * NET}
    assert site.value("SELECT count(*) FROM holds WHERE seller_id = :seller", seller=seller) == 2
    for order in (first, second):
        answers = _heard(site, "order.held", order_id=order["order_id"])
        assert len({event.id for event in answers}) == 1, "one answer, however often it is told"


def what_was_committed_is_left_over(site: Site, begin: Begin) -> None:
    """A process died after its commit, before it published anything; now its successor dies too."""
    dead = site.start(crash_at="receive_orders: committed")
    seller = fresh("s")
    order = order_data(splits={seller: 10_000})
    site.shop.says("order.paid", order)
    assert dead.ended.result(60) == CRASH_EXIT_CODE
    site.credits(order)
    wait_until(
        lambda: bool(
            site.value("""
                SELECT count(*) FROM outbox WHERE published_at IS NULL AND next_attempt_at < clock_timestamp()
            """)
        ),
        what="the row is the relay's to publish",
    )
    begin()
    site.shop.hears("hold.released", order_id=order["order_id"])
    site.come_to_rest()
    assert site.balance(seller) == {"available": NET}


def an_alarm_was_lost(site: Site, begin: Begin) -> None:
    """The broker lost the delayed message; the row is still there, and the sweep reads rows."""
    site.start(sweep_seconds="3600")
    seller = fresh("s")
    order = order_data(splits={seller: 10_000})
    site.shop.says("order.paid", order)
    site.credits(order)
    site.shop.hears("order.held", order_id=order["order_id"])
    site.shop.hears("order.funded", order_id=order["order_id"])
    _wait_for_empty_outbox(site)
    site.kill()
    site.purge(*[lane.queue_name for lane in period_lanes(site.day_seconds)])
    site.let_days_pass(4)
    assert site.value(
        "SELECT release_at < clock_timestamp() FROM holds WHERE order_id = :order", order=order["order_id"]
    )
    assert _heard(site, "hold.released", order_id=order["order_id"]) == []
    begin()
    site.shop.hears("hold.released", order_id=order["order_id"])
    site.come_to_rest()
    assert site.balance(seller) == {"available": NET}


def a_seller_withdraws(site: Site, begin: Begin) -> None:
    """Enrolled, mistyped once, paid out by a bank that takes its time: paid exactly once."""
    begin()
    shop, seller, destination = site.shop, site.a_rich_seller(), fresh("d")
    site.bank.behaves("late", destination)
    enrolled = shop.enrols(seller, destination_id=destination)
    shop.hears("seller.accepted", event_id=enrolled)
    wrong = shop.withdraws(seller, 4_000, password="incorrect horse", destination_id=destination)
    shop.hears("withdrawal.rejected", withdrawal_id=wrong, reason="wrong_password")
    [failed] = site.rows(
        "SELECT failed_attempts FROM sellers WHERE (shop_id, seller_id) = (:shop, :seller)",
        shop=shop.id,
        seller=seller,
    )
    assert failed.failed_attempts == 1, "a guess is counted, and counted once"
    right = shop.withdraws(seller, 4_000, destination_id=destination)
    shop.hears("withdrawal.accepted", withdrawal_id=right)
    settled = shop.hears("payout.settled", withdrawal_id=right)
    site.come_to_rest()
    assert site.balance(seller) == {"available": RICH - 4_000}
    _paid_once(site, right, settled)


def a_withdrawal_has_cooled_off(site: Site, begin: Begin) -> None:
    """To a new destination it waits with its money set aside; when its time has come it is paid, once."""
    site.start()
    shop, seller, destination = site.shop, site.a_rich_seller(), fresh("d")
    for one in (fresh("d"), destination):
        shop.hears("seller.accepted", event_id=shop.enrols(seller, destination_id=one))
    withdrawal = shop.withdraws(seller, 4_000, destination_id=destination)
    shop.hears("withdrawal.pending", withdrawal_id=withdrawal, reason="cooling_off")
    assert site.balance(seller) == {"available": RICH - 4_000, "in_payout": 4_000}
    _wait_for_empty_outbox(site)
    site.kill()
    # Its alarm would ring in 24 hours; the sweep reads rows.
    site.change(
        "UPDATE withdrawals SET pending_until = clock_timestamp() WHERE withdrawal_id = :w", w=withdrawal
    )
    begin()
    shop.hears("withdrawal.accepted", withdrawal_id=withdrawal)
    settled = shop.hears("payout.settled", withdrawal_id=withdrawal)
    site.come_to_rest()
    assert site.balance(seller) == {"available": RICH - 4_000}
    _paid_once(site, withdrawal, settled)


def a_payout_comes_back(site: Site, begin: Begin) -> None:
    # Nobody asks for returns until the process that is going to die does.
    site.start(bank_poll_seconds="3600")
    shop, seller, destination = site.shop, site.a_rich_seller(), fresh("d")
    site.bank.behaves("return_after_settling", destination)
    shop.hears("seller.accepted", event_id=shop.enrols(seller, destination_id=destination))
    withdrawal = shop.withdraws(seller, 4_000, destination_id=destination)
    settled = shop.hears("payout.settled", withdrawal_id=withdrawal)
    _wait_for_empty_outbox(site)
    site.kill()
    wait_until(lambda: site.bank.has_returned(settled.data["end_to_end_id"]), what="the money came back")
    begin()
    returned = shop.hears("payout.returned", withdrawal_id=withdrawal)
    site.come_to_rest()
    assert site.balance(seller) == {"available": RICH}, "back in available, never in held"
    assert len(_heard(site, "payout.returned", withdrawal_id=withdrawal)) >= 1
    assert returned.data["amount"] == 4_000
    _paid_once(site, withdrawal, settled)


def a_buyer_gets_the_money_back(site: Site, begin: Begin) -> None:
    """A dispute that is decided for the buyer, and a refund that the marketplace asks for."""
    shop, seller = site.shop, fresh("s")
    orders = [order_data(splits={seller: 10_000}) for _ in range(2)]
    site.start()
    for order in orders:
        site.bank.behaves("late", f"return {order['bank_reference']}")
        shop.says("order.paid", order)
        site.credits(order)
    for order in orders:
        shop.hears("order.held", order_id=order["order_id"])
        shop.hears("order.funded", order_id=order["order_id"])
    early = _opens_dispute(site, orders[0])
    _wait_for_empty_outbox(site)
    site.kill()
    begin()
    shop.says(
        "dispute.resolved",
        {"dispute_id": early, "refunds": [{"seller_id": seller, "amount": 10_000}]},
    )
    refund = fresh("r")
    asked = {
        "refund_id": refund,
        "order_id": orders[1]["order_id"],
        "refunds": [{"seller_id": seller, "amount": 10_000}],
    }
    shop.says("refund.requested", asked)
    shop.says("refund.requested", asked)
    shop.hears("refund.settled", refund_id=refund)
    for order in orders:
        shop.hears("refund.settled", order_id=order["order_id"])
    site.come_to_rest()
    assert site.balance(seller) == {}, "nothing is left of either order"
    refunds = site.rows(
        "SELECT end_to_end_id FROM refunds WHERE order_id = ANY(:orders)",
        orders=[order["order_id"] for order in orders],
    )
    assert len(refunds) == 2
    for row in refunds:
        assert site.bank.journal(row.end_to_end_id, "transfer_accepted") == 1


def the_bank_takes_a_credit_back(site: Site, begin: Begin) -> None:
    """What was released by then is claimed from the seller, once."""
    site.start()
    shop, seller = site.shop, fresh("s")
    order = order_data(splits={seller: 10_000})
    shop.says("order.paid", order)
    site.credits(order)
    shop.hears("hold.released", order_id=order["order_id"])
    _wait_for_empty_outbox(site)
    site.kill()
    begin()
    site.bank_says("bank.debited", order, reason="MD06")
    wait_until(
        lambda: site.value("SELECT count(*) FROM claims WHERE seller_id = :seller", seller=seller) == 1,
        what="the seller's money is claimed",
        log=site.read_log,
    )
    site.come_to_rest()
    assert site.value("SELECT count(*) FROM claims WHERE seller_id = :seller", seller=seller) == 1
    assert site.balance(seller) == {}, "the released money was still there and was taken"


def strangers_and_nonsense(site: Site, begin: Begin) -> None:
    """A forged order, one of a type that nobody knows and a poisoned command: each kept exactly once."""
    begin()
    shop = site.shop
    order = order_data()
    event = shop.event("order.paid", order)
    forged = shop.message(event)
    forged.headers |= signed(Ed25519Key(), event["id"], forged.body)
    unrouted = Message(random_bytes_text().encode(), "order.imagined", {})
    poison = Message(random_bytes_text().encode(), "escrow.hold", {}, properties={"type": "hold_funds"})
    shop.publish(forged, unrouted)
    site.publish_raw(poison, exchange="")
    good = order_data(splits={fresh("s"): 10_000})
    shop.says("order.paid", good)
    shop.hears("order.held", order_id=good["order_id"])
    kinds = {}
    for message in (forged, unrouted, poison):
        wait_until(
            lambda body=message.body: bool(_recorded(site, body)), what="it is recorded", log=site.read_log
        )
    site.come_to_rest()
    for name, message in (("forged", forged), ("unrouted", unrouted), ("poison", poison)):
        [kept] = _recorded(site, message.body)
        kinds[name] = (kept.kind, kept.reason)
    assert kinds == {
        "forged": ("quarantine", "bad_signature"),
        "unrouted": ("quarantine", "unrouted"),
        "poison": ("dead_letter", "poison"),
    }
    assert site.value("SELECT count(*) FROM payments WHERE order_id = :o", o=order["order_id"]) == 0


def _credit_is_known(site: Site, order: dict[str, Any]) -> bool:
    return bool(
        site.value(
            "SELECT count(*) FROM bank_credits WHERE bank_reference = :reference",
            reference=order["bank_reference"],
        )
    )


def _opens_dispute(site: Site, order: dict[str, Any]) -> str:
    dispute = fresh("dispute")
    site.shop.says(
        "dispute.opened",
        {"dispute_id": dispute, "order_id": order["order_id"], "reason": "it never came"},
    )
    site.shop.hears("dispute.accepted", dispute_id=dispute)
    return dispute


def _wait_for_empty_outbox(site: Site) -> None:
    wait_until(
        lambda: site.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0,
        what="all is published",
    )


def _paid_once(site: Site, withdrawal: str, settled: Received) -> None:
    """One instruction for the withdrawal, and the bank made it once."""
    transfers = site.rows(
        "SELECT t.end_to_end_id FROM transfers AS t JOIN withdrawals AS w USING (payout_id)"
        " WHERE w.withdrawal_id = :withdrawal",
        withdrawal=withdrawal,
    )
    assert [row.end_to_end_id for row in transfers] == [settled.data["end_to_end_id"]]
    assert site.bank.journal(settled.data["end_to_end_id"], "transfer_accepted") == 1


def _recorded(site: Site, body: bytes) -> list[Any]:
    return site.rows("SELECT kind, reason FROM recorded_messages WHERE body = :body", body=body)


def _heard(site: Site, type_: str, **data: Any) -> list[Received]:
    site.shop.has_heard(type_)
    return [
        event
        for event in site.shop.received
        if event.type == type_ and all(event.data.get(name) == value for name, value in data.items())
    ]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`steps` are those all of whose places it visits; `others` the places outside of steps."""

    tell: Callable[[Site, Begin], None]
    steps: tuple[str, ...]
    others: tuple[str, ...] = ()
    day_seconds: int = DAY_SECONDS


SCENARIOS = (
    Scenario(
        an_order_is_held_funded_and_released,
        ("receive_orders", "receive_bank_events", "match_credits", "hold_funds", "release_hold"),
        (
            "outbox: before publish",
            "outbox: confirmed",
            "batch: before acknowledge",
            "batch: acknowledged",
        ),
    ),
    Scenario(what_was_committed_is_left_over, (), ("relay: leased",)),
    Scenario(an_alarm_was_lost, ("sweep",), day_seconds=LONG_DAY_SECONDS),
    Scenario(
        a_seller_withdraws,
        (
            "receive_seller_events",
            "receive_withdrawals",
            "count_password",
            "decide_password",
            "send_transfer",
            "ask_transfer",
            "book_transfer",
        ),
        (
            "password: before check",
            "password: checked",
            "transfer: before bank",
            "transfer: bank answered",
        ),
    ),
    # Reporting is among the first things that a process does, so a slow machine needs a scenario with time.
    Scenario(a_withdrawal_has_cooled_off, ("resume_withdrawals", "report_disputes")),
    Scenario(
        a_payout_comes_back, ("ask_for_returns", "read_returns", "book_returns"), ("returns: bank answered",)
    ),
    Scenario(
        a_buyer_gets_the_money_back,
        ("receive_recourse", "send_refund", "ask_refund", "book_refund"),
        ("refund: before bank", "refund: bank answered"),
        day_seconds=LONG_DAY_SECONDS,
    ),
    Scenario(the_bank_takes_a_credit_back, ("settle_claims",)),
    Scenario(
        strangers_and_nonsense,
        ("record_messages",),
        (
            "quarantine: before publish",
            "quarantine: confirmed",
            "retry: before publish",
            "retry: confirmed",
        ),
    ),
)


def scenario_of(point: str) -> Scenario | None:
    """Return the scenario that visits a place, if there is one."""
    step = point.split(": ", 1)[0]
    for scenario in SCENARIOS:
        if step in scenario.steps or point in scenario.others:
            return scenario
    return None
