"""Each kind of process has the rights that it needs and no others, in the database and not only on paper."""

import re
import secrets
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql
from sqlalchemy import create_engine

from infra.postgres.roles import COLUMNS, GRANTS, NotTheOwner, RolesMissing, grant_roles, role_name
from infra.postgres.tables import metadata
from workers.exporter.books import GAUGES, Gauge

PAGE = Path(__file__).parents[3] / "docs" / "database-roles.md"
_LETTER = {"SELECT": "r", "INSERT": "i", "UPDATE": "u", "DELETE": "d"}


def _grant(url: str) -> None:
    engine = create_engine("postgresql+psycopg://" + url.split("://", 1)[1])
    try:
        with engine.begin() as connection:
            grant_roles(connection)
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def granted_url(database_url: str) -> str:
    _grant(database_url)
    _grant(database_url)  # as every migration does again
    return database_url


@pytest.fixture(scope="module")
def as_role(granted_url: str) -> Callable[[str, str], None]:
    """Return a function that runs one statement as a login that has a group role, and nothing more."""

    def run(process: str, statement: str) -> None:
        with psycopg.connect(granted_url) as connection:
            login = f"hf_test_{process}_{secrets.token_hex(4)}"
            connection.execute(
                sql.SQL("CREATE ROLE {} IN ROLE {}").format(
                    sql.Identifier(login), sql.Identifier(role_name(process))
                )
            )
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(login)))
            try:
                connection.execute(statement.encode())
            finally:
                connection.rollback()

    return run


def test_every_table_has_a_line_and_every_line_a_table() -> None:
    """Whoever adds a table says who may use it."""
    listed = {table for tables in GRANTS.values() for table in tables}
    used = {
        table
        for process, tables in GRANTS.items()
        if process in {"payment", "escrow", "payout", "relay"}
        for table in tables
    }
    assert listed == {*metadata.tables, "alembic_version", "entries", "balance_lines", "payouts"}
    only_operators = {"operator_actions", "password_resets", "shop_payouts", "entries", "balance_lines"}
    assert {*metadata.tables} - used <= only_operators, "a table that no worker may use: name it here"


def test_the_database_grants_what_the_committed_table_shows(granted_url: str) -> None:
    header, _, *rows = re.findall(r"^\|(.+)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    roles = [cell.strip().strip("`") for cell in header.split("|")][1:]
    shown = set()
    for row in rows:
        table, *cells = [cell.strip().strip("`") for cell in row.split("|")]
        for role, letters in zip(roles, cells, strict=True):
            shown |= {(role, table, letter) for letter in letters if letter != "-"}
    with psycopg.connect(granted_url) as connection:
        found = connection.execute(
            "SELECT grantee, table_name, privilege_type FROM information_schema.role_table_grants"
            " WHERE grantee LIKE 'holdfast\\_%' AND table_schema = 'public'"
        ).fetchall()
    assert {(role, table, _LETTER.get(right, right)) for role, table, right in found} == shown


def test_columns_alone_are_granted_as_the_page_says(granted_url: str) -> None:
    with psycopg.connect(granted_url) as connection:
        found = connection.execute(
            "SELECT grantee, table_name, column_name FROM information_schema.column_privileges AS c"
            " WHERE grantee LIKE 'holdfast\\_%' AND table_schema = 'public' AND NOT EXISTS ("
            "  SELECT FROM information_schema.role_table_grants AS t"
            "  WHERE (t.grantee, t.table_name) = (c.grantee, c.table_name))"
        ).fetchall()
    assert set(found) == {
        (role_name(process), table, column)
        for process, tables in COLUMNS.items()
        for table, columns in tables.items()
        for column in columns
    }


@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: gauge.name)
def test_the_exporter_may_read_all_that_it_shows(as_role: Callable[[str, str], None], gauge: Gauge) -> None:
    as_role("viewer", gauge.query.replace(":most", "1"))


