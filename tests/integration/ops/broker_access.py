"""Look into queues as a shop or an operator would, over plain AMQP."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika


@contextmanager
def channel(broker_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def take_all(broker_url: str, queue: str) -> list[tuple[Any, Any, bytes]]:
    """Take every message that waits: method, properties, body."""
    taken = []
    with channel(broker_url) as open_channel:
        while True:
            method, properties, body = open_channel.basic_get(queue, auto_ack=True)
            if method is None:
                return taken
            taken.append((method, properties, body))
