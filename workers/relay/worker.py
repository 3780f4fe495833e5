"""`python -m workers.relay.worker`: what was left over, what is overdue, and what could not be processed."""

import sys
from collections.abc import Sequence

from infra.postgres.quarantine_bounds import Bounds
from infra.rabbitmq.messages import Delivery, dead_letter_queue
from infra.rabbitmq.topology import ORPHANS_QUEUE, QUARANTINE_QUEUE, WORK_QUEUES
from workers.process import WorkerProcess, run_worker
from workers.relay.loops import build_loops
from workers.relay.recorder import record


def _declare(process: WorkerProcess) -> None:
    settings = process.settings
    bounds = Bounds(
        settings.quarantine_max_records,
        settings.quarantine_max_bytes,
        settings.quarantine_max_records_per_sender,
        settings.quarantine_max_bytes_per_sender,
    )

    def record_all(deliveries: Sequence[Delivery]) -> None:
        record(process.steps, deliveries, bounds)

    for queue in (QUARANTINE_QUEUE, ORPHANS_QUEUE, *map(dead_letter_queue, WORK_QUEUES)):
        process.broker.declare_batch_actor(
            queue_name=queue, actor_name=f"record:{queue}", handle=record_all, external=True
        )


if __name__ == "__main__":
    sys.exit(run_worker("relay", _declare, loops=build_loops))
