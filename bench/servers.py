"""The one RabbitMQ and the one PostgreSQL that everything is measured on: private, and empty every time."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from infra.local.postgres import PrivatePostgres
from infra.local.processes import find_running, record_of
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.local.services import services_in, start_services

CHECKOUT = Path(__file__).parent.parent
_FOLDER = CHECKOUT / ".local" / "bench"


class Servers:
    """Gives out vhosts and databases that nobody has used before."""

    def __init__(self, rabbitmq: PrivateRabbitMQ, postgres: PrivatePostgres, folder: Path) -> None:
        self._rabbitmq = rabbitmq
        self._postgres = postgres
        self.folder = folder

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """Yield the URL of an empty vhost, deleted afterwards."""
        name = f"bench-{secrets.token_hex(4)}"
        self._rabbitmq.add_vhost(name)
        try:
            yield self._rabbitmq.url(name)
        finally:
            self._rabbitmq.delete_vhost(name)

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
        with psycopg.connect(self._postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def roots(self) -> dict[str, list[int]]:
        """Return the servers' first processes."""
        records = {
            "broker": find_running(self.folder / "rabbitmq" / "server.pid.json"),
            "database": find_running(self.folder / "postgres" / "server.pid.json"),
        }
        return {name: [record.pid] for name, record in records.items() if record is not None}

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
    rabbitmq, postgres = PrivateRabbitMQ(folder / "rabbitmq"), PrivatePostgres(folder / "postgres")
    services = services_in(folder)
    try:
        start_services(services)
        yield Servers(rabbitmq, postgres, folder)
    finally:
        services.stop()
        shutil.rmtree(folder, ignore_errors=True)
