"""A whole system on a PostgreSQL that archives its WAL, and a broker that can be lost with its messages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from losable_broker import LosableBroker
from workflow_support.system import System

from infra.local.archived_postgres import ArchivedPostgres
from infra.local.postgres import PrivatePostgres


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchivedPostgres]:
    server = ArchivedPostgres(tmp_path_factory.mktemp("archived") / "postgres")
    server.start()
    try:
        server.wait_until_ready()
        server.ensure_database("holdfast")
        yield server
    finally:
        server.stop()


@pytest.fixture
def young_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """A server that has given out hardly any transaction id."""
    server = PrivatePostgres(tmp_path_factory.mktemp("young") / "postgres")
    server.start()
    try:
        server.wait_until_ready()
        server.ensure_database("holdfast")
        yield server
    finally:
        server.stop()


@pytest.fixture
def broker(test_servers: Any) -> Iterator[LosableBroker]:
    assert test_servers.rabbitmq is not None, "run this without HOLDFAST_BROKER_URL"
    broker = LosableBroker(test_servers.rabbitmq)
    yield broker
    broker.close()


@pytest.fixture
def system(postgres: ArchivedPostgres, broker: LosableBroker, tmp_path: Path) -> Iterator[System]:
    running = System(broker_url=broker.url, database_url=postgres.url("holdfast"), folder=tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell whoever watches `make drill` what happens."""

    def say_it(line: str) -> None:
        with capsys.disabled():
            print(f"  {line}", flush=True)  # noqa: T201 - it is a drill, people watch

    return say_it
