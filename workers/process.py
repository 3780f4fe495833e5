"""What every worker process is made of: settings, database, publisher, broker; and its start and end."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from infra.observability.health import serve_health
from infra.observability.log_context import command_ids, event_ids
from infra.observability.logs import configure_logs
from infra.observability.metrics import QUARANTINED, begin_at_zero
from infra.postgres.engine import create_database_engine
from infra.postgres.key_store import KeyStore
from infra.postgres.migrate import schema_problem
from infra.postgres.step import Steps
from infra.rabbitmq import supervisor
from infra.rabbitmq.broker import HoldfastBroker
from infra.rabbitmq.ingress import InboundEvent, Ingress
from infra.rabbitmq.messages import Delivery, Failure
from infra.rabbitmq.outbox_publisher import OutboxPublisher
from infra.rabbitmq.publisher import Publisher
from infra.security.encryption import Vault, open_vault
from infra.settings import Settings, SettingsError, load_settings
from schemas.commands import Command, decode_command
from schemas.reasons import QuarantineReason
from workers.failures import classify_failure, wait_for_database

if TYPE_CHECKING:
    # OpenTelemetry is imported only where tracing is on.
    from infra.observability.tracing import Tracing

log = structlog.get_logger(__name__)

_READY_POLL_SECONDS = 0.1
# Nothing on the hot path makes cycles, so looking for them after every few hundred objects, as Python does by
# default, is a fifth of a worker's time for nothing. What does make some is still collected.
_GARBAGE_THRESHOLDS = (50_000, 20, 50)


class WrongDeployment(Exception):
    """The database is not the one that this process is set up for; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """The parts of one process. `loops` run beside the consumers until the process stops."""

    settings: Settings
    engine: Engine
    vault: Vault
    keys: KeyStore
    publisher: Publisher
    outbox: OutboxPublisher
    steps: Steps
    ingress: Ingress
    broker: HoldfastBroker
    tracing: "Tracing | None" = None


CommandT = TypeVar("CommandT", bound=Command)


def declare_event_actor(
    process: WorkerProcess, *, queue: str, name: str, handle: Callable[[Sequence[InboundEvent]], None]
) -> None:
    """Have the authentic events of a queue handled; what is not authentic is quarantined before."""
    begin_at_zero(QUARANTINED, QuarantineReason)
    admit = process.ingress.admit

    def handle_events(events: Sequence[InboundEvent]) -> None:
        with structlog.contextvars.bound_contextvars(queue=queue, **event_ids(events)):
            handle(events)

    def handle_deliveries(deliveries: Sequence[Delivery]) -> None:
        events = admit(deliveries)
        if events:
            handle_events(events)

    traced = process.tracing.around_events(queue, admit, handle_events) if process.tracing else None
    process.broker.declare_batch_actor(
        queue_name=queue, actor_name=name, handle=traced or handle_deliveries, external=True
    )


def declare_command_actor(
    process: WorkerProcess,
    *,
    queue: str,
    command: type[CommandT],
    handle: Callable[[Sequence[CommandT]], None],
) -> None:
    """Have one kind of command of a queue handled; a body that is none of it is poison."""

    def handle_commands(commands: Sequence[CommandT]) -> None:
        with structlog.contextvars.bound_contextvars(queue=queue, **command_ids(commands)):
            handle(commands)

    traced = process.tracing.around_commands(queue, handle_commands) if process.tracing else None

    def handle_deliveries(deliveries: Sequence[Delivery]) -> None:
        commands = [decode_command(command, delivery.body) for delivery in deliveries]
        if traced is None:
            handle_commands(commands)
        else:
            traced(deliveries, commands)

    process.broker.declare_batch_actor(
        queue_name=queue, actor_name=command.NAME, handle=handle_deliveries, external=False
    )


