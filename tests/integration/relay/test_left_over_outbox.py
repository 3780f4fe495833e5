"""What its own process did not publish, the relay takes: oldest first, each row by one relay."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from workflow_support.desk import Desk
from workflow_support.races import side_by_side

from infra.postgres.outbox import lease_unpublished, mark_published
from infra.postgres.step import Steps
from schemas.commands import CollectReturns

BACKLOG = 60


@pytest.fixture
def backlog(engine: Engine, desk: Desk) -> Iterator[list[int]]:
    """Rows of a day in which no relay ran, in the order of their age."""
    desk.execute("DELETE FROM outbox")
    published_by_nobody = Steps(engine, after_commit=lambda _rows: None, grace_seconds=0)
    for _ in range(BACKLOG):
        with published_by_nobody.begin() as step:
            step.command("payout.bank", CollectReturns())
    # The newest id is the oldest row: age is time, not number.
    desk.execute("UPDATE outbox SET next_attempt_at = clock_timestamp() - outbox_id * interval '20 minutes'")
    yield [row.outbox_id for row in desk.execute("SELECT outbox_id FROM outbox ORDER BY next_attempt_at")]
    desk.execute("DELETE FROM outbox")


def lease(engine: Engine, limit: int) -> list[int]:
    with engine.begin() as connection:
        leased = lease_unpublished(connection, limit=limit, lease_seconds=30, max_bytes=1 << 20)
    return [row.outbox_id for row in leased]


def test_a_relay_that_was_away_for_a_day_catches_up_in_order_of_age(
    engine: Engine, backlog: list[int]
) -> None:
    for start in range(0, BACKLOG, 10):
        batch = lease(engine, 10)
        assert sorted(batch) == sorted(backlog[start : start + 10])
        with engine.begin() as connection:
            mark_published(connection, batch)
    assert lease(engine, 10) == []


def test_relays_side_by_side_share_a_backlog_without_meeting(engine: Engine, backlog: list[int]) -> None:
    shares = side_by_side(*[lambda: lease(engine, 15)] * 4)
    taken = [id_ for share in shares for id_ in share]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(backlog)
    assert lease(engine, BACKLOG) == sorted(set(backlog) - set(taken)), "what nobody holds, and no more"
