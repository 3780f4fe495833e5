"""What the relay does by the clock goes on through outages, and says while its database is away."""

import threading

import pytest
from sqlalchemy.exc import OperationalError

from infra.rabbitmq.availability import Availability
from workers.relay import loops


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_AFTER_ERROR_SECONDS", 0.0)


def was_open_at_each_act(outcomes: list[Exception | None]) -> list[bool]:
    """Let one loop act as these say; return whether the process was open each time, and at the end."""
    availability, stopping = Availability(), threading.Event()
    seen: list[bool] = []

    def act() -> bool:
        outcome = outcomes[len(seen)]
        seen.append(availability.open)
        if len(seen) == len(outcomes):
            stopping.set()
        if outcome is not None:
            raise outcome
        return False

    loops.repeat("test", act, 0.0, stopping, availability)
    return [*seen, availability.open]


def away() -> Exception:
    return OperationalError("SELECT 1", {}, Exception("connection refused"))


def test_a_database_that_is_away_closes_the_process_until_it_answers() -> None:
    """Relays always have something to ask; workers notice only when a message comes."""
    assert was_open_at_each_act([None, away(), away(), None, None]) == [True, True, False, False, True, True]


def test_whatever_else_fails_closes_nothing() -> None:
    assert was_open_at_each_act([ValueError("a mistake of ours"), None]) == [True, True, True]


def test_a_process_that_stops_in_an_outage_leaves_nothing_closed() -> None:
    assert was_open_at_each_act([away()]) == [True, True]
