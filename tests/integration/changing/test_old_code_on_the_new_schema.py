"""
The release before keeps working on a newer schema, and leaves what the new code goes on with.

`release_*/transcript.jsonl` is everything that a release's workers send to the database, written down from
the release itself by `record_release.py`. Carried out here on today's schema, it must do what it did then.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from transcripts import Transcript, Use, load
from workflow_support.banks import SETTLED, ScriptedBank
from workflow_support.books import what_is_wrong
from workflow_support.desk import Desk, database_engine

from infra.postgres.audit import run_audit
from infra.postgres.migrate import migrate
from infra.postgres.outbox import CommandRow

RELEASES = sorted(Path(__file__).parent.glob("release_*"))
# How many rows these touch depends on the time of day, not on the schema.
_BY_THE_CLOCK = re.compile(r"clock_timestamp\(\)|now\(\)|pg_(snapshot|current)_x|\bseal\b|sweep_marks")


@pytest.fixture
def engine(databases: Any) -> Iterator[Engine]:
    name = databases.create()
    with database_engine(databases.url(name)) as engine:
        yield engine
    databases.drop(name)


def _url(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def messages_of(release: Path) -> dict[str, Any]:
    return dict(json.loads((release / "messages.json").read_text()))


def carry_out(transcript: Transcript, engine: Engine) -> list[str]:
    """Carry out a transcript; return what came out differently from when it was written."""
    different = []
    for transaction in transcript.transactions:
        with engine.begin() as connection:
            for use in transaction:
                cursor = connection.exec_driver_sql(use.statement, use.values)
                if cursor.rowcount != use.rows and not _BY_THE_CLOCK.search(use.statement):
                    different.append(f"{cursor.rowcount} rows, {use.rows} then: {use.statement}")
    return different


def nothing_is_wrong(engine: Engine) -> None:
    """The accountant and the audit agree; how long something has waited since then is left out."""
    assert what_is_wrong(engine) == {}
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        findings = [one for one in run_audit(connection) if "clock_timestamp()" not in one.check.statement]
    assert len(findings) > 10
    assert [finding for finding in findings if finding.violations] == []


def unpublished_commands(engine: Engine) -> list[CommandRow]:
    """What old code has committed and nobody has carried out, as it waits in the queues."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT queue, command, CAST(arguments AS text) AS arguments FROM outbox
                WHERE queue IS NOT NULL
            """)
        )
        return [CommandRow(row.queue, row.command, row.arguments) for row in rows]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_releases_statements_do_on_the_new_schema_what_they_did_on_its_own(
    release: Path, engine: Engine
) -> None:
    migrate(_url(engine))
    assert carry_out(load(release / "transcript.jsonl"), engine) == []
    nothing_is_wrong(engine)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_new_code_goes_on_with_rows_and_commands_that_a_release_left(release: Path, engine: Engine) -> None:
    migrate(_url(engine), to=messages_of(release)["revision"])
    assert carry_out(load(release / "transcript.jsonl"), engine) == []
    migrate(_url(engine))
    nothing_is_wrong(engine)
    desk = Desk(engine, bank=ScriptedBank(submit=[SETTLED], find=[SETTLED]))
    commands = unpublished_commands(engine)
    assert {row.command for row in commands} >= {"hold_funds", "release_hold", "submit_transfer"}
    for row in commands:
        desk.handle(row)
    desk.run()
    desk.close()
    nothing_is_wrong(engine)


def test_the_replay_notices_a_column_that_is_gone_and_one_that_old_code_does_not_fill(engine: Engine) -> None:
    """A check that cannot fail proves nothing."""
    transcript = load(RELEASES[0] / "transcript.jsonl")
    for change, complaint in (
        ("ALTER TABLE holds RENAME COLUMN rearmed_at TO armed_again_at", "rearmed_at"),
        ("ALTER TABLE payments ADD COLUMN channel text NOT NULL", "channel"),
    ):
        with engine.connect() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
            connection.commit()
        migrate(_url(engine))
        with engine.begin() as connection:
            connection.execute(text(change))
        with pytest.raises(Exception, match=complaint):
            carry_out(transcript, engine)
    # And one that refuses nothing but hides rows is seen by the counts.
    assert [use for use in _all(transcript) if use.rows > 0]


def _all(transcript: Transcript) -> list[Use]:
    return [use for transaction in transcript.transactions for use in transaction]
