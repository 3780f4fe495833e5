"""Bring a database's schema to the newest revision, and tell which one it is at."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

_MIGRATIONS = Path(__file__).parent / "migrations"

# Any number; the same one for everybody who migrates this database.
_MIGRATION_LOCK = 7_203_111_407


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def migrate(database_url: str) -> None:
    """
    Run all missing migrations, one transaction each; two at once wait for each other.

    A migration that can't get its lock within 5 seconds fails and changes nothing, instead of stopping
    the workers behind it; run it again.
    """
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    try:
        with engine.connect() as connection:
            connection.execute(text("SET timezone = 'UTC'"))
            connection.execute(text("SET lock_timeout = '5s'"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            connection.commit()
            try:
                command.upgrade(_config(connection), "head")
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
                connection.commit()
    finally:
        engine.dispose()


def head_revision() -> str:
    """Return the newest revision that this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current_revision(connection: Connection) -> str:
    """Return the revision that the database is at; empty for a database without our schema."""
    return MigrationContext.configure(connection).get_current_revision() or ""
