"""What an older release, or a shop's older program, left in the queues is carried out after an update."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from workflow_support.outsider import Amqp, Message, fresh, now
from workflow_support.system import System

RELEASES = sorted((Path(__file__).parents[1] / "integration" / "changing").glob("release_*"))


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_an_old_event_and_an_old_command_that_waited_in_their_queues_are_carried_out(
    system: System, release: Path
) -> None:
    old = json.loads((release / "messages.json").read_text())
    shop = system.a_shop("--funding", "announced")
    payment, escrow = system.processes["payment"], system.processes["escrow"]
    assert (payment.stop(), escrow.stop()) == (0, 0)

    event: dict[str, Any] = next(e["event"] for e in old["events"] if e["event"]["type"] == "order.paid")
    event["data"] |= {"order_id": fresh("o"), "bank_reference": fresh("REF"), "paid_at": now()}
    shop.publish(shop.message(event | {"id": fresh("e"), "source": f"/shops/{shop.id}"}))
    payment.start()
    payment_id = _payment_of(system, event["data"]["order_id"])

    command: dict[str, Any] = next(c for c in old["commands"] if c["type"] == "hold_funds")
    body = command["body"] | {"payment_ids": [payment_id]}
    outside = Amqp(system.broker_url)
    # As the older release sent it: this body, and no headers.
    message = Message(
        json.dumps(body).encode(), "escrow.hold", {}, "application/json", {"type": command["type"]}
    )
    outside.publish(message, exchange="holdfast.deliver")
    outside.close()
    escrow.start()
    shop.hears("order.held", order_id=event["data"]["order_id"])
    shop.hears_all(lambda told: told.type == "hold.released", len(event["data"]["splits"]))
    for process in (payment, escrow):
        process.wait_until_ready()
    assert _dead_letters_about(system, payment_id, event["data"]["order_id"]) == []
    assert system.broken_promises() == []


def _payment_of(system: System, order_id: str) -> str:
    """Wait until the order is booked; return its payment's id."""
    with psycopg.connect(system.environment["HOLDFAST_DATABASE_URL"], autocommit=True) as connection:
        while True:
            rows = connection.execute(
                "SELECT payment_id FROM payments WHERE order_id = %s", (order_id,)
            ).fetchall()
            if rows:
                return str(rows[0][0])
            connection.execute("SELECT pg_sleep(0.05)")


def _dead_letters_about(system: System, *ids: str) -> list[Any]:
    with psycopg.connect(system.environment["HOLDFAST_DATABASE_URL"]) as connection:
        return connection.execute(
            "SELECT queue, reason, detail FROM recorded_messages"
            " WHERE kind = 'dead_letter' AND convert_from(body, 'LATIN1') LIKE ANY(%s)",
            ([f"%{id_}%" for id_ in ids],),
        ).fetchall()
