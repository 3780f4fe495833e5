"""A worker that starts while its database comes and goes waits for it; a wrong database it refuses."""

import base64
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from infra.settings import Settings, load_settings
from ops.store.deployment import ensure_day_length
from workers.process import WrongDeployment, await_deployment


@pytest.fixture
def settings(database_url: str) -> Settings:
    return load_settings(
        broker_url="amqp://nobody@127.0.0.1:9/",
        database_url=database_url,
        encryption_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        protection_day_seconds="1",
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.sqlalchemy_url)
    with engine.begin() as connection:
        ensure_day_length(connection, 1)
    yield engine
    engine.dispose()


def test_a_database_that_goes_away_between_two_questions_is_waited_for(
    engine: Engine, settings: Settings
) -> None:
    """Ending here would need somebody to start the worker again; the next second all is well."""
    asked: list[str] = []

    def go_away(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)
        if len(asked) in {1, 3}:
            raise OperationalError(statement, {}, psycopg.OperationalError("the connection is lost"))

    event.listen(engine, "before_cursor_execute", go_away)
    with capture_logs() as lines:
        await_deployment(engine, settings, threading.Event())
    assert len(asked) > 3
    assert [line["event"] for line in lines] == ["database_awaited", "database_reached"]
    assert lines[0]["because"] == "the connection is lost"


def test_a_database_with_another_length_of_a_day_is_refused_at_once(
    engine: Engine, settings: Settings
) -> None:
    other = settings.model_copy(update={"protection_day_seconds": 2})
    with pytest.raises(WrongDeployment, match="HOLDFAST_PROTECTION_DAY_SECONDS"):
        await_deployment(engine, other, threading.Event())


def test_a_worker_told_to_stop_waits_for_no_database(settings: Settings) -> None:
    stopping = threading.Event()
    stopping.set()
    await_deployment(create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none"), settings, stopping)
