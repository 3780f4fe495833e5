"""Baseline: an actor that does nothing, on stock Dramatiq. What the framework costs by itself."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from progress import Progress

QUEUE = "stock.empty"

dramatiq.set_broker(RabbitmqBroker(url=os.environ["HOLDFAST_BROKER_URL"]))
progress = Progress()


@dramatiq.actor(queue_name=QUEUE)
def order_paid(_order: dict[str, object]) -> None:
    progress.one_more()
