"""Holdfast as it is installed: our own workers as the Procfile starts them, on servers of their own."""

import base64
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
from baselines import PERIOD_SECONDS, WARM_UP_ORDERS, clean_environment
from drain import Drained, MeasurementFailed, Workers, drain, publish_all, started, wait_for_files
from orders import SHOP, Order, ShopKeys, batch_events, make_orders, single_events
from prepared_books import book_past, partition_postings
from servers import CHECKOUT, Servers

from infra.rabbitmq import topology
from infra.rabbitmq.messages import Outgoing
from infra.settings import DAY_SECONDS

_PROGRAMS = Path(sys.prefix) / "bin"
WORKERS = ("payment", "escrow", "relay")


@dataclass(frozen=True, slots=True)
class Past:
    """What the ledger holds before: so many postings, in one table or partitioned by time."""

    postings: int = 0
    partitioned: bool = False


@dataclass(frozen=True, slots=True)
class Installation:
    """A migrated database, a topology and a registered shop; the shop's keys."""

    environment: Mapping[str, str]
    keys: ShopKeys
    servers: Servers

    @property
    def broker_url(self) -> str:
        return self.environment["HOLDFAST_BROKER_URL"]

    @property
    def database_url(self) -> str:
        return self.environment["HOLDFAST_DATABASE_URL"]

    @contextmanager
    def running(self, workers: Sequence[str] = WORKERS) -> Iterator[Workers]:
        """Start these workers, in this order; yield when all are ready."""
        ready = [self.servers.folder / f"ready-{uuid4()}" for _ in workers]
        with started(
            [[sys.executable, "-m", f"workers.{name}.worker"] for name in workers],
            environments=[{**self.environment, "HOLDFAST_READY_FILE": str(path)} for path in ready],
            log=self.servers.folder / "holdfast.log",
            folder=CHECKOUT,
        ) as processes:
            wait_for_files(ready, processes)
            yield processes


@contextmanager
def installed(
    servers: Servers, *, day_seconds: int = DAY_SECONDS, past: Past = Past(), **settings: str
) -> Iterator[Installation]:
    """
    Yield an installation of its own; the shop's word is enough for a release.

    Its database is a copy of one that is set up once in a run: that takes longer than many a measurement.
    """
    keys, encryption_key = _secrets()
    environment = {
        **clean_environment(),
        "HOLDFAST_ENCRYPTION_KEY": encryption_key,
        "HOLDFAST_PROTECTION_DAY_SECONDS": str(day_seconds),
        "HOLDFAST_LOG_FORMAT": "json",
        **{f"HOLDFAST_{name.upper()}": value for name, value in settings.items()},
    }

    def fill(database_url: str) -> None:
        with servers.vhost() as broker_url:
            topology.apply(broker_url, day_seconds)
            _set_up(environment | _urls(broker_url, database_url), keys, servers.folder)
        if past.partitioned:
            partition_postings(database_url, past.postings)
        book_past(database_url, past.postings)

    template = servers.template((day_seconds, past), fill)
    with servers.vhost() as broker_url, servers.database(template) as database_url:
        topology.apply(broker_url, day_seconds)
        topology.declare_shop_queue(broker_url, SHOP)
        yield Installation(environment | _urls(broker_url, database_url), keys, servers)


def _urls(broker_url: str, database_url: str) -> dict[str, str]:
    return {"HOLDFAST_BROKER_URL": broker_url, "HOLDFAST_DATABASE_URL": database_url}


@cache
def _secrets() -> tuple[ShopKeys, str]:
    """Make the shop's keys and the encryption key of this run."""
    return ShopKeys(), base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Holdfast:
    """From signed orders to committed holds, or, with `releases`, to released ones."""

    name: str
    batch_size: int = 1
    sellers: int = 10_000
    releases: bool = False
    workers: Sequence[str] = WORKERS
    past: Past = Past()
    # A ledger that is copied first and stands there unused.
    beside: Past | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    # What watches the workers while they drain.
    meanwhile: Callable[[Workers], AbstractContextManager[None]] = nullcontext

    def measure(self, servers: Servers, orders: int) -> Drained:
        day_seconds = 1 if self.releases else DAY_SECONDS
        with ExitStack() as leaving:
            there = leaving.enter_context(
                installed(servers, day_seconds=day_seconds, past=self.past, **self.settings)
            )
            if self.beside is not None:
                leaving.enter_context(installed(servers, day_seconds=day_seconds, past=self.beside))
            workers = leaving.enter_context(there.running(self.workers))
            made = make_orders(WARM_UP_ORDERS + orders, sellers=self.sellers)
            database = leaving.enter_context(psycopg.connect(there.database_url, autocommit=True))
            before = _count(database, "true")
            counted = "state = 'released'" if self.releases else "true"
            drained = drain(
                workers,
                fill=lambda some: publish_all(there.broker_url, self._messages(some, there.keys)),
                warm_up=made[:WARM_UP_ORDERS],
                orders=made[WARM_UP_ORDERS:],
                done=lambda: _count(database, counted) - before,
                ended_at=lambda: _last_commit(database, counted),
                servers=servers,
                waiting_seconds=PERIOD_SECONDS if self.releases else 0,
                meanwhile=self.meanwhile,
            )
            _check_books(database, made)
            return drained

    def _messages(self, orders: Sequence[Order], keys: ShopKeys) -> list[Outgoing]:
        if self.batch_size == 1:
            return single_events(orders, keys)
        return batch_events(orders, keys, self.batch_size)


def _count(database: psycopg.Connection, condition: str) -> int:
    # An estimate would do while it runs, but the last order has to be seen exactly.
    row = database.execute(f"SELECT count(*) FROM holds WHERE {condition}").fetchone()
    return int(row[0]) if row else 0


def _last_commit(database: psycopg.Connection, condition: str) -> float:
    """Return when the last of them was committed, by the monotonic clock."""
    row = database.execute(
        f"SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM holds WHERE {condition}"
    ).fetchone()
    if row is None or row[0] is None:
        raise MeasurementFailed("PostgreSQL does not say when the holds were committed")
    return time.monotonic() - (time.time() - float(row[0]))


def _set_up(environment: Mapping[str, str], keys: ShopKeys, folder: Path) -> None:
    secret = folder / "shop.hmac"
    secret.touch(mode=0o600)
    secret.write_text(keys.hmac_text + "\n", encoding="ascii")
    for arguments in (
        ["migrate"],
        ["shop", "add", SHOP, "--protection-days", "3", "--funding", "announced"],
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
        """
        SELECT count(*), count(DISTINCT order_id), coalesce(sum(amount_minor), 0) FROM holds
        WHERE order_id = ANY(SELECT json_array_elements_text(CAST(%s AS json)))
        """,
        [json.dumps([order["order_id"] for order in orders])],
    ).fetchone()
    expected = (len(orders), len(orders), sum(int(str(order["amount"])) for order in orders))
    if row is None or tuple(map(int, row)) != expected:
        raise MeasurementFailed(f"the books hold {row}, expected {expected}")
