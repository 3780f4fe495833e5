"""A ledger that was loaded from a dump into another server, whose transaction ids begin anew."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from workflow_support.desk import DAY_SECONDS, ENCRYPTION_KEY, Desk, database_engine

from infra.local.postgres import PrivatePostgres, find_postgres_programs
from infra.postgres.audit import run_audit
from infra.postgres.ledger_store import read_seller_balances, seal_postings
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
