"""Which failures are worth another try, and which mean that something we need is away."""

import random
import threading

import structlog
from psycopg import errors as postgres_errors
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from infra.rabbitmq.ingress import QuarantineUnavailable
from infra.rabbitmq.messages import Failure
from schemas.commands import MalformedCommand

log = structlog.get_logger(__name__)

_FIRST_PING_SECONDS = 0.2
_LAST_PING_SECONDS = 10.0

# The database works and has refused this transaction only: another try may pass.
_TRANSACTION_REFUSED = (
    postgres_errors.DeadlockDetected,
    postgres_errors.SerializationFailure,
    postgres_errors.LockNotAvailable,
    postgres_errors.QueryCanceled,
)


def classify_failure(error: BaseException) -> Failure:
    """
    Judge what a handler raised.

    UNAVAILABLE: the database or broker is away; nothing is wrong with the message, so it waits without
    using up an attempt. POISON: no try can ever help. RETRY: everything else.
    """
    if isinstance(error, MalformedCommand):
        return Failure.POISON
    if isinstance(error, QuarantineUnavailable | PoolTimeout):
        return Failure.UNAVAILABLE
    if isinstance(error, DBAPIError) and isinstance(error.orig, _TRANSACTION_REFUSED):
        return Failure.RETRY
    if isinstance(error, OperationalError | InterfaceError):
        return Failure.UNAVAILABLE
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Failure.UNAVAILABLE
    return Failure.RETRY


def wait_for_database(engine: Engine, stopping: threading.Event) -> None:
    """Block until the database answers, or until the process is told to stop; back off with jitter."""
    wait_seconds = _FIRST_PING_SECONDS
    while not stopping.is_set():
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            # Half to full: workers that lost the same database do not come back in step.
            stopping.wait(wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, no secret
            wait_seconds = min(wait_seconds * 2, _LAST_PING_SECONDS)
        else:
            return
