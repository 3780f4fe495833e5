"""
The drill: every lane and every internal queue is emptied while holds are open.

The rows are still there, so every hold is released, within a minute of its time. The long version:
`HOLDFAST_DRILL_HOLDS=10000 pytest tests/crash/test_sweep_drill.py -s`.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from crash_sites import BankAtEdge, Nursery, Site, open_site, wait_until
from workflow_support.outsider import fresh, order_data

from infra.local.ports import choose_ports
from infra.rabbitmq import topology
from infra.rabbitmq.delay_lanes import BASE, RUNGS, ladder_lane, period_lanes
from infra.settings import Settings

HOLDS = int(os.environ.get("HOLDFAST_DRILL_HOLDS", "320"))
HOLDS_AN_ORDER = 64
# Time enough to have all of them held before the first is due.
DAY_SECONDS = 1 if HOLDS < 1_000 else 10
SWEEP = {name: str(Settings.model_fields[name].default) for name in ("sweep_seconds", "sweep_grace_seconds")}
WITHIN_SECONDS = 60


@pytest.fixture
def site(
    make_vhost: Callable[[], str], databases: Any, migrated_template: str, tmp_path: Path
) -> Iterator[Site]:
    name = databases.create(template=migrated_template)
    nursery = Nursery()
    # Nothing is paid out here, and the bank is away.
    bank = BankAtEdge(nursery, tmp_path, "", url="http://127.0.0.1:9")
    with open_site(
        broker_url=make_vhost(),
        database_url=databases.url(name),
        bank=bank,
        folder=tmp_path / "site",
        sellers=False,
        day_seconds=DAY_SECONDS,
    ) as site:
        yield site
    nursery.close()
    databases.drop(name)


def everything_that_can_be_lost() -> list[str]:
    """All lanes, and all queues that only we write to; what shops and banks said is theirs to repeat."""
    ladder = [ladder_lane(rung, digit) for rung in range(RUNGS) for digit in range(1, BASE)]
    internal = [queue for queue, event_types in topology.WORK_QUEUES.items() if not event_types]
    return [lane.queue_name for lane in (*ladder, *period_lanes(DAY_SECONDS))] + internal


def swept(port: int, what: str) -> float:
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    found = re.search(rf'^holdfast_swept_total{{what="{what}"}} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.timeout(300)
def test_with_every_lane_emptied_all_holds_are_released_within_a_minute_of_their_time(
    site: Site, tmp_path: Path
) -> None:
    port = choose_ports(tmp_path / "metrics-ports.json", ["metrics"])["metrics"]
    orders = [
        order_data(
            splits={fresh("s"): 100 for _ in range(HOLDS_AN_ORDER)},
            protection_days=7,
        )
        for _ in range(HOLDS // HOLDS_AN_ORDER)
    ]
    count = len(orders) * HOLDS_AN_ORDER
    # The sweep as in production: with a grace as short as the crash proof's it would count again, and
    # send again, what is merely being worked on.
    site.start(metrics_port=str(port), **SWEEP)
    for order in orders:
        site.shop.says("order.paid", order)
        site.credits(order)
    wait_until(
        lambda: (
            site.value("SELECT count(*) FROM holds") == count
            and site.value("SELECT count(*) FROM payments WHERE funded_at IS NULL") == 0
            and site.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0
        ),
        what="all are held, and their alarms are set",
        log=site.read_log,
    )
    site.purge(*everything_that_can_be_lost())
    assert site.value("SELECT count(*) FROM holds WHERE state = 'held'") == count, "none was due before"

    def all_are_released() -> bool:
        # A shop reads its events as they come, and believes no old signature.
        while site.shop.listen():
            pass
        return bool(site.value("SELECT count(*) FROM holds WHERE state = 'released'") == count)

    wait_until(
        all_are_released,
        what="all are released",
        log=site.read_log,
        patience=7 * DAY_SECONDS + WITHIN_SECONDS,
    )
    [lag] = site.rows("""
        SELECT min(extract(epoch FROM released_at - release_at)) AS least,
               max(extract(epoch FROM released_at - release_at)) AS most FROM holds
    """)
    sys.stdout.write(f"{count} holds released {lag.least:.1f} to {lag.most:.1f} s after their time\n")
    assert lag.least >= 0
    assert lag.most < WITHIN_SECONDS
    assert swept(port, "overdue_holds") == count, "each counted, and put back once"
    site.come_to_rest()
