"""The baselines, each at its best settings: an empty actor and the obvious way, on three frameworks."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import dramatiq
import pika
import pika.exceptions
from dbos import DBOSClient
from drain import Drained, MeasurementFailed, Workers, drain, publish_all, started, wait_for_files
from orders import CURRENCY, Order, make_orders, seller_names
from progress import FOLDER_VARIABLE, read_progress
from servers import Servers

from infra.rabbitmq.messages import DEFAULT_EXCHANGE, Outgoing

_BENCH = Path(__file__).parent
_PROGRAMS = Path(sys.prefix) / "bin"
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
# What an order waits for before it is released, wherever a whole life is measured.
PERIOD_SECONDS = 3
_PERIOD_VARIABLE = "HOLDFAST_BENCH_PERIOD_SECONDS"
WARM_UP_ORDERS = 400


@dataclass(frozen=True, slots=True)
class Baseline:
    """What all baselines have in common; `releases` means that a whole life is measured."""

    name: str
    processes: int
    threads: int
    sellers: int = 10_000
    releases: bool = False

    @contextmanager
    def prepared(self, servers: Servers) -> Iterator[tuple[dict[str, str], Path]]:
        """Yield the environment of its workers, on a vhost and in a database that nobody has used."""
        with ExitStack() as leaving:
            progress = servers.folder / f"progress-{secrets.token_hex(4)}"
            progress.mkdir()
            yield (
                {
                    **clean_environment(),
                    "HOLDFAST_BROKER_URL": leaving.enter_context(servers.vhost()),
                    "HOLDFAST_DATABASE_URL": leaving.enter_context(servers.database()),
                    FOLDER_VARIABLE: str(progress),
                    **({_PERIOD_VARIABLE: str(PERIOD_SECONDS)} if self.releases else {}),
                },
                progress,
            )

    def create_tables(self, environment: Mapping[str, str]) -> None:
        subprocess.run(
            [sys.executable, str(_BENCH / "obvious_books.py")],
            input=json.dumps({"sellers": seller_names(self.sellers), "currency": CURRENCY}),
            text=True,
            env=environment,
            check=True,
        )

    def drained(
        self,
        servers: Servers,
        workers: Workers,
        fill: Callable[[Sequence[Order]], None],
        progress: Path,
        orders: int,
    ) -> Drained:
        made = make_orders(WARM_UP_ORDERS + orders, sellers=self.sellers)
        return drain(
            workers,
            fill=fill,
            warm_up=made[:WARM_UP_ORDERS],
            orders=made[WARM_UP_ORDERS:],
            done=lambda: read_progress(progress)[0],
            ended_at=lambda: read_progress(progress)[1],
            servers=servers,
            waiting_seconds=PERIOD_SECONDS if self.releases else 0,
        )


@dataclass(frozen=True, slots=True)
class Stock(Baseline):
    """An actor on stock Dramatiq, run by its own command line."""

    module: str = ""
    queue: str = ""
    prefetch: int = 1
    queue_type: str = "classic"

    def measure(self, servers: Servers, orders: int) -> Drained:
        with self.prepared(servers) as (environment, progress):
            environment["HOLDFAST_BENCH_QUEUE_TYPE"] = self.queue_type
            environment["dramatiq_queue_prefetch"] = str(self.prefetch)
            if self.module == "stock_orm":
                self.create_tables(environment)
            command = [
                str(_PROGRAMS / "dramatiq"),
                self.module,
                *("--path", str(_BENCH)),
                *("--processes", str(self.processes)),
                *("--threads", str(self.threads)),
            ]
            with started(
                [command], environments=[environment], log=servers.folder / "stock.log", folder=_BENCH
            ) as workers:
                broker_url = environment["HOLDFAST_BROKER_URL"]
                wait_for_consumers(broker_url, self.queue, self.processes, workers)
                return self.drained(
                    servers,
                    workers,
                    lambda made: publish_all(broker_url, self._messages(made)),
                    progress,
                    orders,
                )

    def _messages(self, orders: Sequence[Order]) -> list[Outgoing]:
        messages = []
        for order in orders:
            message: dramatiq.Message[None] = dramatiq.Message(self.queue, "order_paid", (order,), {}, {})
            messages.append(Outgoing(DEFAULT_EXCHANGE, self.queue, message.encode()))
        return messages


@dataclass(frozen=True, slots=True)
class OnCelery(Baseline):
    """The obvious way as Celery tasks."""

    def measure(self, servers: Servers, orders: int) -> Drained:
        with self.prepared(servers) as (environment, progress):
            self.create_tables(environment)
            command = [
                str(_PROGRAMS / "celery"),
                *("--app", "celery_orm", "--workdir", str(_BENCH)),
                *("worker", "--pool", "prefork", "--concurrency", str(self.processes)),
                *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
            ]
            with started(
                [command], environments=[environment], log=servers.folder / "celery.log", folder=_BENCH
            ) as workers:
                wait_for_consumers(environment["HOLDFAST_BROKER_URL"], "celery", 1, workers)
                return self.drained(servers, workers, lambda made: _send(environment, made), progress, orders)


_SEND = """
import json, sys
from celery_orm import order_paid
for order in json.load(sys.stdin):
    order_paid.apply_async((order,))
"""


def _send(environment: Mapping[str, str], orders: Sequence[Order]) -> None:
    """Let Celery itself publish, in a process of its own, since its settings are read at import."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            _SEND,
        ],
        input=json.dumps(orders),
        text=True,
        env=dict(environment),
        cwd=_BENCH,
        check=True,
    )


@dataclass(frozen=True, slots=True)
class OnDbos(Baseline):
    """The obvious way as DBOS workflows; PostgreSQL is its queue."""

    def measure(self, servers: Servers, orders: int) -> Drained:
        with self.prepared(servers) as (environment, progress):
            self.create_tables(environment)
            ready = [servers.folder / f"ready-{uuid4()}" for _ in range(self.processes)]
            environments = []
            for number, path in enumerate(ready):
                environments.append(
                    {**environment, "HOLDFAST_READY_FILE": str(path), "DBOS__VMID": f"bench-{number}"}
                )
            commands = [[sys.executable, str(_BENCH / "dbos_orm.py")]] * self.processes
            with started(
                commands, environments=environments, log=servers.folder / "dbos.log", folder=_BENCH
            ) as workers:
                wait_for_files(ready, workers)
                client = DBOSClient(
                    system_database_url="postgresql+psycopg://"
                    + environment["HOLDFAST_DATABASE_URL"].split("://", 1)[1]
                )

                def fill(made: Sequence[Order]) -> None:
                    for order in made:
                        client.enqueue({"queue_name": "orders", "workflow_name": "order_paid"}, order)

                try:
                    return self.drained(servers, workers, fill, progress, orders)
                finally:
                    client.destroy()


def wait_for_consumers(broker_url: str, queue: str, consumers: int, workers: Workers) -> None:
    """Return when so many consume the queue."""
    deadline = time.monotonic() + _READY_SECONDS
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    try:
        while True:
            workers.check()
            try:
                found = connection.channel().queue_declare(queue, passive=True)
                if found.method.consumer_count >= consumers:
                    return
            except pika.exceptions.ChannelClosedByBroker:
                pass  # not declared yet
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"the workers of {queue} did not get ready:\n{workers.said()}")
            time.sleep(_POLL_SECONDS)
    finally:
        connection.close()


def clean_environment() -> dict[str, str]:
    """The caller's environment without what would change the workers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOLDFAST_", "SIMULATED_", "dramatiq_"))
    }
