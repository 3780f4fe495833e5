"""
Baseline: an actor that does nothing, on stock Dramatiq. What the framework costs by itself.

Stock Dramatiq declares classic queues, which is the faster kind for it and the one that counts. With a
quorum queue, the kind that Holdfast uses and that survives the loss of a broker node, it stands beside.
"""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from progress import Progress

QUEUE = "stock.empty"


class ChosenQueues(RabbitmqBroker):
    """Stock, but for the kind of queue."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call] # stock's own
        return {**arguments, "x-queue-type": os.environ["HOLDFAST_BENCH_QUEUE_TYPE"]}


dramatiq.set_broker(ChosenQueues(url=os.environ["HOLDFAST_BROKER_URL"]))
progress = Progress()


@dramatiq.actor(queue_name=QUEUE)
def order_paid(_order: dict[str, object]) -> None:
    progress.one_more()
