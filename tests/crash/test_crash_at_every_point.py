"""
The process dies at every named place of the code, is started again, and nothing is lost or done twice.

The places are read from the code: a new step has its tests at once, and they fail until a scenario visits
it. Several sites work side by side, because most of the time is waiting for protection periods to pass.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from crash_scenarios import SCENARIOS, scenario_of
from crash_sites import PATIENCE_SECONDS, BankAtEdge, Nursery, Site, open_site
from named_points import read_named_points

from infra.crash_points import CRASH_EXIT_CODE

SITES = 6
POINTS = read_named_points()


def test_every_step_and_every_point_has_a_name_of_its_own() -> None:
    assert POINTS.nameless == [], "begin() and reach() need a literal name, or no test can find the place"
    assert sorted(POINTS.steps) == sorted(set(POINTS.steps))
    assert sorted(POINTS.others) == sorted(set(POINTS.others))
    assert set(POINTS.places_of_a_step) == {"before begin", "before commit", "committed", "followed up"}


def test_every_point_of_the_code_is_visited_and_no_point_is_imagined() -> None:
    assert [point for point in POINTS.all if scenario_of(point) is None] == []
    told = {name for scenario in SCENARIOS for name in (*scenario.steps, *scenario.others)}
    assert told == {*POINTS.steps, *POINTS.others}


class Sites:
    """Hands out sites, opening one where none is free; one on which a test failed is not used again."""

    def __init__(self, open_one: Callable[[int], Site]) -> None:
        self._open_one = open_one
        # By the length of their days, which nobody can change.
        self._free: defaultdict[int, SimpleQueue[Site]] = defaultdict(SimpleQueue)

    def crash(self, point: str) -> None:
        """Let the process die at this place of the scenario that visits it."""
        scenario = scenario_of(point)
        assert scenario is not None, f"no scenario visits {point}"
        free = self._free[scenario.day_seconds]
        try:
            site = free.get_nowait()
        except Empty:
            site = self._open_one(scenario.day_seconds)
        dying: list[Future[int]] = []
        try:
            scenario.tell(site, lambda: dying.append(site.start_to_die(point).ended))
            [ended] = dying
            assert ended.result(PATIENCE_SECONDS) == CRASH_EXIT_CODE, "it died at its place, and only there"
        finally:
            site.kill()
        free.put(site)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest,
    make_vhost: Callable[[], str],
    databases: Any,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, Future[None]]]:
    """Begin all that were asked for; each test waits for its own."""
    folder = tmp_path_factory.mktemp("crash")
    asked = [
        item.callspec.params["point"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    ]
    with ExitStack() as leaving:
        nursery = Nursery()
        leaving.callback(nursery.close)
        bank = BankAtEdge(nursery, folder, make_vhost())
        bank.start()

        one_at_a_time = threading.Lock()

        def open_one(day_seconds: int) -> Site:
            # Neither a template database nor the broker's own console takes two at once.
            with one_at_a_time:
                broker_url, database = make_vhost(), databases.create(template=migrated_template)
                leaving.callback(databases.drop, database)
            return leaving.enter_context(
                open_site(
                    broker_url=broker_url,
                    database_url=databases.url(database),
                    bank=bank,
                    folder=Path(folder, database),
                    day_seconds=day_seconds,
                )
            )

        pool = ThreadPoolExecutor(SITES, "site")
        leaving.callback(pool.shutdown, cancel_futures=True)
        sites = Sites(open_one)
        yield {point: pool.submit(sites.crash, point) for point in asked}


@pytest.mark.parametrize("point", POINTS.all)
@pytest.mark.timeout(600)
def test_a_crash_loses_nothing_and_repeats_nothing(runs: Mapping[str, Future[None]], point: str) -> None:
    runs[point].result()
