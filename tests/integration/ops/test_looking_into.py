"""Balances, traces and events of what has happened."""

import json
from datetime import UTC, datetime

import pytest
from broker_access import channel, take_all
from command_runs import Holdfast
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from workflow_support.desk import Desk
from workflow_support.events import (
    WRONG_PASSWORD,
    bank_credited,
    credit_data,
    dispute_opened,
    dispute_resolved,
    fresh,
    order_data,
    order_paid,
)

from infra.postgres.ledger_store import seal_postings
from infra.security.own_keys import decode_base64url
from infra.security.signatures import Scheme, VerifyingKey, verify


@pytest.fixture
def set_up(holdfast: Holdfast) -> Holdfast:
    for arguments in (("migrate",), ("topology", "apply")):
        assert holdfast(*arguments).exit_code == 0
    return holdfast


def test_balances_follow_the_money_through_sealing_and_payout(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop(fee_bps=100)
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=10_000)
    desk.shop_says(order_paid(shop, order_data(splits={seller: 500, "s-other": 250}, currency="CNY")))
    desk.seller_withdraws(platform.withdraws(seller, 4_000))
    expected = {"held": 500, "available": 5_900, "in_payout": 0, "paid_out": 4_000}
    one = ("balances", "--shop", shop, "--seller", seller, "--json")
    assert set_up(*one).json == {"shop": shop, "seller": seller, "balances": {"CNY": expected}}
    with desk.engine.begin() as connection:
        seal_postings(connection)
    everyone = {entry["seller"]: entry for entry in set_up("balances", "--shop", shop, "--json").json}
    assert everyone == {
        seller: {"shop": shop, "seller": seller, "balances": {"CNY": expected}},
        "s-other": {
            "shop": shop,
            "seller": "s-other",
            "balances": {"CNY": {"held": 250, "available": 0, "in_payout": 0, "paid_out": 0}},
        },
    }
    assert "59.00 CNY" in set_up("balances", "--shop", shop).out


