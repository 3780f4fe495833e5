"""Who is measured, each at its best settings: stock Dramatiq twice over, and Holdfast."""

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import dramatiq
import pika
import pika.exceptions
import psycopg
from drain import Drained, MeasurementFailed, Workers, drain, started, wait_for_files
from orders import CURRENCY, SHOP, Order, ShopKeys, batch_events, make_orders, seller_names, single_events
from progress import FOLDER_VARIABLE, read_progress
from servers import CHECKOUT, Servers

from infra.rabbitmq import topology
from infra.rabbitmq.messages import DEFAULT_EXCHANGE, Outgoing
from infra.settings import DAY_SECONDS

_BENCH = Path(__file__).parent
_PROGRAMS = Path(sys.prefix) / "bin"
_READY_SECONDS = 30.0
# Asking costs the database something, so not as often as the baselines' counters are read.
_COUNT_SECONDS = 0.05
WARM_UP_ORDERS = 400


class Contestant(Protocol):
    """Something that takes paid orders and has them held at the end."""

    @property
    def name(self) -> str: ...

    def measure(self, servers: Servers, orders: int) -> Drained:
        """Measure once, on a vhost and a database that nobody has used."""


@dataclass(frozen=True, slots=True)
class Stock:
    """An actor on stock Dramatiq, run by its own command line."""

    name: str
    module: str
    queue: str
    processes: int
    threads: int
    prefetch: int
    sellers: int = 10_000
    queue_type: str = "classic"
    needs_tables: bool = False

    def measure(self, servers: Servers, orders: int) -> Drained:
        with ExitStack() as leaving:
            broker_url = leaving.enter_context(servers.vhost())
            database_url = leaving.enter_context(servers.database())
            progress = servers.folder / f"progress-{secrets.token_hex(4)}"
            progress.mkdir()
            environment = {
                **_clean_environment(),
                "HOLDFAST_BROKER_URL": broker_url,
                "HOLDFAST_DATABASE_URL": database_url,
                FOLDER_VARIABLE: str(progress),
                "HOLDFAST_BENCH_QUEUE_TYPE": self.queue_type,
                "dramatiq_queue_prefetch": str(self.prefetch),
            }
            if self.needs_tables:
                self._create_tables(environment)
            command = [
                str(_PROGRAMS / "dramatiq"),
                self.module,
                *("--path", str(_BENCH)),
                *("--processes", str(self.processes)),
                *("--threads", str(self.threads)),
            ]
            workers = leaving.enter_context(
                started(
                    [command], environments=[environment], log=servers.folder / "stock.log", folder=_BENCH
                )
            )
            self._wait_for_consumers(broker_url, workers)
            made = make_orders(WARM_UP_ORDERS + orders, sellers=self.sellers)
            return drain(
                workers,
                broker_url=broker_url,
                warm_up=self._messages(made[:WARM_UP_ORDERS]),
                messages=self._messages(made[WARM_UP_ORDERS:]),
                warm_up_orders=WARM_UP_ORDERS,
                orders=orders,
                done=lambda: read_progress(progress),
                servers=servers,
            )

    def _messages(self, orders: Sequence[Order]) -> list[Outgoing]:
        messages = []
        for order in orders:
            message: dramatiq.Message[None] = dramatiq.Message(self.queue, "order_paid", (order,), {}, {})
            messages.append(Outgoing(DEFAULT_EXCHANGE, self.queue, message.encode()))
        return messages

    def _create_tables(self, environment: Mapping[str, str]) -> None:
        subprocess.run(
            [sys.executable, str(_BENCH / f"{self.module}.py")],
            input=json.dumps({"sellers": seller_names(self.sellers), "currency": CURRENCY}),
            text=True,
            env=environment,
            check=True,
        )

    def _wait_for_consumers(self, broker_url: str, workers: Workers) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        try:
            while True:
                workers.check()
                try:
                    found = connection.channel().queue_declare(self.queue, passive=True)
                    if found.method.consumer_count >= self.processes:
                        return
                except pika.exceptions.ChannelClosedByBroker:
                    pass  # not declared yet
                if time.monotonic() > deadline:
                    raise MeasurementFailed(f"stock workers did not get ready:\n{workers.said()}")
                time.sleep(_COUNT_SECONDS)
        finally:
            connection.close()