def run_worker(
    name: str,
    declare: Callable[[WorkerProcess], None],
    *,
    loops: Callable[[WorkerProcess, threading.Event], Sequence[threading.Thread]] | None = None,
) -> int:
    """
    Run one worker process until it is told to stop; return its exit code.

    Waits for a database that is away. Ends with a sentence for the operator where the environment or
    the database is wrong, since waiting would not mend that.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"holdfast {name}: {error}\n")
        return 2
    configure_logs(format_=settings.log_format, process=name, sample_lines=settings.log_sample_lines)
    engine = create_database_engine(settings, application_name=f"holdfast-{name}")
    publisher = Publisher(str(settings.broker_url), name=f"holdfast-{name}")
    tracing: Tracing | None = None
    try:
        if settings.tracing:
            tracing = _start_tracing(engine, name)
        process = assemble(settings, engine, publisher, tracing=tracing)
        declare(process)
        await_deployment(engine, settings, process.broker.stopping)
        if settings.metrics_port:
            _serve_health(process)
        threads = list(loops(process, process.broker.stopping)) if loops else []
        threads.append(_announce_ready(process))
        for thread in threads:
            thread.start()
        gc.freeze()
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        return supervisor.run(
            process.broker, threads=settings.worker_threads, drain_seconds=settings.drain_seconds
        )
    except WrongDeployment as error:
        log.critical("wrong_deployment", problem=str(error))
        return 2
    finally:
        publisher.close()
        if tracing is not None:
            tracing.close()
        engine.dispose()


def _start_tracing(engine: Engine, name: str) -> "Tracing":
    try:
        from infra.observability.tracing import start_tracing  # noqa: PLC0415 - costs nothing while it is off
    except ModuleNotFoundError as error:
        raise WrongDeployment(
            f"HOLDFAST_TRACING is on, and {error.name} is not installed: install the extra `tracing`"
        ) from error
    return start_tracing(engine, process=name)


def _serve_health(process: WorkerProcess) -> None:
    settings, broker = process.settings, process.broker

    def live() -> str | None:
        return broker.fatal_error or broker.stalled

    def ready() -> str | None:
        if not broker.ready:
            return "not every queue is being consumed, or the database is away"
        try:
            with process.engine.connect() as connection:
                return schema_problem(connection)
        except SQLAlchemyError as error:
            return f"the database cannot be read ({type(error).__name__})"

    try:
        serve_health(settings.metrics_address, settings.metrics_port, live=live, ready=ready)
    except OSError as error:
        raise WrongDeployment(
            f"cannot listen on {settings.metrics_address}:{settings.metrics_port} ({error.strerror}):"
            " give each process of a machine its own HOLDFAST_METRICS_PORT"
        ) from error


def await_deployment(engine: Engine, settings: Settings, stopping: threading.Event) -> None:
    """
    Wait for the database, also where it goes away while it is being looked at, and check what it is.

    Raises:
        WrongDeployment: it is not the one that this process is set up for.
    """
    away = False
    while not stopping.is_set():
        try:
            check_deployment(engine, settings)
        except SQLAlchemyError as error:
            if not away:
                log.warning("database_awaited", because=str(getattr(error, "orig", error)).partition("\n")[0])
            away = True
            wait_for_database(engine, stopping)
        else:
            if away:
                log.info("database_reached")
            return


def check_deployment(engine: Engine, settings: Settings) -> None:
    """
    Refuse to work on a database with another schema or another length of a day.

    Raises:
        WrongDeployment: with what to do about it.
        SQLAlchemyError: the database is away, which says nothing about it.
    """
    try:
        with engine.connect() as connection:
            problem = schema_problem(connection)
            if problem is not None:
                raise WrongDeployment(problem)
            day_seconds = connection.execute(
                text("SELECT protection_day_seconds FROM deployment")
            ).scalar_one_or_none()
    except SQLAlchemyError as error:
        if classify_failure(error) is Failure.UNAVAILABLE:
            raise
        raise WrongDeployment(f"the database cannot be read ({type(error).__name__})") from error
    if day_seconds != settings.protection_day_seconds:
        raise WrongDeployment(
            f"the database was created with a day of {day_seconds} seconds, HOLDFAST_PROTECTION_DAY_SECONDS"
            f" says {settings.protection_day_seconds}: set it to {day_seconds}"
        )


def assemble(
    settings: Settings, engine: Engine, publisher: Publisher, *, tracing: "Tracing | None" = None
) -> WorkerProcess:
    """Put the parts of one process together; nothing connects before it is used."""
    vault = open_vault(settings)
    keys = KeyStore(engine, vault, cache_seconds=settings.key_cache_seconds)
    outbox = OutboxPublisher(
        engine,
        publisher,
        keys.signer,
        timeout_seconds=settings.publish_timeout_seconds,
        day_seconds=settings.protection_day_seconds,
        tracing=tracing,
    )
    ingress = Ingress(
        keys,
        publisher,
        max_age_seconds=settings.signature_max_age_seconds,
        max_ahead_seconds=settings.signature_max_ahead_seconds,
        publish_timeout_seconds=settings.publish_timeout_seconds,
    )
    broker = HoldfastBroker(
        str(settings.broker_url),
        publisher=publisher,
        classify=classify_failure,
        await_recovery=lambda stopping: wait_for_database(engine, stopping),
        batch_bound=settings.batch_bound,
        batches_ahead=settings.worker_threads + 1,
        max_attempts=settings.max_attempts,
        publish_timeout_s=settings.publish_timeout_seconds,
        day_seconds=settings.protection_day_seconds,
    )
    steps = Steps(engine, after_commit=outbox.publish_committed, grace_seconds=settings.outbox_grace_seconds)
    return WorkerProcess(settings, engine, vault, keys, publisher, outbox, steps, ingress, broker, tracing)


def _announce_ready(process: WorkerProcess) -> threading.Thread:
    """Touch HOLDFAST_READY_FILE, if given, once every queue is being consumed."""

    def announce() -> None:
        stopping = process.broker.stopping
        while not stopping.is_set() and not process.broker.ready:
            stopping.wait(_READY_POLL_SECONDS)
        if not stopping.is_set():
            log.info("worker_ready", queues=sorted(process.broker.queues))
            announce_ready_file()

    return threading.Thread(target=announce, name="ready", daemon=True)


def announce_ready_file() -> None:
    """Touch HOLDFAST_READY_FILE, if given: whoever started this process waits for it."""
    path = os.environ.get("HOLDFAST_READY_FILE")
    if path:
        Path(path).touch()
