"""What a command works with: the settings it needs and no others, the database, the broker, the vault."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Flag, auto

from sqlalchemy import Connection, Engine

from infra.postgres.engine import create_database_engine
from infra.postgres.step import Step, Steps
from infra.rabbitmq.publisher import Publisher
from infra.security.encryption import Vault, open_vault
from infra.settings import ENCRYPTION_KEY_BYTES, Settings, load_settings
from ops.failures import database_failures


class Need(Flag):
    """What a command uses; the variables of everything else may be missing."""

    NOTHING = 0
    DATABASE = auto()
    BROKER = auto()
    VAULT = auto()


# Stand in for what a command does not use. None of them can reach or open anything, and production does not
# object to them.
_UNUSED: dict[Need, dict[str, str]] = {
    Need.DATABASE: {
        "database_url": "postgresql://unused:stands-in-only@unused.invalid/unused?sslmode=verify-full"
    },
    Need.BROKER: {"broker_url": "amqps://unused:stands-in-only@unused.invalid/"},
    Need.VAULT: {"encryption_key": base64.b64encode(bytes(range(ENCRYPTION_KEY_BYTES))).decode()},
}


class Environment:
    """The settings of one command; refuses to open what the command did not say that it needs."""

    def __init__(self, needs: Need) -> None:
        """
        Read the settings that are needed.

        Raises:
            SettingsError: one of them is missing or wrong.
        """
        self._needs = needs
        unused = {
            name: value
            for need, values in _UNUSED.items()
            if need not in needs
            for name, value in values.items()
        }
        self.settings: Settings = load_settings(**unused)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """
        Open the database.

        Raises:
            CommandFailed: with a sentence for whatever the database raises inside the block.
        """
        self._must_have_asked(Need.DATABASE)
        with database_failures(self.settings):
            engine = create_database_engine(self.settings, application_name="holdfast-ops")
            try:
                yield engine
            finally:
                engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        Open one snapshot that can't change anything: all that is printed belongs together.

        Raises:
            CommandFailed: as `engine`.
        """
        with self.engine() as engine, engine.connect() as connection:
            connection = connection.execution_options(  # noqa: PLW2901 - the same connection, read only
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            with connection.begin():
                yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """
        Open one transaction; commit at the end of the block.

        Raises:
            CommandFailed: as `engine`.
        """
        with self.engine() as engine, engine.begin() as connection:
            yield connection

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """
        Open one step of the workflow: what follows from it is in the outbox, and the relay publishes it.

        Raises:
            CommandFailed: as `engine`.
        """
        with self.engine() as engine:
            # Without a grace the relay may take what was committed at once: nobody here publishes it.
            steps = Steps(engine, after_commit=lambda _rows: None, grace_seconds=0)
            with steps.begin(name) as step:
                yield step

    @contextmanager
    def publisher(self) -> Iterator[Publisher]:
        """Open a confirming publisher; it connects at the first message."""
        publisher = Publisher(self.broker_url, name="holdfast-ops")
        try:
            yield publisher
        finally:
            publisher.close()

    @property
    def broker_url(self) -> str:
        self._must_have_asked(Need.BROKER)
        return str(self.settings.broker_url)

    @property
    def management_url(self) -> str | None:
        """RabbitMQ's management API, with its user and password; None where nobody named it."""
        self._must_have_asked(Need.BROKER)
        url = self.settings.broker_management_url
        return str(url) if url is not None else None

    @property
    def vault(self) -> Vault:
        self._must_have_asked(Need.VAULT)
        return open_vault(self.settings)

    def _must_have_asked(self, need: Need) -> None:
        if need not in self._needs:
            raise AssertionError(f"the command uses {need}, which it did not ask for")