@pytest.mark.parametrize("table", ["postings", "chain_links", "chain_heads"])
def test_nobody_may_change_or_delete_what_was_posted(granted_url: str, table: str) -> None:
    with psycopg.connect(granted_url) as connection:
        [acl] = (
            connection.execute(
                "SELECT array_agg(DISTINCT privilege_type) FROM pg_class, aclexplode(relacl)"
                " WHERE relname = %s",
                [table],
            ).fetchone()
            or ()
        )
    assert not {"UPDATE", "DELETE", "TRUNCATE"} & set(acl)


@pytest.mark.parametrize(
    ("process", "statement"),
    [
        *[
            (process, statement)
            for process in GRANTS
            for statement in (
                "UPDATE postings SET amount_minor = 1",
                "DELETE FROM postings",
                "TRUNCATE postings",
                "DELETE FROM chain_links",
                "UPDATE chain_heads SET hash = ''",
                "ALTER TABLE postings DISABLE TRIGGER ALL",
                "DROP TABLE holds",
                "CREATE TABLE mine (a int)",
            )
        ],
        ("payment", "SELECT password_hash FROM sellers"),
        ("payment", "SELECT * FROM destinations"),
        ("payment", "UPDATE holds SET state = 'released'"),
        ("payment", "INSERT INTO transfers DEFAULT VALUES"),
        ("payment", "UPDATE available_balances SET available_minor = 1"),
        ("escrow", "SELECT password_hash FROM sellers"),
        ("escrow", "UPDATE bank_credits SET payment_id = NULL"),
        ("escrow", "UPDATE withdrawals SET state = 'accepted'"),
        ("payout", "UPDATE holds SET state = 'released'"),
        ("payout", "UPDATE payments SET funded_at = now()"),
        ("payout", "INSERT INTO withdrawal_reviews DEFAULT VALUES"),
        ("payout", "DELETE FROM payout_pauses"),
        ("payout", "UPDATE withdrawal_limits SET per_day_minor = NULL"),
        ("relay", "INSERT INTO postings DEFAULT VALUES"),
        ("relay", "SELECT * FROM destinations"),
        ("relay", "UPDATE chain_links SET hash = ''"),
        ("relay", "INSERT INTO sender_keys DEFAULT VALUES"),
        ("operator", "DELETE FROM operator_actions"),
        ("operator", "UPDATE operator_actions SET operator = 'x'"),
        ("operator", "INSERT INTO chain_links DEFAULT VALUES"),
        ("operator", "INSERT INTO payments DEFAULT VALUES"),
        ("viewer", "SELECT * FROM sellers"),
        ("viewer", "SELECT * FROM holdfast_keys"),
        ("viewer", "INSERT INTO shops DEFAULT VALUES"),
        ("viewer", "UPDATE shops SET fee_bps = 0"),
    ],
)
def test_a_role_is_refused_what_is_not_its_own(
    as_role: Callable[[str, str], None], process: str, statement: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        as_role(process, statement)


def test_a_user_who_may_not_create_roles_is_told(granted_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.postgres.roles._PREFIX", f"hf_none_{secrets.token_hex(4)}_")
    engine = create_engine("postgresql+psycopg://" + granted_url.split("://", 1)[1])
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE ROLE hf_test_plain; ALTER TABLE postings OWNER TO hf_test_plain;"
                " SET LOCAL ROLE hf_test_plain"
            )
            with pytest.raises(RolesMissing, match="may not create roles"):
                grant_roles(connection)
            connection.rollback()
    finally:
        engine.dispose()


def test_who_does_not_own_the_tables_is_told_and_grants_nothing(granted_url: str) -> None:
    engine = create_engine("postgresql+psycopg://" + granted_url.split("://", 1)[1])
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL ROLE holdfast_operator")
            with pytest.raises(NotTheOwner, match="belong to another database user"):
                grant_roles(connection)
            connection.rollback()
    finally:
        engine.dispose()
