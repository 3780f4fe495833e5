"""Grafana's dashboards read metrics and labels that exist, and are laid out so that Grafana takes them."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_names import (
    OTHER_METRICS,
    RABBITMQ_METRICS,
    known_series,
    labels_in,
    names_in,
    registered_metrics,
)

FOLDER = Path(__file__).parents[3] / "infra" / "observability" / "dashboards"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
# What Grafana puts in.
INTERVAL = "$__rate_interval"
COLUMNS = 24

_TARGET_LABELS = {"job", "instance", "le", "queue"}

every_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def expressions(path: Path) -> list[str]:
    return [target["expr"] for panel in read(path)["panels"] for target in panel["targets"]]


def test_each_is_known_to_grafana_under_one_name() -> None:
    uids = [read(path)["uid"] for path in DASHBOARDS]
    assert uids == [f"holdfast-{path.stem}" for path in DASHBOARDS]
    assert {path.stem for path in DASHBOARDS} == {"money", "workers", "broker", "payouts"}
    # Grafana refuses longer ones.
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", uid) for uid in uids)


@every_dashboard
def test_panels_read_metrics_and_labels_that_exist(path: Path) -> None:
    for expression in expressions(path):
        names = names_in(expression.replace(INTERVAL, "5m"))
        assert names, expression
        assert names <= known_series(), expression
        ours = [metric for metric in registered_metrics().values() if metric.series & names]
        allowed = _TARGET_LABELS | {label for metric in ours for label in metric.labels}
        assert labels_in(expression) <= allowed, expression


@every_dashboard
def test_legends_name_labels_that_the_expression_leaves(path: Path) -> None:
    for panel in read(path)["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            if " by " in target["expr"]:
                assert named <= labels_in(target["expr"]), target["expr"]
            else:
                assert named <= {"job", "instance"}, target["expr"]


def test_prometheus_can_parse_every_expression(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    assert program is not None, "promtool is missing: infra/local/setup.sh installs Debian's prometheus"
    everything = itertools.chain.from_iterable(map(expressions, DASHBOARDS))
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace(INTERVAL, "5m")}
        for number, expression in enumerate(everything)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    ran = subprocess.run(
        [program, "check", "rules", tmp_path / "rules.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(rules)} rules found" in ran.stdout


def test_every_metric_is_on_some_dashboard() -> None:
    """What nobody can see need not be counted."""
    shown = {name for path in DASHBOARDS for one in expressions(path) for name in names_in(one)}
    unseen = {name for name, metric in registered_metrics().items() if not metric.series & shown}
    assert unseen == set()
    assert shown & RABBITMQ_METRICS == RABBITMQ_METRICS
    assert shown & OTHER_METRICS == OTHER_METRICS


@every_dashboard
def test_panels_are_told_apart_and_do_not_overlap(path: Path) -> None:
    dashboard = read(path)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["fieldConfig"]["defaults"]["unit"]


@every_dashboard
def test_the_data_source_is_the_readers_choice(path: Path) -> None:
    """An address or id of one installation would show nothing in any other."""
    dashboard = read(path)
    [variable] = dashboard["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    for panel in dashboard["panels"]:
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_told_where_they_lie() -> None:
    provisioning = yaml.safe_load((FOLDER / "provisioning.yaml").read_text(encoding="utf-8"))
    [provider] = provisioning["providers"]
    assert provisioning["apiVersion"] == 1
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")
