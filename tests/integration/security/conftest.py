"""A worker's verification unit between a real broker and a real database."""

from collections.abc import Iterator

import pytest
from gates import VAULT, Gate
from sqlalchemy import Engine, create_engine, event

from infra.postgres.key_store import KeyStore
from infra.rabbitmq import topology
from infra.rabbitmq.ingress import Ingress
from infra.rabbitmq.publisher import Publisher

_LONG_SECONDS = 3_600.0


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    yield engine
    engine.dispose()


@pytest.fixture
def gate(engine: Engine, broker_url: str) -> Iterator[Gate]:
    topology.apply(broker_url, 1)
    publisher = Publisher(broker_url)
    ingress = Ingress(
        KeyStore(engine, VAULT, cache_seconds=_LONG_SECONDS),
        publisher,
        max_age_seconds=3_600,
        max_ahead_seconds=300,
        publish_timeout_seconds=30,
    )
    gate = Gate(ingress, engine)

    def count(*_: object) -> None:
        gate.queries += 1

    event.listen(engine, "before_cursor_execute", count)
    yield gate
    event.remove(engine, "before_cursor_execute", count)
    publisher.close()
