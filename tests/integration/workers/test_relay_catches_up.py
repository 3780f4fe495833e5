"""A relay that was away for a day."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs

from infra.postgres.outbox import delete_published
from infra.postgres.step import Steps
from infra.rabbitmq import topology
from infra.rabbitmq.outbox_publisher import OutboxPublisher
from infra.rabbitmq.publisher import Publisher
from schemas.commands import CollectReturns
from workers.relay.loops import publish_left_over

ROWS = 1_500  # More than the relay takes at once.


@contextmanager
def a_relay(database_url: str, broker_url: str) -> Iterator[Any]:
    """As much of a relay's process as publishing left-over commands takes."""
    topology.apply(broker_url, 1)
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    publisher = Publisher(broker_url)
    outbox = OutboxPublisher(
        engine, publisher, lambda: (_ for _ in ()).throw(AssertionError), timeout_seconds=30, day_seconds=1
    )
    try:
        yield SimpleNamespace(engine=engine, outbox=outbox)
    finally:
        publisher.close()
        engine.dispose()


def read_all(broker_url: str, queue: str, count: int) -> list[bytes]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    try:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=500)
        bodies = []
        for method, _, body in channel.consume(queue, inactivity_timeout=20):
            assert method is not None, f"{len(bodies)} of {count} came"
            channel.basic_ack(method.delivery_tag)
            bodies.append(body)
            if len(bodies) == count:
                return bodies
        raise AssertionError
    finally:
        connection.close()


def test_what_waited_for_a_day_is_published_once_and_in_order_of_age(
    database_url: str, broker_url: str
) -> None:
    with a_relay(database_url, broker_url) as relay:
        with relay.engine.begin() as connection:
            connection.execute(
                text("""
                    INSERT INTO outbox (queue, command, arguments, created_at, next_attempt_at)
                    SELECT 'escrow.hold', 'hold_funds', json_build_object('number', number), due, due
                    FROM generate_series(1, :rows) AS number,
                         LATERAL (SELECT clock_timestamp() - interval '1 day'
                                         + number * interval '50 seconds' AS due) AS times
                """),
                {"rows": ROWS},
            )
        published = 0
        while count := publish_left_over(relay):
            published += count
        assert published == ROWS
        numbers = [json.loads(body)["number"] for body in read_all(broker_url, "escrow.hold", ROWS)]
        assert numbers == list(range(1, ROWS + 1))
        with relay.engine.begin() as connection:
            assert delete_published(connection, retention_seconds=0, limit=ROWS + 1) == ROWS


@pytest.mark.parametrize("left_seconds", [-3_600, 4])
def test_an_alarm_that_waited_through_an_outage_rings_when_it_was_meant_to(
    database_url: str, broker_url: str, left_seconds: int
) -> None:
    """Not a whole delay after the outage: money would be withdrawable hours late."""
    delay = timedelta(days=5)
    with a_relay(database_url, broker_url) as relay:
        nobody_publishes = Steps(relay.engine, after_commit=lambda _rows: None, grace_seconds=0)
        with nobody_publishes.begin() as step:
            step.command("escrow.release", CollectReturns(), delay_ms=delay // timedelta(milliseconds=1))
        with relay.engine.begin() as connection:
            due = connection.execute(
                text("""
                    UPDATE outbox SET created_at = clock_timestamp() - :waited
                    WHERE published_at IS NULL RETURNING created_at + :delay
                """),
                {"waited": delay - timedelta(seconds=left_seconds), "delay": delay},
            ).scalar_one()
        assert publish_left_over(relay) == 1
        began = time.monotonic()
        read_all(broker_url, "escrow.release", 1)
        with relay.engine.begin() as connection:
            late = connection.execute(text("SELECT clock_timestamp() - :due"), {"due": due}).scalar_one()
    assert late >= timedelta(0), "early by any amount is early"
    # The lanes' whole second, and the load of the machine.
    assert time.monotonic() - began < max(0, left_seconds) + 10


def test_a_row_of_which_no_message_can_be_made_holds_up_no_other(database_url: str, broker_url: str) -> None:
    """Too long a delay, or events that nobody can sign; the oldest, so that it comes up in each round."""
    with a_relay(database_url, broker_url) as relay:
        with relay.engine.begin() as connection:
            connection.execute(
                text("""
                    INSERT INTO outbox (queue, command, arguments, delay_ms, created_at, next_attempt_at)
                    SELECT 'escrow.hold', 'hold_funds', '{}', delay,
                           clock_timestamp() + seconds * interval '1 second',
                           clock_timestamp() - interval '1 hour' + seconds * interval '1 second'
                    FROM (VALUES (31 * 86400000::bigint, 1), (0, 2)) AS row(delay, seconds)
                """)
            )
        with capture_logs() as logged:
            assert publish_left_over(relay) == 1
        assert len(read_all(broker_url, "escrow.hold", 1)) == 1
        assert [line["event"] for line in logged if line["log_level"] == "error"] == ["outbox_row_unsayable"]
        with relay.engine.begin() as connection:
            left = connection.execute(
                text("""
                    SELECT attempts, next_attempt_at > clock_timestamp() AS waits FROM outbox
                    WHERE published_at IS NULL
                """)
            ).one()
            connection.execute(text("DELETE FROM outbox"))
    assert (left.attempts, left.waits) == (1, True), "it is tried again, later each time"
