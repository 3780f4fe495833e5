"""docs/metrics.md describes every metric that the code registers, with type and labels, and no other."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from metric_names import RABBITMQ_METRICS, registered_in_process, registered_metrics

from infra.rabbitmq.topology import WORK_QUEUES
from schemas.reasons import QuarantineReason

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def rows() -> list[list[str]]:
    lines = re.findall(r"^\| `.+\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_page_describes_every_metric_once_with_its_type_and_labels() -> None:
    described = sorted(
        (row[0].strip("`"), row[1], tuple(re.findall(r"`(\w+)`", row[2])))
        for row in rows()
        if row[0].startswith("`holdfast_")
    )
    assert described == sorted((m.name, m.type, m.labels) for m in registered_metrics().values())


def test_every_description_says_unit_meaning_and_what_is_normal() -> None:
    for name, _type, _labels, *said in (row for row in rows() if row[0].startswith("`holdfast_")):
        assert len(said) == 3, name
        assert all(said), name


def test_page_names_every_metric_of_rabbitmq_that_we_read() -> None:
    named = {
        name for row in rows() for name in re.findall(r"`(rabbitmq_\w+)`", row[0]) if "holdfast" not in row[0]
    }
    assert named == RABBITMQ_METRICS


def test_workers_register_their_metrics_in_one_place() -> None:
    """A metric that another module makes would be in no page, rule or dashboard."""
    in_one_place = {metric.name.removesuffix("_total") for metric in registered_metrics().values()}
    assert registered_in_process() <= in_one_place


# Every worker's actors in one new process, so that nothing has been counted by somebody else.
_SHOW_COUNTERS = """
import json
from prometheus_client import REGISTRY
from infra.postgres.engine import create_database_engine
from infra.rabbitmq.publisher import Publisher
from infra.settings import load_settings
from workers.process import assemble
from workers.payment.worker import declare_actors as payment
from workers.escrow.worker import declare_actors as escrow
from workers.payout.worker import _declare as payout
from workers.relay.worker import _declare as relay

settings = load_settings()
publisher = Publisher(str(settings.broker_url))
process = assemble(settings, create_database_engine(settings, application_name="test"), publisher)
for declare in (payment, escrow, payout, relay):
    declare(process)
print(json.dumps([
    [sample.name, sample.labels, sample.value]
    for family in REGISTRY.collect() if family.type == "counter" and family.name.startswith("holdfast_")
    for sample in family.samples if sample.name.endswith("_total")
]))
"""


def test_counters_show_every_value_of_their_labels_as_0_before_they_count() -> None:
    """`increase` knows no first value: an alert on a series that begins with 1 does not see that one."""
    nowhere = "127.0.0.1:1/none"
    ran = subprocess.run(
        [sys.executable, "-c", _SHOW_COUNTERS],
        env={
            "PATH": os.environ["PATH"],
            "HOLDFAST_DATABASE_URL": f"postgresql://nobody:nothing@{nowhere}",
            "HOLDFAST_BROKER_URL": f"amqp://nobody:nothing@{nowhere}",
            "HOLDFAST_BANK_URL": f"http://{nowhere}",
            "HOLDFAST_ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(),
        },
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    shown: dict[str, set[tuple[str, ...]]] = {}
    for name, labels, value in json.loads(ran.stdout):
        assert value == 0, name
        shown.setdefault(name, set()).add(tuple(labels.values()))

    described = {row[0].strip("`"): row[4] for row in rows() if row[1] == "counter"}
    for metric in registered_metrics().values():
        if metric.type != "counter" or not metric.labels:
            continue
        # What the page names; reasons it leaves to the runbook.
        values = set(re.findall(r"`(\w+)`", described[metric.name])) or set(QuarantineReason)
        assert {labels[-1] for labels in shown[metric.name]} == values, metric.name
        if metric.labels[0] == "queue":
            assert {(queue, value) for queue in WORK_QUEUES for value in values} <= shown[metric.name]
