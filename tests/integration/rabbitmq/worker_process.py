"""A worker process for the supervisor's tests: `worker_process.py URL SECONDS_A_BATCH [WHAT_GOES_WRONG]`."""

import sys
import threading
import time
from collections.abc import Sequence

from infra.rabbitmq import supervisor
from infra.rabbitmq.broker import HoldfastBroker
from infra.rabbitmq.messages import Delivery, Failure
from infra.rabbitmq.publisher import Publisher

url, seconds, wrong = sys.argv[1], float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def handle(deliveries: Sequence[Delivery]) -> None:
    say(f"begun {len(deliveries)}")
    time.sleep(seconds)
    if wrong == "thread":
        raise SystemExit
    say(f"done {len(deliveries)}")


def classify(_error: BaseException) -> Failure:
    return Failure.RETRY


def await_recovery(stopping: threading.Event) -> None:
    if wrong == "database":
        say("waiting")
        stopping.wait()


publisher = Publisher(url)
broker = HoldfastBroker(url, publisher=publisher, classify=classify, await_recovery=await_recovery)
broker.declare_batch_actor(queue_name="escrow.hold", actor_name="hold_funds", handle=handle, external=False)
if wrong == "worker":
    import dramatiq.worker

    def die(_self: object, _message: object) -> None:
        raise RuntimeError("a thread that ends where nothing catches it")

    dramatiq.worker.WorkerThread.process_message = die
if wrong == "consumer":
    import dramatiq.worker

    def end(_self: object) -> None:
        return

    dramatiq.worker.ConsumerThread.run = end
code = supervisor.run(broker, threads=2, drain_seconds=2.0)
publisher.close()
sys.exit(code)
