"""`python -m workers.exporter.worker`: the gauges of the books, read from PostgreSQL for everybody."""

import signal
import sys
import threading
import time
from collections.abc import Iterable

import structlog
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from infra.observability.health import serve_health
from infra.observability.logs import configure_logs
from infra.postgres.engine import create_database_engine
from infra.settings import SettingsError, load_settings
from workers.exporter.books import Snapshot, read_gauges
from workers.process import announce_ready_file

log = structlog.get_logger(__name__)

# A reading that is this many rounds old is not shown as ready any more.
_OLD_ROUNDS = 4
_NAME = "exporter"


class _Books(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        return self._snapshot.collect()


def main() -> int:
    """Read every few seconds and answer scrapes from the last reading, until told to stop."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"holdfast {_NAME}: {error}\n")
        return 2
    configure_logs(format_=settings.log_format, process=_NAME, sample_lines=settings.log_sample_lines)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    engine = create_database_engine(settings, application_name=f"holdfast-{_NAME}")
    snapshot = Snapshot(time.monotonic)
    REGISTRY.register(_Books(snapshot))

    def ready() -> str | None:
        if snapshot.empty or snapshot.age_seconds > _OLD_ROUNDS * settings.exporter_seconds:
            return f"the last reading of the database is {snapshot.age_seconds:.0f} s old"
        return None

    try:
        server = serve_health(settings.metrics_address, settings.metrics_port, live=lambda: None, ready=ready)
    except OSError as error:
        log.critical(
            "cannot_listen",
            address=settings.metrics_address,
            port=settings.metrics_port,
            problem=error.strerror,
            remedy="give each process of a machine its own HOLDFAST_METRICS_PORT",
        )
        return 2
    log.info("exporter_listening", port=server.server_address[1])
    _read_on(engine, snapshot, stopping, seconds=settings.exporter_seconds)
    server.shutdown()
    engine.dispose()
    log.info("worker_stopped")
    return 0


def _read_on(engine: Engine, snapshot: Snapshot, stopping: threading.Event, *, seconds: float) -> None:
    failing = False
    while not stopping.is_set():
        try:
            with engine.connect() as connection:
                snapshot.take(read_gauges(connection))
        except SQLAlchemyError as error:
            snapshot.fail()
            # A line when the state changes, not one a reading.
            if not failing:
                log.warning("books_not_read", error=type(error).__name__)
            failing = True
        else:
            if failing:
                log.info("books_read_again")
            failing = False
            announce_ready_file()
        stopping.wait(seconds)


if __name__ == "__main__":
    sys.exit(main())
