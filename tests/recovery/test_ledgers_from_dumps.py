"""A ledger that was loaded from a dump into another server, whose transaction ids begin anew."""

import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from workflow_support.desk import DAY_SECONDS, ENCRYPTION_KEY, Desk, database_engine

from infra.local.postgres import PrivatePostgres, find_postgres_programs
from infra.postgres.audit import run_audit
from infra.postgres.chain import chain_postings, read_coverage
from infra.postgres.ledger_store import read_seller_balances, seal_postings
from infra.postgres.roles import GRANTS, grant_roles, role_name, role_statements
from ops import cli
from ops.store.recovery import belongs_to_another_server

# Far more than setting up the young server takes.
AGE = 20_000


def load_dump(source_url: str, target_url: str) -> None:
    programs = find_postgres_programs()
    assert programs is not None
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    dump = subprocess.run(
        [programs / "pg_dump", "--no-owner", source_url], check=True, capture_output=True, env=environment
    )
    subprocess.run(
        [programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", target_url],
        input=dump.stdout,
        check=True,
        capture_output=True,
        env=environment,
    )


def trade(desk: Desk, shop: str) -> None:
    """A release of 10,000 for one seller, sealed if it may be."""
    desk.released_order(shop, splits={"s-1": 10_000})
    with desk.engine.begin() as connection:
        seal_postings(connection)


@pytest.mark.timeout(120)
def test_a_ledger_from_a_dump_is_noticed_and_counts_right_once_it_is_resealed(
    database_url: str, young_server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with database_engine(database_url) as engine:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(_GROW_OLD))
        desk = Desk(engine)
        shop = desk.a_shop()
        trade(desk, shop)
        desk.released_order(shop, splits={"s-1": 5})
        desk.close()
        with engine.connect() as connection:
            assert not belongs_to_another_server(connection)
    target = young_server.url("holdfast")
    load_dump(database_url, target)
    for name, value in {
        "DATABASE_URL": target,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "PROTECTION_DAY_SECONDS": str(DAY_SECONDS),
    }.items():
        monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with database_engine(target) as engine:
        with engine.connect() as connection:
            assert belongs_to_another_server(connection)
        desk = Desk(engine)
        desk.released_order(shop, splits={"s-1": 10_000})
        with engine.connect() as connection:
            (balance,) = read_seller_balances(connection, shop)
        assert balance.available == 10_005, "what is booked here counts as sealed, and is missing from sums"
        assert cli.main(["recover", "reseal", "--why", "loaded from a dump", "--operator", "ada"]) == 0
        assert cli.main(["recover", "reseal", "--why", "again", "--operator", "ada"]) == 0
        trade(desk, shop)
        desk.close()
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            (balance,) = read_seller_balances(connection, shop)
            assert balance.available == 30_005
            connection.execute(text("UPDATE outbox SET published_at = clock_timestamp()"))
            _store_day(connection)
            assert [finding.check.name for finding in run_audit(connection) if not finding.ok] == []
            counted = connection.execute(
                text("SELECT count(*) FROM operator_actions WHERE action = 'ledger_resealed'")
            ).scalar_one()
        assert counted == 1


@pytest.mark.timeout(240)
def test_a_reseal_is_the_owners_and_leaves_nothing_unproven(  # noqa: PLR0915 - one story
    database_url: str, young_server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a login of their own, and the young server outgrows the old one before the relay comes."""
    with database_engine(database_url) as engine:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(_GROW_OLD))
        desk = Desk(engine)
        shop = desk.a_shop()
        trade(desk, shop)
        with engine.begin() as connection:
            assert chain_postings(connection) > 0
        desk.released_order(shop, splits={"s-1": 5})
        desk.close()
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE postings DISABLE TRIGGER USER"))
            connection.execute(text(_WITH_THE_LARGEST_XID))
            connection.execute(text("ALTER TABLE postings ENABLE TRIGGER USER"))
            before = read_coverage(connection)
    assert 0 < before.chained < before.postings
    logins = young_logins(young_server)
    load_dump(database_url, logins["owner"])
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", ENCRYPTION_KEY)
    monkeypatch.setenv("HOLDFAST_PROTECTION_DAY_SECONDS", str(DAY_SECONDS))
    with database_engine(logins["owner"]) as owner, owner.begin() as connection:
        grant_roles(connection)
        _store_day(connection)
        connection.execute(text("UPDATE outbox SET published_at = clock_timestamp()"))
    reseal = ("recover", "reseal", "--why", "moved", "--operator", "ada")
    for login, exit_code in (("operator", 1), ("relay", 1), ("payout", 1), ("owner", 0)):
        monkeypatch.setenv("HOLDFAST_DATABASE_URL", logins[login])
        assert cli.main(reseal) == exit_code, login
    assert cli.main(reseal) == 0, "again, and nothing is changed"
    with database_engine(logins["owner"]) as owner:
        desk = Desk(owner)
        desk.released_order(shop, splits={"s-1": 7})
        desk.close()
        with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(_GROW_OLD))
            connection.execute(text("UPDATE outbox SET published_at = clock_timestamp()"))
        with pytest.raises(ProgrammingError, match="permission denied"), owner.begin() as connection:
            connection.execute(text("UPDATE postings SET amount_minor = 1"))
        with owner.connect() as connection:
            assert not read_coverage(connection).judged, "and the audit says so"
    with database_engine(logins["relay"]) as relay:
        for work in (seal_postings, chain_postings):
            with relay.begin() as connection:
                assert work(connection) > 0
    with database_engine(logins["operator"]) as operator, operator.connect() as connection:
        after = read_coverage(connection)
        assert after.judged
        assert after.chained == after.postings > before.postings
        findings = {finding.check.name: finding for finding in run_audit(connection)}
        assert [name for name, finding in findings.items() if not finding.ok] == []
        assert findings["past_postings_are_chained"].checked == after.postings
        assert findings["chained_postings_are_unchanged"].checked == after.postings


def young_logins(server: PrivatePostgres) -> dict[str, str]:
    """Give a server an owner who is nobody special, and a login of each kind; return their URLs."""
    urls = {}
    with psycopg.connect(server.url("holdfast"), autocommit=True) as connection:
        for statement in role_statements():
            connection.execute(statement.encode())
        for kind in ("owner", *GRANTS):
            login, password = f"hf_{kind}", secrets.token_hex(8)
            connection.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}'".encode())
            if kind in GRANTS:
                connection.execute(f"GRANT {role_name(kind)} TO {login}".encode())
            urls[kind] = server.url_of(login, password, "holdfast")
        connection.execute(b"ALTER DATABASE holdfast OWNER TO hf_owner")
    return urls


def _store_day(connection: Any) -> None:
    connection.execute(
        text(
            "INSERT INTO deployment (deployment_id, protection_day_seconds) VALUES (1, :d)"
            " ON CONFLICT DO NOTHING"
        ),
        {"d": DAY_SECONDS},
    )


_GROW_OLD = f"""
    DO $$ BEGIN
        FOR i IN 1..{AGE} LOOP
            PERFORM pg_current_xact_id();
            COMMIT;
        END LOOP;
    END $$
"""

# The largest that there is; no server has ever given it out.
_WITH_THE_LARGEST_XID = """
    UPDATE postings SET xact = '18446744073709551615'
    WHERE posting_id = (SELECT posting_id FROM postings ORDER BY booked_at DESC LIMIT 1)
"""
