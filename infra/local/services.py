"""The private RabbitMQ and PostgreSQL of one folder, started side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.local.ports import LOOPBACK, remembered_ports
from infra.local.postgres import PrivatePostgres
from infra.local.rabbitmq import PrivateRabbitMQ


@dataclass(frozen=True, slots=True)
class Services:
    """What was asked for; None where the caller uses a server of their own."""

    rabbitmq: PrivateRabbitMQ | None
    postgres: PrivatePostgres | None

    def stop(self) -> None:
        """Stop what runs, its data kept."""
        if self.postgres is not None:
            self.postgres.stop()
        if self.rabbitmq is not None:
            self.rabbitmq.stop()


def services_in(folder: Path, *, broker: bool = True, database: bool = True) -> Services:
    """Describe a folder's services without starting them."""
    return Services(
        PrivateRabbitMQ(folder / "rabbitmq") if broker else None,
        PrivatePostgres(folder / "postgres") if database else None,
    )


def start_services(services: Services, *, database_ready: Callable[[], None] = lambda: None) -> None:
    """
    Start the services and return when both are ready; what already runs is left alone.

    Args:
        services: what to start.
        database_ready: called as soon as the database answers, while the broker may still be booting.

    Raises:
        LocalServiceError: one can't run here; what this call started is stopped again.
    """
    began = [
        service for service in (services.postgres, services.rabbitmq) if service and not service.is_running
    ]
    try:
        # The broker takes longest: it boots while PostgreSQL's data folder is set up.
        if services.rabbitmq is not None:
            services.rabbitmq.start()
        if services.postgres is not None:
            services.postgres.start()
            services.postgres.wait_until_ready()
        database_ready()
        if services.rabbitmq is not None:
            services.rabbitmq.wait_until_ready()
    except BaseException:
        for service in began:
            service.stop()
        raise


def is_private_url(url: str, local_folder: Path) -> bool:
    """
    Tell whether a URL leads to one of the private servers under a `.local` folder.

    A shell that has sourced `.local/env` hands such URLs to the next `make`. They are ours, not a choice
    of the caller's: the server behind one is ours to start, and not ours to run tests against.
    """
    parts = urlsplit(url)
    if parts.hostname != LOOPBACK or parts.port is None:
        return False
    # One service, a demo's or a test run's service: at most three folders down.
    kept = (path for depth in ("*", "*/*", "*/*/*") for path in local_folder.glob(f"{depth}/ports.json"))
    return any(parts.port in remembered_ports(path).values() for path in kept)
