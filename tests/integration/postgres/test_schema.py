"""The migrations and the tables that queries are typed by are one schema."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, text

from infra.postgres.migrate import current_revision, head_revision, migrate
from infra.postgres.tables import metadata

_CONSTRAINTS = """
    SELECT conrelid::regclass::text AS of_table, conname, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype = 'c'
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"


def _sqlalchemy(url: str) -> str:
    return "postgresql+psycopg://" + url.split("://", 1)[1]


def _catalogue(url: str) -> set[tuple[str, ...]]:
    engine = create_engine(_sqlalchemy(url))
    try:
        with engine.connect() as connection:
            rows = [*connection.execute(text(_CONSTRAINTS)), *connection.execute(text(_INDEXES))]
            return {tuple(row) for row in rows if "alembic" not in str(row)}
    finally:
        engine.dispose()


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
def test_migrated_schema_has_the_tables_that_queries_expect(database_url: str) -> None:
    engine = create_engine(_sqlalchemy(database_url))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
        assert current_revision(connection) == head_revision()
    engine.dispose()
    assert differences == []


def test_migrated_schema_has_the_checks_and_indexes_that_the_tables_name(
    database_url: str, blank_database_url: str
) -> None:
    """A rule that stands in the model but not in the database protects nobody."""
    engine = create_engine(_sqlalchemy(blank_database_url))
    MetaData.create_all(metadata, engine)
    engine.dispose()
    assert _catalogue(blank_database_url) == _catalogue(database_url)


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = _catalogue(database_url)
    migrate(database_url)
    assert _catalogue(database_url) == before
