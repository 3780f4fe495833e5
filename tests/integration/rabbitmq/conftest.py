from collections.abc import Callable, Iterator

import pika
import pytest
from rabbitmq_support import DAY_SECONDS

from infra.rabbitmq import topology


@pytest.fixture(scope="module")
def applied_url(broker_url: str) -> str:
    """A vhost with the whole topology."""
    topology.apply(broker_url, DAY_SECONDS)
    return broker_url


@pytest.fixture
def url(applied_url: str) -> Iterator[str]:
    """A vhost with the whole topology and no message in it."""
    yield applied_url
    touched = False
    connection = pika.BlockingConnection(pika.URLParameters(applied_url))
    for queue in topology.topology(DAY_SECONDS).queues:
        channel = connection.channel()
        try:
            state = channel.queue_declare(queue.name, passive=True).method
        except pika.exceptions.ChannelClosedByBroker:
            touched = True
            continue
        if state.message_count or state.consumer_count:
            # Deleted, not purged: a dying connection may still hold some of its messages.
            channel.queue_delete(queue.name)
            touched = True
        channel.close()
    connection.close()
    if touched:
        topology.apply(applied_url, DAY_SECONDS)


@pytest.fixture
def fresh_url(make_vhost: Callable[[], str]) -> str:
    """A vhost without anything."""
    return make_vhost()
