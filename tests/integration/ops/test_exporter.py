"""What the exporter says of the books, and what it says when it cannot read them."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text
from workflow_support.desk import Desk

from infra.local.ports import choose_ports
from workers.exporter.books import GAUGES, read_gauges

_PATIENCE_SECONDS = 60.0


def values(engine: Engine, name: str) -> dict[tuple[str, ...], float]:
    with engine.begin() as connection:
        (family,) = [found for found in read_gauges(connection) if found.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_every_gauge_can_be_read(engine: Engine, desk: Desk) -> None:
    with engine.begin() as connection:
        assert {family.name for family in read_gauges(connection)} == {gauge.name for gauge in GAUGES}


def test_a_withdrawable_balance_that_its_postings_do_not_explain_shows(engine: Engine, desk: Desk) -> None:
    """The gauge that must be 0: it says so here, and by how much where a row was changed by hand."""
    assert set(values(engine, "holdfast_ledger_imbalance_minor").values()) <= {0.0}
    with engine.connect() as connection:
        changing = connection.begin()
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(
            text("INSERT INTO available_balances (shop_id, seller_id, currency, available_minor)"
                 " VALUES ('nobody', 's', 'CHF', 7)")
        )  # fmt: skip
        (gauge,) = [gauge for gauge in GAUGES if gauge.name == "holdfast_ledger_imbalance_minor"]
        found = {tuple(s.labels.values()): s.value for s in gauge.read(connection).samples}
        changing.rollback()
    assert found[("CHF",)] == 7


@pytest.fixture
def exporter(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[str]:
    port = choose_ports(tmp_path / "ports.json", ["metrics"])["metrics"]
    environment = {
        **os.environ,
        "HOLDFAST_DATABASE_URL": database_url,
        "HOLDFAST_BROKER_URL": broker_url,
        "HOLDFAST_ENCRYPTION_KEY": "A" * 43 + "=",
        "HOLDFAST_METRICS_PORT": str(port),
        "HOLDFAST_EXPORTER_SECONDS": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-m", "workers.exporter.worker"], env=environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(_PATIENCE_SECONDS) == 0


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own, on loopback
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def wait_for(url: str, status: int) -> str:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (answer := ask(url))[0] != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer[1]


def test_it_serves_its_last_reading_and_says_when_it_is_old(exporter: str, engine: Engine) -> None:
    wait_for(f"{exporter}/readyz", 200)
    families = {family.name for family in text_string_to_metric_families(ask(f"{exporter}/metrics")[1])}
    assert {gauge.name for gauge in GAUGES} <= families
    with engine.connect() as locking:
        # Nobody can read what every reading needs: as good as away, and over when this transaction is.
        locking.execute(text("LOCK TABLE seal IN ACCESS EXCLUSIVE MODE"))
        assert "old" in wait_for(f"{exporter}/readyz", 503)
        assert ask(f"{exporter}/livez")[0] == 200
        assert "holdfast_balance_minor" in ask(f"{exporter}/metrics")[1]
    wait_for(f"{exporter}/readyz", 200)