class Holdfast:
    """Our own workers as the Procfile starts them, from signed orders to committed holds."""

    def __init__(
        self,
        name: str,
        *,
        batch_size: int = 1,
        sellers: int = 10_000,
        processes: Sequence[str] = ("payment", "escrow", "relay"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._batch_size = batch_size
        self._sellers = sellers
        self._processes = processes
        self._settings = settings or {}

    def measure(self, servers: Servers, orders: int) -> Drained:
        with ExitStack() as leaving:
            broker_url = leaving.enter_context(servers.vhost())
            database_url = leaving.enter_context(servers.database())
            environment = {
                **_clean_environment(),
                "HOLDFAST_BROKER_URL": broker_url,
                "HOLDFAST_DATABASE_URL": database_url,
                "HOLDFAST_ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
                "HOLDFAST_PROTECTION_DAY_SECONDS": str(DAY_SECONDS),
                **self._settings,
            }
            keys = ShopKeys()
            _register_shop(environment, keys, servers.folder)
            workers = leaving.enter_context(self._started(servers, environment))
            made = make_orders(WARM_UP_ORDERS + orders, sellers=self._sellers)
            database = leaving.enter_context(psycopg.connect(database_url, autocommit=True))

            def done() -> tuple[int, float]:
                row = database.execute("SELECT count(*) FROM holds").fetchone()
                return (int(row[0]) if row else 0), time.monotonic()

            drained = drain(
                workers,
                broker_url=broker_url,
                warm_up=self._messages(made[:WARM_UP_ORDERS], keys),
                messages=self._messages(made[WARM_UP_ORDERS:], keys),
                warm_up_orders=WARM_UP_ORDERS,
                orders=orders,
                done=done,
                servers=servers,
                poll_seconds=_COUNT_SECONDS,
            )
            _check_books(database, made)
            return drained

    def _messages(self, orders: Sequence[Order], keys: ShopKeys) -> list[Outgoing]:
        if self._batch_size == 1:
            return single_events(orders, keys)
        return batch_events(orders, keys, self._batch_size)

    @contextmanager
    def _started(self, servers: Servers, environment: Mapping[str, str]) -> Iterator[Workers]:
        ready = [servers.folder / f"ready-{uuid4()}" for _ in self._processes]
        with started(
            [[sys.executable, "-m", f"workers.{name}.worker"] for name in self._processes],
            environments=[{**environment, "HOLDFAST_READY_FILE": str(path)} for path in ready],
            log=servers.folder / "holdfast.log",
            folder=CHECKOUT,
        ) as workers:
            wait_for_files(ready, workers)
            yield workers


def _register_shop(environment: Mapping[str, str], keys: ShopKeys, folder: Path) -> None:
    secret = folder / "shop.hmac"
    secret.touch(mode=0o600)
    secret.write_text(keys.hmac_text + "\n", encoding="ascii")
    topology.apply(environment["HOLDFAST_BROKER_URL"], DAY_SECONDS)
    for arguments in (
        ["migrate"],
        ["shop", "add", SHOP],
        ["shop", "key", "add", SHOP, "--scope", "orders", "--hmac-file", str(secret)],
        ["shop", "key", "add", SHOP, "--scope", "orders", "--ed25519", keys.ed25519_public_text],
    ):
        done = subprocess.run(
            [str(_PROGRAMS / "holdfast"), *arguments],
            env=dict(environment),
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise MeasurementFailed(f"holdfast {' '.join(arguments[:3])}: {done.stdout}{done.stderr}")


def _check_books(database: psycopg.Connection, orders: Sequence[Order]) -> None:
    """Refuse a number for work that was not done: every order held once, with its money."""
    row = database.execute(
        "SELECT count(*), count(DISTINCT order_id), sum(amount_minor) FROM holds"
    ).fetchone()
    expected = (len(orders), len(orders), sum(int(str(order["amount"])) for order in orders))
    if row is None or tuple(map(int, row)) != expected:
        raise MeasurementFailed(f"the books hold {row}, expected {expected}")


def _clean_environment() -> dict[str, str]:
    """The caller's environment without what would change the workers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOLDFAST_", "SIMULATED_", "dramatiq_"))
    }
