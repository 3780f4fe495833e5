"""What left the database tells whether the database still has the past that Holdfast signed."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from command_runs import Holdfast
from sqlalchemy import Engine, text
from structlog.testing import capture_logs
from workflow_support.desk import Desk

from infra.postgres.key_store import ensure_own_keys
from infra.security.chain_heads import EXPORT_FILE, read_lines
from workers.process import WorkerProcess
from workers.relay.chain import extend_chain, sign_and_export_head


def a_relay(desk: Desk, folder: Path) -> WorkerProcess:
    settings = SimpleNamespace(chain_export_folder=folder, chain_head_seconds=0.000001)
    return cast("WorkerProcess", SimpleNamespace(engine=desk.engine, vault=desk.vault, settings=settings))


def rewrite_the_past(engine: Engine) -> None:
    """Change a posting as the owner, and write a chain that fits."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE postings SET booked_at = booked_at - interval '1 day'"))
        connection.execute(text("DELETE FROM chain_links"))
        connection.execute(text("DELETE FROM chain_heads"))
        connection.execute(text("UPDATE chain_progress SET chained_below = '0'"))


def test_a_past_that_was_rewritten_whole_is_found_by_the_exported_heads(
    desk: Desk, holdfast: Holdfast, tmp_path: Path
) -> None:
    relay = a_relay(desk, tmp_path)
    file = tmp_path / EXPORT_FILE
    with desk.engine.begin() as connection:
        ensure_own_keys(connection, desk.vault)
    desk.released_order(desk.a_shop())
    extend_chain(relay)
    with capture_logs() as logged:
        sign_and_export_head(relay)
        sign_and_export_head(relay)
    assert [line["event"] for line in logged] == ["chain_head_signed"]
    [signed] = read_lines(file.read_text(encoding="utf-8").splitlines())
    kept_keys = tmp_path / "keys.json"
    kept_keys.write_text(holdfast("keys", "public", "--json").out, encoding="utf-8")
    verify = ("chain", "verify", "--against", str(file), "--keys", str(kept_keys), "--json")
    assert holdfast(*verify).json == {"ok": True, "heads": 1, "problems": []}
    assert [head["link"] for head in holdfast("chain", "heads", "--json").json] == [1]
    assert holdfast("chain", "heads").exit_code == 0

    rewrite_the_past(desk.engine)
    extend_chain(relay)
    ran = holdfast(*verify)
    assert ran.exit_code == 1
    assert [problem["link"] for problem in ran.json["problems"]] == [1]
    with capture_logs() as logged:
        sign_and_export_head(relay)
    assert [(line["event"], line["log_level"]) for line in logged] == [("chain_rewritten", "critical")]
    assert read_lines(file.read_text(encoding="utf-8").splitlines()) == [signed], "nothing was signed"


def test_a_file_of_heads_that_proves_nothing_is_refused(holdfast: Holdfast, tmp_path: Path) -> None:
    file = tmp_path / "heads"
    for content in ("", "not a head\n"):
        file.write_text(content, encoding="utf-8")
        ran = holdfast("chain", "verify", "--against", str(file))
        assert ran.exit_code == 2
        assert str(file) in ran.err
