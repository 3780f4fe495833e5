"""What somebody who has seen a shop's messages, or has a key of another shop, can do with them: nothing."""

import base64
import json
import time
from dataclasses import replace

import psycopg
import pytest
from workflow_support.outsider import BATCH, Amqp, Shop, order_data, signed
from workflow_support.system import System

PATIENCE_SECONDS = 30.0
REVOKED_EVERYWHERE_SECONDS = 1.0


@pytest.fixture(scope="module")
def shop(system: System) -> Shop:
    return system.a_shop("--funding", "announced", days=7)


def reason_for(system: System, body: bytes) -> str:
    """Wait until a message is recorded in quarantine; return why."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(system.environment["HOLDFAST_DATABASE_URL"], autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT reason FROM recorded_messages WHERE body = %s AND kind = 'quarantine'", [body]
            ).fetchone()
            if row is not None:
                return str(row[0])
            time.sleep(0.05)
    raise AssertionError("it did not come into quarantine")


def test_the_key_of_one_shop_signs_no_order_of_another(system: System, shop: Shop) -> None:
    thief = system.a_shop()
    message = thief.message(shop.event("order.paid", order_data()))
    thief.publish(message)
    assert reason_for(system, message.body) == "bad_signature"


def test_a_signature_moved_under_another_id_is_refused(system: System, shop: Shop) -> None:
    message = shop.message(shop.event("order.paid", order_data()))
    moved = replace(message, headers=message.headers | {"webhook-id": "another"})
    shop.publish(moved)
    assert reason_for(system, message.body) == "bad_signature"
    relabelled = replace(
        message,
        body=message.body.replace(json.loads(message.body)["id"].encode(), b"another-id"),
    )
    shop.publish(relabelled)
    assert reason_for(system, relabelled.body) == "bad_signature"


def test_a_body_signed_under_an_id_that_is_not_the_events_is_refused(system: System, shop: Shop) -> None:
    message = shop.message(shop.event("order.paid", order_data()))
    other = replace(message, headers=signed(shop.key, "not-the-events-id", message.body))
    shop.publish(other)
    assert reason_for(system, other.body) == "webhook_id_mismatch"


def test_a_replay_after_the_window_is_refused(system: System, shop: Shop) -> None:
    message = shop.message(shop.event("order.paid", order_data()))
    month_ago = int(time.time()) - 30 * 86_400 - 60
    event_id = json.loads(message.body)["id"]
    stale = replace(message, headers=signed(shop.key, event_id, message.body, at=month_ago))
    shop.publish(stale)
    assert reason_for(system, stale.body) == "stale_timestamp"


@pytest.mark.parametrize("queue", ["payment.bank", "payout.withdrawal", "escrow.dispute", "payout.seller"])
def test_a_replay_on_another_queue_has_no_second_effect(system: System, shop: Shop, queue: str) -> None:
    """Written past the exchange, under its own routing key or the queue's."""
    order = order_data()
    message = shop.message(shop.event("order.paid", order))
    shop.publish(message)
    shop.hears("order.held", order_id=order["order_id"])
    outsider = Amqp(system.broker_url)
    try:
        outsider.publish(replace(message, routing_key=queue), exchange="")
    finally:
        outsider.close()
    assert reason_for(system, message.body) == "routing_key_mismatch"
    assert shop.has_heard("order.held", order_id=order["order_id"]) == 1


def test_one_event_taken_out_of_a_signed_batch_is_not_signed(system: System, shop: Shop) -> None:
    batch = shop.message(*(shop.event("order.paid", order_data()) for _ in range(2)), batch=True)
    assert batch.content_type == BATCH
    first = json.loads(batch.body)[0]
    body = json.dumps([first]).encode()
    shop.publish(replace(batch, body=body))
    assert reason_for(system, body) == "bad_signature"


def test_a_revocation_is_in_effect_on_a_busy_worker_within_a_second(system: System) -> None:
    shop = system.a_shop()
    [key] = system.holdfast_json("shop", "key", "list", shop.id)
    accepted = []
    for _ in range(20):  # the key is in the workers' memory, and read again and again
        order = order_data()
        shop.says("order.paid", order)
        accepted.append(order["order_id"])
        shop.hears("order.held", order_id=order["order_id"])
    system.holdfast("shop", "key", "revoke", shop.id, key["key_id"])
    revoked = time.monotonic()
    while time.monotonic() < revoked + REVOKED_EVERYWHERE_SECONDS:
        shop.says("order.paid", order_data())  # whatever becomes of these
        time.sleep(0.02)
    late = [shop.message(shop.event("order.paid", order_data())) for _ in range(20)]
    shop.publish(*late)
    assert {reason_for(system, message.body) for message in late} == {"bad_signature"}


def test_a_suspension_is_in_effect_within_a_second_and_a_resumption_too(system: System) -> None:
    shop = system.a_shop()
    before = order_data()
    shop.says("order.paid", before)
    shop.hears("order.held", order_id=before["order_id"])
    system.holdfast("shop", "suspend", shop.id, "--why", "a test")
    time.sleep(REVOKED_EVERYWHERE_SECONDS)
    refused, taken = order_data(), order_data()
    shop.says("order.paid", refused)
    shop.hears("order.rejected", order_id=refused["order_id"], reason="shop_suspended")
    system.holdfast("shop", "resume", shop.id, "--why", "a test")
    time.sleep(REVOKED_EVERYWHERE_SECONDS)
    shop.says("order.paid", taken)
    shop.hears("order.held", order_id=taken["order_id"])


def test_a_short_list_of_bad_signatures_is_refused_cleanly(system: System, shop: Shop) -> None:
    good = shop.message(shop.event("order.paid", order_data()))
    value = good.headers["webhook-signature"]
    raw = base64.b64decode(value.split(",")[1])
    spoilt = [
        "",
        "v1a",
        "v1a,",
        f"v2,{value.split(',')[1]}",
        value.replace("v1a", "v1"),
        value.replace("v1a", "V1A"),
        value.replace(",", ", "),
        value.rstrip("=") + "!",
        "v1a," + base64.urlsafe_b64encode(raw).decode().rstrip("="),
        "v1a," + base64.b64encode(bytes(64)).decode(),
        "v1a," + base64.b64encode(raw[:63]).decode(),
        "v1," + base64.b64encode(bytes(32)).decode(),
    ]
    sent = []
    for header in spoilt:
        message = shop.message(shop.event("order.paid", order_data()))
        sent.append(replace(message, headers=message.headers | {"webhook-signature": header}))
    shop.publish(*sent)
    assert {reason_for(system, message.body) for message in sent} == {"bad_signature"}
    # And one right one among them is enough.
    last = shop.message(shop.event("order.paid", order := order_data()))
    among = f"v9,AAAA v1,{base64.b64encode(bytes(32)).decode()}  {last.headers['webhook-signature']}"
    shop.publish(replace(last, headers=last.headers | {"webhook-signature": among}))
    shop.hears("order.held", order_id=order["order_id"])
