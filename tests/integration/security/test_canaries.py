"""The search for planted secrets finds them: else it would prove nothing of the places that it searches."""

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY, Counter
from workflow_support import canaries


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a secret that is watched for in this test only."""
    monkeypatch.setattr(canaries, "_planted", set(canaries._planted))
    return canaries.plant(secrets.token_hex(8))


@pytest.mark.parametrize("column", ["text", "bytea", "jsonb", "text[]"])
def test_a_secret_in_any_column_of_a_database_is_found(
    blank_database_url: str, planted: str, column: str
) -> None:
    values = {"jsonb": f'{{"deep": ["{planted}"]}}', "text[]": f"{{a,{planted}}}"}
    with psycopg.connect(blank_database_url) as connection:
        connection.execute(f"CREATE TABLE leak (id int, it {column})".encode())
        value = planted.encode() if column == "bytea" else values.get(column, f"x {planted} y")
        connection.execute(f"INSERT INTO leak VALUES (1, %s::{column})".encode(), [value])
    try:
        assert any(place.startswith("table leak") for place in canaries.search_database(blank_database_url))
    finally:
        with psycopg.connect(blank_database_url) as connection:
            connection.execute("DROP TABLE leak")


def test_a_secret_in_a_log_or_a_metric_is_found(tmp_path: Path, planted: str) -> None:
    log = tmp_path / "worker.txt"
    log.write_text(
        f'{{"event": "x", "it": "{base64.b64encode(planted.encode()).decode()}"}}', encoding="utf-8"
    )
    assert canaries.search_files([log]) == [f"{log}: {planted}"]
    assert canaries.search_metrics() == []
    leak = Counter("holdfast_test_leak", "A label that holds what it must not.", ["it"])
    try:
        leak.labels(it=planted).inc()
        assert canaries.search_metrics() == [f"metrics: {planted}"]
    finally:
        REGISTRY.unregister(leak)
