"""A stranger's flood fills neither the disk nor the room of others, and is not passed over in silence."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs
from workflow_support.desk import database_engine
from workflow_support.events import fresh

from infra.postgres.quarantine_bounds import Bounds
from infra.postgres.step import Steps
from infra.rabbitmq.messages import Delivery
from infra.rabbitmq.topology import QUARANTINE_QUEUE
from workers.relay.recorder import record

BOUNDS = Bounds(records=5, bytes=100_000, records_per_sender=3, bytes_per_sender=50_000)


@pytest.fixture
def books(database_url: str) -> Iterator[Engine]:
    with database_engine(database_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM recorded_messages"))
            connection.execute(text("DELETE FROM quarantine_overflow"))
            for shop in ("acme", "other"):
                connection.execute(
                    text("""
                        INSERT INTO shops (shop_id, protection_days, funding, fee_bps)
                        VALUES (:shop, 3, 'confirmed', 0) ON CONFLICT DO NOTHING
                    """),
                    {"shop": shop},
                )
        yield engine


def a_delivery(source: str, *, padding: int = 0, queue: str = QUARANTINE_QUEUE) -> Delivery:
    body = json.dumps({"source": source, "id": fresh("e"), "padding": "x" * padding}).encode()
    return Delivery(
        queue_name=queue,
        exchange="holdfast.inbound",
        body=body,
        routing_key="order.paid",
        headers={"holdfast-reason": "no_valid_signature", "holdfast-queue": "payment.intake"},
    )


def recorded(engine: Engine, *deliveries: Delivery) -> list[Any]:
    steps = Steps(engine, after_commit=lambda _rows: None, grace_seconds=1.0)
    with capture_logs() as logged:
        record(steps, deliveries, BOUNDS)
    return [line for line in logged if line["event"] == "quarantine_full"]


def kept(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            row.sender: row.records
            for row in connection.execute(
                text("SELECT sender, count(*) AS records FROM recorded_messages GROUP BY sender")
            )
        }


def counted(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            row.sender: row.messages
            for row in connection.execute(text("SELECT sender, messages FROM quarantine_overflow"))
        }


def test_a_strangers_flood_leaves_room_for_the_mistakes_of_shops(books: Engine) -> None:
    flood = [a_delivery(f"/shops/made-up-{number}") for number in range(50)]
    alarms = recorded(books, *flood)
    assert recorded(books, a_delivery("/shops/acme"), a_delivery("/shops/other")) == []
    assert kept(books) == {"": 3, "shops/acme": 1, "shops/other": 1}
    assert counted(books) == {"": 47}
    assert [(line["log_level"], line["bound"], line["counted"]) for line in alarms] == [
        ("error", "sender", 47)
    ]


def test_what_comes_when_everything_is_full_is_counted_by_sender_and_reason(books: Engine) -> None:
    for source in ("/shops/acme", "/shops/other"):
        recorded(books, *[a_delivery(source) for _ in range(3)])
    assert sum(kept(books).values()) == 5
    [alarm] = recorded(books, a_delivery("/banks/none"))
    assert (alarm["bound"], alarm["sender"]) == ("all", "")
    assert counted(books) == {"shops/other": 1, "": 1}


def test_bytes_are_bounded_as_well_as_numbers(books: Engine) -> None:
    recorded(books, a_delivery("/shops/acme", padding=40_000), a_delivery("/shops/acme", padding=40_000))
    assert kept(books) == {"shops/acme": 1}
    assert counted(books) == {"shops/acme": 1}


def test_the_same_message_again_takes_no_room_and_what_is_discarded_makes_room(books: Engine) -> None:
    same = a_delivery("/shops/acme")
    for _ in range(5):
        assert recorded(books, same) == []
    recorded(books, *[a_delivery("/shops/acme") for _ in range(2)])
    assert recorded(books, a_delivery("/shops/acme"))
    with books.begin() as connection:
        connection.execute(
            text("UPDATE recorded_messages SET state = 'discarded', closed_at = clock_timestamp()")
        )
    assert recorded(books, a_delivery("/shops/acme")) == []


def test_dead_letters_are_never_let_go(books: Engine) -> None:
    """They were authentic, or are our own commands: money may hang on them."""
    letters = [a_delivery("/shops/acme", queue="payment.intake.XQ") for _ in range(20)]
    assert recorded(books, *letters) == []
    assert kept(books) == {"shops/acme": 20}
