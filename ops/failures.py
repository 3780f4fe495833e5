"""How a command ends when it can't do what was asked: one sentence for people, one exit code for scripts."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pika.exceptions
from psycopg import errors as postgres_errors
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError

from infra.rabbitmq.amqp import CONNECTION_ERRORS
from infra.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

NO: Final = 1
BAD_USAGE: Final = 2

_AMQP_NOT_FOUND = 404


class CommandFailed(Exception):
    """The command ends here; the sentence says what went wrong and, where something helps, what to do."""

    def __init__(self, sentence: str, *, exit_code: int = NO) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class BadUsage(CommandFailed):
    """The command was called in a way that can't work, or its settings are wrong."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, exit_code=BAD_USAGE)


@contextmanager
def database_failures(settings: Settings) -> "Iterator[None]":
    """
    Turn what the database raises into a sentence.

    Raises:
        CommandFailed: away, without our schema, or refusing.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise CommandFailed(describe_database_error(error, settings)) from error


@contextmanager
def broker_failures(settings: Settings) -> "Iterator[None]":
    """
    Turn what the broker raises into a sentence.

    Raises:
        CommandFailed: away, without our exchanges and queues, or refusing.
    """
    try:
        yield
    except CONNECTION_ERRORS as error:
        raise CommandFailed(describe_broker_error(error, settings)) from error


def describe_database_error(error: SQLAlchemyError, settings: Settings) -> str:
    """Say in one line what is wrong with the database and what to do; never shows the password."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, postgres_errors.UndefinedTable | postgres_errors.UndefinedColumn) or (
        isinstance(error, ProgrammingError) and isinstance(cause, postgres_errors.UndefinedFunction)
    ):
        return (
            f"the database at {database_place(settings)} lacks (some of) our schema: run `holdfast migrate`"
        )
    if isinstance(cause, postgres_errors.QueryCanceled | postgres_errors.LockNotAvailable):
        return f"the database took too long ({one_line(cause)}): raise HOLDFAST_STATEMENT_TIMEOUT_MS"
    if isinstance(error, OperationalError | InterfaceError):
        return (
            f"the database at {database_place(settings)} can't be reached ({one_line(cause or error)}):"
            " start it, or mend HOLDFAST_DATABASE_URL"
        )
    if isinstance(cause, postgres_errors.InsufficientPrivilege):
        return (
            f"the database at {database_place(settings)} refused ({one_line(cause)}): name a user who may in"
            " HOLDFAST_DATABASE_URL; `migrate` and `recover` are for the owner of the tables"
        )
    return f"the database at {database_place(settings)} refused: {one_line(cause or error)}"


def describe_broker_error(error: BaseException, settings: Settings) -> str:
    """Say in one line what is wrong with the broker and what to do; never shows the password."""
    place = broker_place(settings)
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return f"the broker at {place} refuses the user or password of HOLDFAST_BROKER_URL: mend it"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return f"the broker at {place} has no such virtual host for this user: mend HOLDFAST_BROKER_URL"
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        if error.reply_code == _AMQP_NOT_FOUND:
            return f"the broker at {place} lacks our topology: run `holdfast topology apply`"
        return (
            f"the broker at {place} refuses: {error.reply_text}; `holdfast topology verify` shows all that"
            " differs"
        )
    cause = _amqp_cause(error)
    return f"the broker at {place} can't be reached ({cause}): start it, or mend HOLDFAST_BROKER_URL"


def database_place(settings: Settings) -> str:
    """Name the database without its user and password."""
    url = settings.database_url
    hosts = ",".join(f"{host['host'] or 'localhost'}:{host['port'] or 5432}" for host in url.hosts())
    return f"{hosts}/{(url.path or '/').lstrip('/')}"


def broker_place(settings: Settings) -> str:
    """Name the broker without its user and password."""
    url = settings.broker_url
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}{url.path or '/'}"


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _amqp_cause(error: BaseException) -> str:
    """Dig out the socket's own words: pika wraps them several times, and its own say little."""
    if isinstance(error, pika.exceptions.AMQPConnectionError) and error.args:
        inner = error.args[0]
        for attribute in ("exception", "exceptions"):
            nested = getattr(inner, attribute, None)
            if nested:
                last = nested[-1] if isinstance(nested, list | tuple) else nested
                return _amqp_cause(last) if isinstance(last, BaseException) else str(last)
        if isinstance(inner, BaseException):
            return _amqp_cause(inner)
    return one_line(error)
