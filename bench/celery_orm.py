"""
Baseline: the same job on Celery, with quorum queues and the delivery that Celery lets RabbitMQ delay.

Acknowledged late, published with confirms: the settings under which Celery loses nothing either.
"""

import os

from celery import Celery
from obvious_books import PERIOD_SECONDS, book, release
from progress import Progress

app = Celery("celery_orm", broker=os.environ["HOLDFAST_BROKER_URL"].replace("amqp://", "pyamqp://", 1))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_native_delayed_delivery_queue_type="quorum",
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_default_exchange_type="topic",
    task_default_queue_type="quorum",
    task_ignore_result=True,
    worker_detect_quorum_queues=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=16,
)
progress = Progress()


@app.task(name="order_paid")
def order_paid(order: dict[str, object]) -> None:
    hold_ids = book(order)
    for hold_id in hold_ids if PERIOD_SECONDS else ():
        release_hold.apply_async((hold_id,), countdown=PERIOD_SECONDS)
    if not PERIOD_SECONDS:
        progress.one_more()


@app.task(name="release_hold")
def release_hold(hold_id: int) -> None:
    release(hold_id)
    progress.one_more()
