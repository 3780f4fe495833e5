"""
Real services for the tests that ask for them.

Where the environment names no server, a run starts its own RabbitMQ and PostgreSQL once, in a folder of its
own: runs beside each other and a running `make up` do not meet. Where services can't be had, tests fail;
they never skip.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import structlog
from hypothesis import HealthCheck, settings
from psycopg import sql
from workflow_support import canaries

from infra.local.processes import record_of
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.local.services import is_private_url, services_in, start_services
from infra.postgres.migrate import migrate

CHECKOUT = Path(__file__).parent.parent
LOCAL = CHECKOUT / ".local"
TEST_RUNS = LOCAL / "test"

# A slow machine is no reason for a property to fail.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands and workers set up logging for their process; here many tests share one."""
    kept = structlog.get_config()
    yield
    structlog.configure(**kept)


@dataclass(frozen=True, slots=True)
class TestServers:
    """The servers of this run; `rabbitmq` is None where the broker was given from outside."""

    __test__ = False

    rabbitmq: PrivateRabbitMQ | None
    given_broker_url: str | None
    database_server_url: str


@dataclass(frozen=True, slots=True)
class Databases:
    """Databases on the run's server, each dropped when its scope ends."""

    server_url: str

    def url(self, name: str) -> str:
        start, _, rest = self.server_url.rpartition("/")
        _, mark, query = rest.partition("?")
        return f"{start}/{name}{mark}{query}"

    def create(self, template: str = "template0") -> str:
        """Create a database under a name of its own and return the name."""
        name = f"holdfast_test_{secrets.token_hex(6)}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, after a look for secrets that must not be in it."""
        canaries.must_be_nowhere(canaries.search_database(self.url(name)))
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


def _given(variable: str) -> str | None:
    url = os.environ.get(variable)
    return url if url and not is_private_url(url, LOCAL) else None


def _remove_abandoned_runs() -> None:
    """Stop and delete what a run that was killed has left behind."""
    for folder in TEST_RUNS.glob("run-*"):
        if record_of(int(folder.name.removeprefix("run-"))) is None:
            services_in(folder).stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_planted_secret_got_anywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The last word of every run, also of one test: see workflow_support.canaries."""
    yield
    logs = tmp_path_factory.getbasetemp().rglob("*.log")
    canaries.must_be_nowhere([*canaries.search_files(logs), *canaries.search_metrics()])
    assert canaries.found == [], "secrets of the tests lie readable where they must not be"


@pytest.fixture(scope="session")
def test_servers() -> Iterator[TestServers]:
    """RabbitMQ and PostgreSQL: those of the environment, else private ones for this run."""
    given_broker = _given("HOLDFAST_BROKER_URL")
    given_database = _given("HOLDFAST_DATABASE_URL")
    _remove_abandoned_runs()
    folder = TEST_RUNS / f"run-{os.getpid()}"
    services = services_in(folder, broker=given_broker is None, database=given_database is None)
    with ExitStack() as leaving:
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        start_services(services)
        leaving.callback(services.stop)
        leaving.callback(
            lambda: canaries.must_be_nowhere(
                canaries.search_files([*folder.rglob("*.log"), *folder.rglob("log/*")])
            )
        )
        database_url = given_database or (services.postgres.url("postgres") if services.postgres else "")
        yield TestServers(services.rabbitmq, given_broker, database_url)


@pytest.fixture(scope="session")
def databases(test_servers: TestServers) -> Databases:
    """Create and drop databases; for tests that need several or break theirs."""
    return Databases(test_servers.database_server_url)


@pytest.fixture(scope="session")
def migrated_template(databases: Databases) -> Iterator[str]:
    """The name of a database with the newest schema, to copy."""
    name = databases.create()
    try:
        migrate(databases.url(name))
        yield name
    finally:
        databases.drop(name)


@pytest.fixture(scope="module")
def database_url(databases: Databases, migrated_template: str) -> Iterator[str]:
    """A database of this module's own, with the newest schema and no rows."""
    name = databases.create(template=migrated_template)
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture(scope="module")
def blank_database_url(databases: Databases) -> Iterator[str]:
    """A database of this module's own without any schema."""
    name = databases.create()
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture(scope="session")
def make_vhost(test_servers: TestServers) -> Iterator[Callable[[], str]]:
    """Return a function that returns the URL of a new, empty vhost; all are deleted at the end."""
    with ExitStack() as leaving:

        def make() -> str:
            if test_servers.rabbitmq is None:
                # A broker from outside is used as it is: we may not be allowed to divide it.
                return test_servers.given_broker_url or ""
            name = f"test-{secrets.token_hex(6)}"
            test_servers.rabbitmq.add_vhost(name)
            leaving.callback(test_servers.rabbitmq.delete_vhost, name)
            return test_servers.rabbitmq.url(name)

        yield make


@pytest.fixture(scope="module")
def broker_url(test_servers: TestServers) -> Iterator[str]:
    """The URL of a vhost of this module's own, deleted after it."""
    if test_servers.rabbitmq is None:
        yield test_servers.given_broker_url or ""
        return
    name = f"test-{secrets.token_hex(6)}"
    test_servers.rabbitmq.add_vhost(name)
    yield test_servers.rabbitmq.url(name)
    test_servers.rabbitmq.delete_vhost(name)
