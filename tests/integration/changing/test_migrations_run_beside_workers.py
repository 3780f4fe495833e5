"""Migrations run while workers work: none takes a long lock, and what older code needs stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from migration_lint import Migration, SentStatement, problems_of
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from infra.postgres import migrate as migrations
from infra.postgres.migrate import current_revision, migrate, schema_problem

# The first release's own migrations build an empty database; no older code ever ran on what they change.
FIRST_RELEASE = "0002"


@pytest.fixture
def blank(databases: Any) -> Iterator[str]:
    name = databases.create()
    yield databases.url(name)
    databases.drop(name)


def _engine(url: str) -> Engine:
    return create_engine("postgresql+psycopg://" + url.split("://", 1)[1])


def carried_out(url: str) -> list[Migration]:
    """Run all migrations after the first release's, one by one, and write down what they send."""
    migrate(url, to=FIRST_RELEASE)
    engine = _engine(url)
    sent: list[SentStatement] = []

    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(SentStatement(statement, in_transaction=not _autocommits(connection)))

    event.listen(engine, "before_cursor_execute", note)
    made = []
    with engine.connect() as connection:
        for script in migrations._pending(FIRST_RELEASE):
            before = _files(connection)
            connection.rollback()
            sent.clear()
            command.upgrade(migrations._config(connection), script.revision)
            connection.commit()
            statements = tuple(one for one in sent if "alembic_version" not in one.sql)
            after = _files(connection)
            made.append(
                Migration(
                    script.revision,
                    migrations._contracts(script),
                    statements,
                    frozenset(before),
                    frozenset(table for table in before if table in after and before[table] != after[table]),
                )
            )
    engine.dispose()
    return made


def _autocommits(connection: Any) -> bool:
    return bool(connection.connection.dbapi_connection.autocommit)


def _files(connection: Any) -> dict[str, int]:
    rows = connection.execute(
        text("""
            SELECT relname, pg_relation_filenode(oid) AS file FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        """)
    )
    return {row.relname: row.file for row in rows}


def test_no_migration_keeps_the_workers_waiting_or_breaks_the_release_before(blank: str) -> None:
    made = carried_out(blank)
    assert made, "there are migrations after the first release"
    assert {one.revision: problems_of(one) for one in made if problems_of(one)} == {}


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("CREATE INDEX x ON payments (shop_id)", "without CONCURRENTLY"),
        ("CREATE UNIQUE INDEX x ON payments (shop_id)", "without CONCURRENTLY"),
        ("CREATE INDEX CONCURRENTLY x ON payments (shop_id)", "inside a transaction"),
        ("ALTER TABLE holds ADD COLUMN x text NOT NULL", "NOT NULL column"),
        ("ALTER TABLE holds ADD COLUMN x uuid DEFAULT gen_random_uuid()", "no constant"),
        ("ALTER TABLE holds ALTER COLUMN currency TYPE varchar(3)", "another type"),
        ("ALTER TABLE holds ALTER COLUMN released_at SET NOT NULL", "only a contract migration"),
        ("ALTER TABLE holds DROP COLUMN rearmed_at", "only a contract migration"),
        ("ALTER TABLE holds RENAME COLUMN rearmed_at TO x", "only a contract migration"),
        ("DROP TABLE inbox", "only a contract migration"),
        ("ALTER TABLE holds ADD CONSTRAINT x CHECK (amount_minor > 0)", "without NOT VALID"),
        (
            "ALTER TABLE holds ADD CONSTRAINT x FOREIGN KEY (payment_id) REFERENCES payments",
            "without NOT VALID",
        ),
        ("ALTER TABLE holds ADD CONSTRAINT x UNIQUE (order_id)", "USING INDEX"),
        ("UPDATE payments SET reason = NULL", "in one go"),
        ("DELETE FROM events", "in one go"),
        ("LOCK TABLE payments IN EXCLUSIVE MODE", "on purpose"),
        ("SET lock_timeout = 0", "time-out"),
    ],
)
def test_lint_finds(statement: str, complaint: str) -> None:
    existing = frozenset({"payments", "holds", "inbox", "events"})
    migration = Migration("9999", False, (SentStatement(statement, in_transaction=True),), existing)
    [problem] = problems_of(migration)
    assert complaint in problem


def test_lint_finds_a_validation_behind_the_lock_of_its_own_transaction() -> None:
    statements = (
        SentStatement("ALTER TABLE holds ADD CONSTRAINT x CHECK (amount_minor > 0) NOT VALID", True),
        SentStatement("ALTER TABLE holds VALIDATE CONSTRAINT x", True),
    )
    [problem] = problems_of(Migration("9999", False, statements, frozenset({"holds"})))
    assert "migration of its own" in problem


