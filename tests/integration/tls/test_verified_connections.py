"""Connections to RabbitMQ and PostgreSQL are encrypted, and made with nobody but the right server."""

import base64
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from throwaway_ca import ThrowawayCa

from infra.local.ports import choose_ports
from infra.local.postgres import PrivatePostgres
from infra.local.rabbitmq import PrivateRabbitMQ
from infra.postgres.engine import create_database_engine
from infra.rabbitmq.messages import Outgoing, PublishOutcome
from infra.rabbitmq.publisher import Publisher
from infra.rabbitmq.queue_depth import UNKNOWN_DEPTH, QueueDepth
from infra.rabbitmq.session import Buffered, Session
from infra.rabbitmq.topology import ESCROW_HOLD, QUARANTINE_QUEUE, apply
from infra.settings import load_settings

PATIENCE_SECONDS = 30.0
MIB = 1 << 20
HOST = "localhost"  # what the certificates are for; 127.0.0.1 is the same server under another name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ca(folder: Path) -> ThrowawayCa:
    return ThrowawayCa(folder, "ours")


@pytest.fixture(scope="module")
def another_ca(folder: Path) -> ThrowawayCa:
    return ThrowawayCa(folder, "another")


@pytest.fixture(scope="module")
def broker(test_servers: Any, broker_url: str, folder: Path, ca: ThrowawayCa) -> Iterator[str]:
    """Return an amqps URL up to its parameters, for HOST."""
    assert isinstance(test_servers.rabbitmq, PrivateRabbitMQ), "needs a broker that this run may reconfigure"
    port = choose_ports(folder / "broker-ports.json", ["amqps"])["amqps"]
    certificate, key = ca.issue(HOST)
    test_servers.rabbitmq._evaluate(
        "{ok, _} = application:ensure_all_started(ssl),"
        f' rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}},'
        f' [{{certfile, "{certificate}"}}, {{keyfile, "{key}"}}, {{verify, verify_none}}], 1).'
    )
    parts = urlsplit(broker_url)
    yield f"amqps://{parts.username}:{parts.password}@{HOST}:{port}{parts.path}"
    test_servers.rabbitmq._evaluate(f'rabbit_networking:stop_tcp_listener({{"127.0.0.1", {port}}}), ok.')


def test_everything_that_talks_to_the_broker_does_so_over_verified_tls(broker: str, ca: ThrowawayCa) -> None:
    url = f"{broker}?cacertfile={quote(str(ca.file))}"
    apply(url, 1)
    publisher = Publisher(url)
    try:
        [outcome] = publisher.publish([Outgoing("", QUARANTINE_QUEUE, b"over tls")], timeout_s=30)
    finally:
        publisher.close()
    assert outcome is PublishOutcome.CONFIRMED
    assert QueueDepth(url)(QUARANTINE_QUEUE) != UNKNOWN_DEPTH


def _go_on_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"


def test_what_is_read_slowly_over_tls_stays_with_the_broker_and_comes_later(
    broker: str, ca: ThrowawayCa
) -> None:
    """TLS hands on what it has decrypted unasked; even so no more is read than was asked for."""
    url = f"{broker}?cacertfile={quote(str(ca.file))}"
    apply(url, 1)
    bodies = [bytes([number]) * MIB for number in range(24)]
    publisher = Publisher(url)
    try:
        outcomes = publisher.publish([Outgoing("", ESCROW_HOLD, body) for body in bodies], timeout_s=60)
    finally:
        publisher.close()
    assert set(outcomes) == {PublishOutcome.CONFIRMED}
    session = Session(url, ESCROW_HOLD, prefetch=64)
    taken: list[Buffered] = []

    def read(*, slowly: bool = False) -> int:
        session.pump(0.01, slowly=slowly)
        taken.extend(session.delivered)
        session.delivered.clear()
        return len(taken)

    try:
        # The first comes alone; with the second one all the others are on their way.
        _go_on_until(lambda: read() >= 2)
        before = len(taken)
        for _ in range(10):
            read(slowly=True)
        assert len(taken) - before <= 3, "each time a hundred KiB or so, no whole messages"
        _go_on_until(lambda: read() == len(bodies))
        session.settle([one.tag for one in taken])
    finally:
        session.close()
    assert [one.delivery.body for one in taken] == bodies
    _go_on_until(lambda: QueueDepth(url)(ESCROW_HOLD) == 0)


def test_a_broker_of_another_authority_is_refused(broker: str, another_ca: ThrowawayCa) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        apply(f"{broker}?cacertfile={another_ca.file}", 1)


def test_a_broker_that_no_system_authority_knows_is_refused(broker: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        apply(broker, 1)


def test_a_broker_under_another_name_is_refused(broker: str, ca: ThrowawayCa) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        apply(f"{broker.replace(HOST, '127.0.0.1')}?cacertfile={ca.file}", 1)


def test_a_missing_authority_file_is_named(broker: str) -> None:
    with pytest.raises(ValueError, match=r"cacertfile of the broker.s URL: /nowhere\.pem"):
        apply(f"{broker}?cacertfile=/nowhere.pem", 1)


@pytest.fixture(scope="module")
def database(folder: Path, ca: ThrowawayCa) -> Iterator[str]:
    """Return the URL of a PostgreSQL that takes nothing but TLS, for HOST."""
    server = PrivatePostgres(folder / "postgres")
    try:
        server.start()
        server.wait_until_ready()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            for name, made in zip(("ssl_cert_file", "ssl_key_file"), ca.issue(HOST), strict=True):
                file = server.folder / made.name
                shutil.copyfile(made, file)
                file.chmod(0o600)
                server._give_to_server(file)
                connection.execute(f"ALTER SYSTEM SET {name} = '{file}'")  # type: ignore[arg-type]
            connection.execute("ALTER SYSTEM SET ssl = on")
        server.stop()
        server.start()
        server.wait_until_ready()
        parts = urlsplit(server.url("postgres"))
        yield f"postgresql://{parts.username}:{parts.password}@{HOST}:{parts.port}/postgres"
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


def connect(url: str) -> bool:
    """Connect as a worker does; tell whether the session is encrypted."""
    settings = load_settings(
        broker_url="amqp://unused.invalid",
        database_url=url,
        encryption_key=base64.b64encode(bytes(32)).decode(),
    )
    engine = create_database_engine(settings, application_name="test")
    try:
        with engine.connect() as connection:
            return bool(
                connection.execute(
                    text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                ).scalar_one()
            )
    finally:
        engine.dispose()


def test_the_right_database_is_spoken_to_over_tls(database: str, ca: ThrowawayCa) -> None:
    assert connect(f"{database}?sslmode=verify-full&sslrootcert={ca.file}")


def test_a_database_of_another_authority_is_refused(database: str, another_ca: ThrowawayCa) -> None:
    with pytest.raises(OperationalError, match="certificate verify failed"):
        connect(f"{database}?sslmode=verify-full&sslrootcert={another_ca.file}")


def test_a_database_under_another_name_is_refused(database: str, ca: ThrowawayCa) -> None:
    with pytest.raises(OperationalError, match="does not match host name"):
        connect(f"{database.replace(HOST, '127.0.0.1')}?sslmode=verify-full&sslrootcert={ca.file}")
