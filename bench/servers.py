"""The one RabbitMQ and the one PostgreSQL that everything is measured on: private, and empty every time."""

import os
import secrets
import shutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg

from infra.local.postgres import PrivatePostgres
from infra.local.processes import find_running, record_of
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.local.services import Services, services_in, start_services

CHECKOUT = Path(__file__).parent.parent
_FOLDER = CHECKOUT / ".local" / "bench"
# Loaded at the start or never; counts only where it is told to.
_COUNTER_SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "none"}
# Says when the last order was committed, so that nobody has to count the orders every few milliseconds.
_CLOCK_SETTINGS = {"track_commit_timestamp": "on"}


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of write-ahead log, and of databases on disk."""

    log: int
    disk: int

    def since(self, before: "Written") -> "Written":
        return Written(self.log - before.log, self.disk - before.disk)


class Servers:
    """Gives out vhosts and databases that nobody has used before."""

    def __init__(self, rabbitmq: PrivateRabbitMQ, postgres: PrivatePostgres, folder: Path) -> None:
        self._rabbitmq = rabbitmq
        self._postgres = postgres
        self.folder = folder
        self._templates: dict[Hashable, str] = {}

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """Yield the URL of an empty vhost, deleted afterwards."""
        name = f"bench-{secrets.token_hex(4)}"
        self._rabbitmq.add_vhost(name)
        try:
            yield self._rabbitmq.url(name)
        finally:
            self._rabbitmq.delete_vhost(name)

    def template(self, key: Hashable, fill: Callable[[str], None]) -> str:
        """Return a database to be copied; `fill`, given its URL, fills it the first time its key is named."""
        if key not in self._templates:
            name = f"bench_template_{secrets.token_hex(4)}"
            self._postgres.create_database(name)
            fill(self._postgres.url(name))
            self._templates[key] = name
        return self._templates[key]

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """Yield the URL of a new copy of a database, dropped afterwards."""
        name = f"bench_{secrets.token_hex(4)}"
        self._postgres.create_database(name, template=template)
        try:
            yield self._postgres.url(name)
        finally:
            self._postgres.drop_database(name)

    def settle(self) -> None:
        """Write out what earlier measurements left to write, so that the next one does not pay for it."""
        self._command("CHECKPOINT")

    def roots(self) -> dict[str, list[int]]:
        """Return the servers' first processes."""
        records = {
            "broker": find_running(self.folder / "rabbitmq" / "server.pid.json"),
            "database": find_running(self.folder / "postgres" / "server.pid.json"),
        }
        return {name: [record.pid] for name, record in records.items() if record is not None}

    @contextmanager
    def counting_statements(self) -> Iterator[None]:
        """Have PostgreSQL count what is spent on each statement."""
        self._command("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        self._command("ALTER ROLE ALL SET pg_stat_statements.track = 'top'")
        try:
            yield
        finally:
            self._command("ALTER ROLE ALL RESET pg_stat_statements.track")

    def forget_statements(self) -> None:
        self._command("SELECT pg_stat_statements_reset()")

    def statements(self) -> list[tuple[str, float]]:
        """Return each statement since then and the milliseconds spent on it."""
        with psycopg.connect(self._postgres.url("postgres")) as connection:
            return [
                (str(query), float(spent))
                for query, spent in connection.execute(
                    "SELECT query, total_exec_time FROM pg_stat_statements"
                    " WHERE dbid <> (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
            ]

    def written(self) -> Written:
        """Return what PostgreSQL has written since it was set up, and what its databases take."""
        with psycopg.connect(self._postgres.url("postgres")) as connection:
            row = connection.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'),"
                " (SELECT sum(pg_database_size(oid)) FROM pg_database)"
            ).fetchone()
        return Written(int(row[0]), int(row[1])) if row else Written(0, 0)

    def _command(self, statement: LiteralString) -> None:
        with psycopg.connect(self._postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def versions(self) -> dict[str, str]:
        """Say which servers these are."""
        with psycopg.connect(self._postgres.url("postgres")) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return {"postgresql": str(row[0]) if row else "unknown", "rabbitmq": self._rabbitmq_version()}

    def _rabbitmq_version(self) -> str:
        import pika  # noqa: PLC0415 - only to ask for a number

        connection = pika.BlockingConnection(pika.URLParameters(self._rabbitmq.url()))
        try:
            # The blocking adapter does not show the server's properties; its implementation does.
            return str(connection._impl.server_properties.get("version", "unknown"))  # noqa: SLF001
        finally:
            connection.close()


@contextmanager
def running_servers() -> Iterator[Servers]:
    """Start servers of this run's own; stop and delete them afterwards."""
    for abandoned in _FOLDER.glob("run-*"):
        if record_of(int(abandoned.name.removeprefix("run-"))) is None:
            services_in(abandoned).stop()
            shutil.rmtree(abandoned, ignore_errors=True)
    folder = _FOLDER / f"run-{os.getpid()}"
    rabbitmq = PrivateRabbitMQ(folder / "rabbitmq")
    postgres = PrivatePostgres(folder / "postgres", settings={**_COUNTER_SETTINGS, **_CLOCK_SETTINGS})
    services = Services(rabbitmq, postgres)
    try:
        start_services(services)
        yield Servers(rabbitmq, postgres, folder)
    finally:
        services.stop()
        shutil.rmtree(folder, ignore_errors=True)
