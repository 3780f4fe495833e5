"""The chaos run's own arithmetic: fed something lost, twice or early, it must turn red."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from chaos.accounting import Account, Fate, Findings, Release, Said, account_for, summary

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
JUDGED = frozenset({Fate.APPLIED, Fate.REJECTED})

SAID = [
    Said("order", JUDGED, attempts=2, confirmed=2),
    Said("refused", JUDGED, attempts=1, confirmed=1),
    Said("forged", frozenset({Fate.QUARANTINED}), attempts=1, confirmed=1),
    Said("waiting", JUDGED, attempts=1, confirmed=1),
    Said("unheard", JUDGED, attempts=3, confirmed=0),
]
FOUND = Findings(
    fates={
        Fate.APPLIED: {"order"},
        Fate.REJECTED: {"refused"},
        Fate.QUARANTINED: {"forged"},
        Fate.QUEUED: {"waiting"},
    },
    effects={"order.held of o-1": 1, "payout of w-1": 1},
    releases=[Release("h-1", not_before=NOON, released_at=NOON)],
    events_written={"a-1", "a-2"},
    events_heard={"a-1", "a-2"},
)


def test_a_run_in_which_everything_has_one_fate_is_green() -> None:
    account = account_for(SAID, FOUND)
    assert account.ok
    assert (account.attempted, account.sent, account.confirmed) == (5, 8, 4)
    assert account.by_fate == dict.fromkeys(Fate, 1)
    assert account.confirmed == sum(account.by_fate.values())


def test_an_event_that_was_never_confirmed_may_have_arrived_all_the_same() -> None:
    account = account_for(SAID, replace(FOUND, fates={**FOUND.fates, Fate.APPLIED: {"order", "unheard"}}))
    assert account.ok
    assert account.confirmed == 4


def _lost(account: Account) -> list[str]:
    return account.lost


def _duplicated(account: Account) -> list[str]:
    return account.duplicated


def _early(account: Account) -> list[str]:
    return account.early


def _misjudged(account: Account) -> list[str]:
    return account.misjudged


def _contradictions(account: Account) -> list[str]:
    return account.contradictions


@pytest.mark.parametrize(
    ("spoiled", "count"),
    [
        pytest.param(replace(FOUND, fates={**FOUND.fates, Fate.APPLIED: set()}), _lost, id="lost"),
        pytest.param(replace(FOUND, events_heard={"a-1"}), _lost, id="an answer lost"),
        pytest.param(
            replace(FOUND, fates={**FOUND.fates, Fate.QUEUED: {"waiting", "order"}}),
            _duplicated,
            id="in two places",
        ),
        pytest.param(replace(FOUND, effects={"order.held of o-1": 2}), _duplicated, id="done twice"),
        pytest.param(replace(FOUND, events_heard={"a-1", "a-2", "a-3"}), _duplicated, id="never committed"),
        pytest.param(
            replace(FOUND, releases=[Release("h-1", NOON, NOON - timedelta(microseconds=1))]),
            _early,
            id="early",
        ),
        pytest.param(
            replace(FOUND, fates={**FOUND.fates, Fate.APPLIED: {"order", "forged"}, Fate.QUARANTINED: set()}),
            _misjudged,
            id="a forgery applied",
        ),
        pytest.param(
            replace(FOUND, contradictions=["the bank has a cent more"]), _contradictions, id="money"
        ),
    ],
)
def test_one_thing_wrong_turns_the_run_red_and_is_counted(
    spoiled: Findings, count: Callable[[Account], list[str]]
) -> None:
    account = account_for(SAID, spoiled)
    assert not account.ok
    [item] = count(account)
    assert item in summary(account)
    others = {_lost, _duplicated, _early, _misjudged, _contradictions} - {count}
    assert all(other(account) == [] for other in others)