def test_a_seller_who_enrolled_and_earned_nothing_is_known(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    seller = desk.a_seller(desk.platform(shop))
    ran = set_up("balances", "--shop", shop, "--seller", seller, "--json")
    assert (ran.exit_code, ran.json) == (0, {"shop": shop, "seller": seller, "balances": {}})


def test_a_trace_tells_an_orders_whole_life_in_order(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order = desk.released_order(shop, splits={"s-1": 700, "s-2": 300})
    desk.shop_says(order_paid(shop, order | {"buyer_id": "somebody else"}))
    ran = set_up("trace", "--shop", shop, "--order", order["order_id"], "--json")
    assert ran.exit_code == 0
    assert ran.json["payments"][0]["state"] == "received"
    assert {hold["state"] for hold in ran.json["holds"]} == {"released"}
    assert sorted(entry["kind"] for entry in ran.json["entries"]) == [
        "held",
        "held",
        "payment_funded",
        "payment_received",
        "released",
        "released",
    ]
    assert sorted(event["type"] for event in ran.json["events"]) == [
        "hold.released",
        "hold.released",
        "order.funded",
        "order.held",
        "order.rejected",
    ]
    # The conflicting duplicate came as a message of its own.
    assert [message["type"] for message in ran.json["messages"]] == ["order.paid", "order.paid"]
    times = [line["at"] for line in ran.json["timeline"]]
    assert times == sorted(times)
    shown = set_up("trace", "--shop", shop, "--order", order["order_id"]).out
    assert "released to s-1" in shown
    assert "7.00 CNY" in shown


def test_a_trace_tells_of_recourse_and_of_credits_that_do_not_fit(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order, dispute = order_data(splits={"s-1": 700}), fresh("d")
    desk.shop_says(order_paid(shop, order))
    desk.bank_says(bank_credited(credit_data(order, amount=699)), bank_credited(credit_data(order)))
    desk.buyers_ask(dispute_opened(shop, order, dispute_id=dispute))
    desk.buyers_ask(dispute_resolved(shop, dispute, {"s-1": 200}))
    traced = set_up("trace", "--shop", shop, "--order", order["order_id"], "--json").json
    fits = {credit["amount_minor"]: credit["payment_id"] is not None for credit in traced["bank_credits"]}
    assert fits == {699: False, 700: True}
    assert traced["disputes"][0]["state"] == "resolved"
    assert traced["refunds"][0]["amount_minor"] == 200
    assert {"hold.frozen", "hold.unfrozen", "hold.refunded", "dispute.accepted"} <= {
        event["type"] for event in traced["events"]
    }
    assert "refund_reserved" in {entry["kind"] for entry in traced["entries"]}


def test_an_order_that_was_never_booked_is_traced_by_its_refusal(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    order = order_data(protection_days=2)
    desk.shop_says(order_paid(shop, order))
    traced = set_up("trace", "--shop", shop, "--order", order["order_id"], "--json").json
    assert traced["payments"] == []
    assert [event["data"]["reason"] for event in traced["events"]] == ["invalid_data"]


def test_a_trace_of_a_withdrawal_shows_no_secret(set_up: Holdfast, desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    seller = desk.a_seller(platform, available=1_000)
    for id_, password in (("w-right", {}), ("w-wrong", {"password": WRONG_PASSWORD})):
        desk.seller_withdraws(platform.withdraws(seller, 600, withdrawal_id=id_, **password))
    right = set_up("trace", "--shop", shop, "--withdrawal", "w-right", "--json")
    assert right.json["transfers"][0]["state"] == "settled"
    assert {event["type"] for event in right.json["events"]} == {
        "withdrawal.accepted",
        "payout.submitted",
        "payout.settled",
    }
    assert right.json["withdrawals"][0]["destination"].endswith("3000")
    assert "DE89370400440532013000" not in right.out
    assert "sealed" not in right.out
    wrong = set_up("trace", "--shop", shop, "--withdrawal", "w-wrong", "--json").json
    assert wrong["withdrawals"][0]["reason"] == "wrong_password"
    assert wrong["entries"] == []


def test_replayed_events_keep_their_ids_and_verify(set_up: Holdfast, desk: Desk, broker_url: str) -> None:
    shop = desk.a_shop()
    start = datetime.now(UTC).isoformat()
    assert set_up("shop", "add", shop).exit_code == 0
    desk.told.clear()
    desk.released_order(shop, splits={"s-1": 700, "s-2": 300})
    replay = ("events", "replay", "--shop", shop, "--since", start)
    assert set_up(*replay, "--dry-run", "--json").json["published"] == 0
    assert take_all(broker_url, f"events.{shop}") == []
    done = set_up(*replay, "--why", "lost their queue", "--json").json
    assert (done["events"], done["published"]) == (4, 4)
    messages = take_all(broker_url, f"events.{shop}")
    jwk = next(key for key in set_up("keys", "public", "--json").json["keys"] if key["use"] == "sig")
    raw = decode_base64url(jwk["x"])
    Ed25519PublicKey.from_public_bytes(raw)
    ids: set[str] = set()
    for method, properties, body in messages:
        verify(
            body=body,
            headers=properties.headers,
            keys=[VerifyingKey("ours", Scheme.ED25519, frozenset(), raw)],
            now=datetime.now(UTC),
            max_age_s=60,
            max_ahead_s=60,
            scope=None,
        )
        content = json.loads(body)
        events = content if isinstance(content, list) else [content]
        assert {f"{shop}.{event['type']}" for event in events} == {method.routing_key}
        ids |= {event["id"] for event in events}
    assert ids == {str(told.event_id) for told in desk.told}


def test_a_shop_without_its_queue_stops_the_replay_and_says_so(
    set_up: Holdfast, desk: Desk, broker_url: str
) -> None:
    shop = desk.a_shop()
    start = datetime.now(UTC).isoformat()
    desk.shop_says(order_paid(shop, order_data()))
    ran = set_up("events", "replay", "--shop", shop, "--since", start)
    assert ran.exit_code == 1
    assert f"events.{shop} is missing" in ran.err
    with channel(broker_url) as open_channel:
        assert open_channel.is_open


def test_what_a_command_prints_as_json_is_one_document(set_up: Holdfast) -> None:
    for arguments in (("shop", "list"), ("audit",), ("keys", "public"), ("quarantine", "list")):
        json.loads(set_up(*arguments, "--json").out)
