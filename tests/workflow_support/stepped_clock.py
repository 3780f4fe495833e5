"""
The database's clock, in the test's hand: it stands still until it is stepped, or runs on and can be stepped.

Every time that the workflow knows is read by SQL from `clock_timestamp()`. In a test's database another
function of that name stands before PostgreSQL's own in the search path, so handlers, sweep and audit all
live in the test's time, and the code has no seam for it that could be left open in production. Tables'
defaults keep PostgreSQL's clock; no row of the workflow depends on one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

_SET_UP = """
    CREATE SCHEMA stepped;
    CREATE TABLE stepped.hands (stands_at timestamptz, ahead interval NOT NULL);
    INSERT INTO stepped.hands SELECT pg_catalog.clock_timestamp(), interval '0';
    CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT coalesce(stands_at, pg_catalog.clock_timestamp()) + ahead FROM stepped.hands';
"""


class SteppedClock:
    """The hands of one database's clock."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def set(self, moment: datetime) -> None:
        self._connection.execute("UPDATE stepped.hands SET stands_at = %s, ahead = interval '0'", [moment])

    def step(self, seconds: int) -> None:
        """Step forward, or back as NTP may do it."""
        self._connection.execute("UPDATE stepped.hands SET ahead = ahead + %s", [timedelta(seconds=seconds)])

    def run(self) -> None:
        """Go with PostgreSQL's own clock, as far ahead of it as it is stepped from now on."""
        self._connection.execute("UPDATE stepped.hands SET stands_at = NULL, ahead = interval '0'")


@contextmanager
def stepped_clock(database_url: str) -> Iterator[SteppedClock]:
    """Give a database a clock of its own, before anybody else connects to it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_SET_UP)
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET search_path = stepped, pg_catalog, public").format(
                sql.Identifier(connection.info.dbname)
            )
        )
        yield SteppedClock(connection)