def test_lint_finds_rows_that_are_written_again() -> None:
    migration = Migration("9999", False, (), frozenset({"holds"}), rewritten=frozenset({"holds"}))
    assert problems_of(migration) == ["holds: every row is written again"]


def test_lint_lets_pass_what_is_harmless() -> None:
    harmless = [
        "CREATE TABLE fresh (x integer PRIMARY KEY)",
        "CREATE INDEX y ON fresh (x)",
        "CREATE INDEX z ON shops (state)",
        "ALTER TABLE holds ADD COLUMN x text",
        "ALTER TABLE holds ADD COLUMN y integer DEFAULT 0 NOT NULL",
        "ALTER TABLE holds ADD CONSTRAINT x CHECK (amount_minor > 0) NOT VALID",
    ]
    statements = tuple(SentStatement(sql, in_transaction=True) for sql in harmless)
    assert problems_of(Migration("9999", False, statements, frozenset({"holds", "shops"}))) == []


def test_a_contraction_must_say_which_code_it_leaves_running() -> None:
    drop = SentStatement("ALTER TABLE holds DROP COLUMN rearmed_at", in_transaction=True)
    mark = SentStatement("UPDATE deployment SET oldest_code = '9998'", in_transaction=True)
    existing = frozenset({"holds", "deployment"})
    [problem] = problems_of(Migration("9999", True, (drop,), existing))
    assert "oldest_code" in problem
    assert problems_of(Migration("9999", True, (drop, mark), existing)) == []


def test_a_migration_that_gets_no_lock_gives_up_soon_and_changes_nothing(blank: str) -> None:
    migrate(blank, to=FIRST_RELEASE)
    with psycopg.connect(blank) as worker:
        worker.execute("LOCK TABLE deployment IN ROW EXCLUSIVE MODE")
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate(blank, to="0003", lock_timeout_ms=200)
    engine = _engine(blank)
    with engine.connect() as connection:
        assert current_revision(connection) == FIRST_RELEASE
    engine.dispose()
    migrate(blank)


# What alembic knows after the next release's migrations; each is one file.
_EXPANDING = """
revision, down_revision = "{revision}", "{before}"

def upgrade() -> None:
    from alembic import op
    op.execute("ALTER TABLE holds ADD COLUMN note_{revision} text")
"""
_CONTRACTING = """
revision, down_revision = "{revision}", "{before}"

def upgrade() -> None:
    from alembic import op
    op.execute("ALTER TABLE holds DROP COLUMN note_{before}")
    op.execute("UPDATE deployment SET oldest_code = '{before}'")
"""


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """The migrations of an imagined next release: one that expands and one that contracts."""
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for path in (*migrations._MIGRATIONS.glob("*.py"), *migrations._MIGRATIONS.glob("versions/*.py")):
        (folder / path.relative_to(migrations._MIGRATIONS)).write_text(path.read_text())
    head = migrations.head_revision()
    for revision, before, name, source in (
        ("9001", head, "9001_notes.py", _EXPANDING),
        ("9002", "9001", "9002_contract_notes.py", _CONTRACTING),
    ):
        (folder / "versions" / name).write_text(source.format(revision=revision, before=before))
    return folder


def test_older_code_starts_on_a_schema_that_only_expanded_and_refuses_one_that_contracted(
    blank: str, next_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(blank)
    engine = _engine(blank)

    def as_new_code() -> pytest.MonkeyPatch:
        monkeypatch.setattr(migrations, "_MIGRATIONS", next_release)
        return monkeypatch

    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, 86400)")
        )
        assert schema_problem(connection) is None
    with engine.connect() as connection:
        as_new_code()
        assert "run `holdfast migrate`" in (schema_problem(connection) or "")
        connection.rollback()
        migrate(blank)
        assert current_revision(connection) == "9001", "what contracts waits for the last old process"
        assert migrations.pending_contraction(connection) == "9002"
        assert schema_problem(connection) is None
        monkeypatch.undo()
        assert schema_problem(connection) is None, "old code goes on, and may be started again"
        connection.rollback()
        as_new_code()
        migrate(blank, contract=True)
        assert (current_revision(connection), schema_problem(connection)) == ("9002", None)
        monkeypatch.undo()
        assert "run the newer release" in (schema_problem(connection) or "")
    engine.dispose()
