"""docs/metrics.md describes every metric that the code registers, with type and labels, and no other."""

import re
from pathlib import Path

from metric_names import RABBITMQ_METRICS, registered_in_process, registered_metrics

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
