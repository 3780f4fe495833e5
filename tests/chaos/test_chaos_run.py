"""The chaos run, short: a fault of each kind under load on three nodes; `make chaos` does them all."""

import secrets
from pathlib import Path

import pytest

from chaos.run import Options, run

FAULTS = (
    "PostgreSQL killed with -9",
    "a broker node partitioned away",
    "a broker node killed with -9",
    "all connections cut",
    "connections cut in mid-frame",
    "connections cut right after COMMIT",
    "the bank killed with -9",
)


# Starting three nodes and a database is a good part of it.
@pytest.mark.timeout(300)
def test_whatever_breaks_nothing_is_lost_nothing_happens_twice_nothing_early(tmp_path: Path) -> None:
    options = Options(
        seed=secrets.randbelow(1_000_000),
        rounds=1,
        faults=FAULTS,
        rate=10,
        kill_worker_every_seconds=4,
        copies={"payment": 1, "escrow": 1, "payout": 1, "relay": 1},
    )
    lines: list[str] = []
    report = run(options, tmp_path / "chaos", lines.append)
    told = "\n".join([*lines, report.text])
    assert report.ok, told
    # It has done what it claims: something happened of everything.
    account = report.account
    assert all(account.by_fate[fate] for fate in ("applied", "rejected", "quarantined")), told
    assert {"in mid-frame", "connections"} <= set(report.cuts), told
    assert {"after COMMIT", "within COMMIT"} & set(report.cuts), told
    assert {"PostgreSQL", "RabbitMQ node", "bank"} <= set(report.kills), told
