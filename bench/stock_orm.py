"""
Baseline: the obvious way on stock Dramatiq. One message, one SQLAlchemy ORM transaction.

With a period, each hold is released by a message that Dramatiq delays, as its guide says.
"""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from obvious_books import PERIOD_SECONDS, book, release
from progress import Progress

QUEUE = "stock.orm"

dramatiq.set_broker(RabbitmqBroker(url=os.environ["HOLDFAST_BROKER_URL"]))
progress = Progress()


@dramatiq.actor(queue_name=QUEUE)
def order_paid(order: dict[str, object]) -> None:
    hold_ids = book(order)
    if PERIOD_SECONDS:
        for hold_id in hold_ids:
            release_hold.send_with_options(args=(hold_id,), delay=PERIOD_SECONDS * 1000)
    else:
        progress.one_more()


@dramatiq.actor(queue_name=QUEUE)
def release_hold(hold_id: int) -> None:
    release(hold_id)
    progress.one_more()
