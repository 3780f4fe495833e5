"""A relay that was away for a day."""

import json
from types import SimpleNamespace
from typing import Any

import pika
from sqlalchemy import create_engine, text

from infra.postgres.outbox import delete_published
from infra.rabbitmq import topology
from infra.rabbitmq.outbox_publisher import OutboxPublisher
from infra.rabbitmq.publisher import Publisher
from workers.relay.loops import publish_left_over

ROWS = 1_500  # More than the relay takes at once.


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
    topology.apply(broker_url, 1)
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    publisher = Publisher(broker_url)
    outbox = OutboxPublisher(
        engine, publisher, lambda: (_ for _ in ()).throw(AssertionError), timeout_seconds=30, day_seconds=1
    )
    process: Any = SimpleNamespace(engine=engine, outbox=outbox)
    try:
        with engine.begin() as connection:
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
        while count := publish_left_over(process):
            published += count
        assert published == ROWS
        numbers = [json.loads(body)["number"] for body in read_all(broker_url, "escrow.hold", ROWS)]
        assert numbers == list(range(1, ROWS + 1))
        with engine.begin() as connection:
            assert delete_published(connection, retention_seconds=0, limit=ROWS + 1) == ROWS
    finally:
        publisher.close()
        engine.dispose()
