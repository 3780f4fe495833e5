"""Every SQL statement that a page shows can be run as it stands there, by the login that it is meant for."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine

from infra.postgres.roles import grant_roles, role_name

DOCS = Path(__file__).parents[3] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

_BLOCK = re.compile(r"^ *```sql\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`((?:SELECT|WITH|INSERT INTO|UPDATE|DELETE FROM) [^`]+)`(?!`)")


def _statements(page: str) -> Iterator[str]:
    for block in _BLOCK.findall(page):
        yield from filter(None, map(str.strip, block.split(";")))
    yield from (span.strip().rstrip(";") for span in _SPAN.findall(re.sub(r"(?s)```.*?```", "", page)))


SHOWN = [
    (page.stem, " ".join(statement.split()))
    for page in PAGES
    for statement in _statements(page.read_text(encoding="utf-8"))
]
_QUERIES = [
    pytest.param(sql, id=f"{page}: {sql[:60]}") for page, sql in SHOWN if not sql.startswith("CREATE")
]


@pytest.fixture(scope="module")
def granted(database_url: str) -> Iterator[psycopg.Connection]:
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    with engine.begin() as connection:
        grant_roles(connection)
    engine.dispose()
    with psycopg.connect(database_url) as raw:
        yield raw


def as_operator(granted: psycopg.Connection, statement: str) -> None:
    """Plan a statement with an operator's rights, and check those; nothing is carried out."""
    with granted.transaction(force_rollback=True):
        granted.execute(f"SET LOCAL ROLE {role_name('operator')}".encode())
        granted.execute(f"PREPARE shown AS {statement}".encode())
        # Without ANALYZE it runs nothing, and rights are checked as if it did.
        granted.execute(b"EXPLAIN EXECUTE shown")
    granted.execute(b"DEALLOCATE ALL")


@pytest.mark.parametrize("statement", _QUERIES)
def test_a_statement_of_the_docs_can_be_run_by_an_operator(
    granted: psycopg.Connection, statement: str
) -> None:
    as_operator(granted, re.sub(r"\b(PID)\b", "1", statement))


def test_the_role_of_a_process_is_made_as_the_page_shows(granted: psycopg.Connection) -> None:
    creating = [sql for _, sql in SHOWN if sql.startswith("CREATE")]
    assert creating
    for statement in creating:
        with granted.transaction(force_rollback=True):
            granted.execute(statement.encode())


def test_the_pages_show_what_this_looks_for() -> None:
    """Else a change of how pages are written would leave nothing to check."""
    assert len(_QUERIES) >= 10
    assert {"runbook", "running"} <= {page for page, _ in SHOWN}


def test_a_statement_that_is_wrong_or_not_the_operators_is_found(granted: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn):
        as_operator(granted, "SELECT no_such_column FROM holds")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_operator(granted, "UPDATE postings SET amount_minor = 1")
