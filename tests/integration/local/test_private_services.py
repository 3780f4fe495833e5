"""The private servers: loopback only, durable settings, each test's share apart from the others'."""

import os
import pwd
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import psycopg
import pytest
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker

from infra.local.postgres import PrivatePostgres


@pytest.fixture
def private_postgres(tmp_path: Path) -> Iterator[PrivatePostgres]:
    """A server of the test's own in a folder that other users can't enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = PrivatePostgres(closed / "postgres")
    yield server
    server.stop()


def test_module_database_has_the_schema_and_no_rows(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        counted = connection.execute("SELECT count(*) FROM postings").fetchone()
    assert counted == (0,)


def test_blank_database_has_no_tables(blank_database_url: str) -> None:
    with psycopg.connect(blank_database_url) as connection:
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(query).fetchone() == (0,)


def test_vhosts_do_not_see_each_others_queues(make_vhost: Callable[[], str]) -> None:
    first, second = make_vhost(), make_vhost()
    queue = f"mine-{secrets.token_hex(4)}"
    one = pika.BlockingConnection(pika.URLParameters(first))
    other = pika.BlockingConnection(pika.URLParameters(second))
    try:
        one.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
            other.channel().queue_declare(queue, passive=True)
    finally:
        one.close()
        other.close()


def test_broker_refuses_a_wrong_password(broker_url: str) -> None:
    forged = re.sub(r"(?<=:)[^:@/]+(?=@)", "wrong", broker_url)
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(forged))


def test_database_refuses_a_wrong_password(blank_database_url: str) -> None:
    forged = re.sub(r"(?<=:)[^:@/]+(?=@)", "wrong", blank_database_url)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(forged)


def test_committed_rows_survive_a_killed_server(private_postgres: PrivatePostgres) -> None:
    """Development runs with the guarantees of production: what was committed is there after a crash."""
    private_postgres.start()
    private_postgres.wait_until_ready()
    private_postgres.ensure_database("holdfast")
    private_postgres.ensure_database("holdfast")
    with psycopg.connect(private_postgres.url("holdfast")) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == ("on",)
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")

    private_postgres.kill()
    assert not private_postgres.is_running
    private_postgres.start()
    private_postgres.wait_until_ready()
    with psycopg.connect(private_postgres.url("holdfast")) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_server_runs_in_a_closed_folder_whose_permissions_stay(private_postgres: PrivatePostgres) -> None:
    """As root PostgreSQL is another user, who could not pass through a checkout under /root."""
    before = private_postgres.folder.parent.stat()
    private_postgres.start()
    private_postgres.wait_until_ready()
    after = private_postgres.folder.parent.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    owner = (private_postgres.folder / "data").stat().st_uid
    assert owner == (pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else os.geteuid())


def test_server_keeps_its_port_over_a_restart(private_postgres: PrivatePostgres) -> None:
    private_postgres.start()
    private_postgres.wait_until_ready()
    before = private_postgres.url("postgres")
    private_postgres.stop()
    assert not private_postgres.is_running
    private_postgres.start()
    private_postgres.wait_until_ready()
    assert private_postgres.url("postgres") == before
