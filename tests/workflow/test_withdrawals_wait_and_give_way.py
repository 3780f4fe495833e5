"""On real services: a withdrawal waits in a delay lane, two operators decide, and a flood holds up nobody."""

import time
from datetime import datetime

from workflow_support.outsider import Shop, fresh, order_data
from workflow_support.system import System

from infra.security.passwords import Passwords
from infra.settings import Settings

# Checking a flood takes the worker's threads this many seconds, and so many times as long as one withdrawal
# takes by itself, on a machine that is busy with other things.
FLOOD_SECONDS = 4.0
FLOOD_PER_WITHDRAWAL = 5
THREADS = 2


def length_of_a_flood(seconds: float) -> int:
    """Return how many checks take so long here; each costs what a wrong password costs."""
    defaults = {
        name: Settings.model_fields[f"argon2_{name}"].default for name in ("iterations", "parallelism")
    }
    memory_kib = Settings.model_fields["argon2_memory_kib"].default
    passwords = Passwords(memory_kib=memory_kib, **defaults)
    began = time.monotonic()
    for _ in range(5):
        passwords.verify(None, "incorrect horse")
    return min(1_000, int(seconds * THREADS / ((time.monotonic() - began) / 5)))


def a_seller(system: System, shop: Shop, amount: int = 10_000) -> str:
    """Enrol a seller to whom so much was released."""
    seller = fresh("s")
    order = order_data(splits={seller: amount})
    shop.says("order.paid", order)
    shop.hears("seller.accepted", event_id=shop.enrols(seller))
    shop.hears("hold.released", order_id=order["order_id"])
    return seller


def test_a_new_destination_cools_off_in_the_broker_and_then_pays_by_itself(system: System) -> None:
    shop = system.a_shop("--funding", "announced")
    seller = a_seller(system, shop)
    shop.hears("seller.accepted", event_id=shop.enrols(seller, destination_id="d-2"))
    withdrawal = shop.withdraws(seller, 4_000, destination_id="d-2")
    pending = shop.hears("withdrawal.pending", withdrawal_id=withdrawal, reason="cooling_off")
    assert system.balances(shop, seller) == {"held": 0, "available": 6_000, "in_payout": 4_000, "paid_out": 0}
    shop.hears("withdrawal.accepted", withdrawal_id=withdrawal)
    settled = shop.hears("payout.settled", withdrawal_id=withdrawal)
    accepted_at = system.holdfast_json("trace", "--shop", shop.id, "--withdrawal", withdrawal)["withdrawals"][
        0
    ]
    assert datetime.fromisoformat(accepted_at["decided_at"]) >= datetime.fromisoformat(pending.data["until"])
    assert system.accepted_by_bank(settled.data["end_to_end_id"]) == 1


def test_over_a_limit_two_operators_decide_and_the_relay_does_the_rest(system: System) -> None:
    shop = system.a_shop("--funding", "announced")
    seller = a_seller(system, shop)
    system.holdfast("shop", "limits", shop.id, "--currency", "CNY", "--per-day", "5000")
    approved, rejected = (shop.withdraws(seller, amount) for amount in (5_001, 4_999))
    shop.hears("withdrawal.pending", withdrawal_id=approved, reason="over_limit")
    # Below it, and not touched by the one that waits for people.
    shop.hears("payout.settled", withdrawal_id=rejected)
    for name in ("ada", "bob"):
        system.holdfast(
            "withdrawal", "approve", shop.id, approved, "--why", "known buyer", "--operator", name
        )
    shop.hears("withdrawal.accepted", withdrawal_id=approved)
    shop.hears("payout.settled", withdrawal_id=approved)
    assert system.balances(shop, seller)["paid_out"] == 10_000


def test_a_flood_of_password_checks_does_not_hold_up_others(system: System) -> None:
    """A seller of another shop is paid while the flood is still being checked."""
    flooding, other = (system.a_shop("--funding", "announced") for _ in range(2))
    seller = a_seller(system, other)
    began = time.monotonic()
    other.hears("payout.settled", withdrawal_id=other.withdraws(seller, 4_000))
    by_itself = time.monotonic() - began
    flood = length_of_a_flood(FLOOD_SECONDS + FLOOD_PER_WITHDRAWAL * by_itself)
    events = []
    for _ in range(flood):
        outside = {
            "withdrawal_id": fresh("w"),
            "seller_id": fresh("nobody"),
            "amount": 1,
            "currency": "CNY",
            "destination_id": "d-1",
        }
        event_id, data = flooding.seals(outside, password="incorrect horse")
        events.append(flooding.event("withdrawal.requested", data, event_id=event_id))
    for start in range(0, flood, 100):
        flooding.publish(flooding.message(*events[start : start + 100], batch=True))
    flooding.hears("withdrawal.rejected")
    other.hears("payout.settled", withdrawal_id=other.withdraws(seller, 4_000))
    answered = flooding.has_heard("withdrawal.rejected")
    assert answered < flood, "it was paid before the flood was through"
    flooding.hears_all(lambda event: event.data.get("reason") == "unknown_seller", flood)
