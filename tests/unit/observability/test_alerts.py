"""Each alert fires and stays quiet where it should, reads metrics that exist, and leads to its section."""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_names import known_series, labels_in, names_in, registered_metrics

CHECKOUT = Path(__file__).parents[3]
OBSERVABILITY = CHECKOUT / "infra" / "observability"
RULES = sorted((OBSERVABILITY / "alerts").glob("*.yaml"))
SCENARIOS = Path(__file__).parent / "alerts"
RUNBOOK = CHECKOUT / "docs" / "runbook.md"

Alert = dict[str, Any]

# What an expression may select or group by beside the labels of its own metrics.
_TARGET_LABELS = {"job", "instance", "le", "queue"}


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    assert program is not None, "promtool is missing: infra/local/setup.sh installs Debian's prometheus"
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@functools.cache
def alerts() -> list[Any]:
    return [
        pytest.param(rule, id=rule["alert"])
        for path in RULES
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


@functools.cache
def sections() -> dict[str, str]:
    """Return the runbook's sections by the anchor that the site gives them."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()): text
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@functools.cache
def all_scenarios() -> list[Any]:
    return [
        scenario
        for path in sorted(SCENARIOS.glob("*.test.yaml"))
        for scenario in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    ]


def scenarios(alert: str) -> tuple[list[Any], list[Any]]:
    """Return the scenarios in which an alert is expected, and those in which it is not."""
    firing, quiet = [], []
    for scenario in all_scenarios():
        for expected in scenario["alert_rule_test"]:
            if expected["alertname"] == alert:
                (firing if expected["exp_alerts"] else quiet).append(scenario)
    return firing, quiet


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_alert_fires_and_stays_quiet_as_its_scenarios_say(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", SCENARIOS / f"{path.stem}.test.yaml")


def test_the_example_configuration_loads_every_rule() -> None:
    said = promtool("check", "config", OBSERVABILITY / "prometheus.yml")
    assert f"{len(RULES)} rule files found" in said
    assert sum(map(int, re.findall(r"SUCCESS: (\d+) rules found", said))) == len(alerts())


def test_a_scenario_that_expects_the_wrong_thing_fails(tmp_path: Path) -> None:
    """A check that cannot fail proves nothing."""
    document = yaml.safe_load((SCENARIOS / "money.test.yaml").read_text(encoding="utf-8"))
    document["rule_files"] = [str((SCENARIOS / file).resolve()) for file in document["rule_files"]]
    # The ledger's imbalance alone: the others take their time and say nothing here.
    [spoilt, *_] = document["tests"]
    spoilt["input_series"][0]["values"] = "0x16"
    (tmp_path / "money.test.yaml").write_text(
        yaml.safe_dump({**document, "tests": [spoilt]}), encoding="utf-8"
    )
    with pytest.raises(AssertionError, match="HoldfastLedgerImbalance fires"):
        promtool("test", "rules", tmp_path / "money.test.yaml")


def test_no_alert_is_there_twice() -> None:
    names = [alert.id for alert in alerts()]
    anchors = [alert.values[0]["annotations"]["runbook_url"] for alert in alerts()]
    assert len(set(names)) == len(names)
    assert len(set(anchors)) == len(anchors), "each alert has a section of its own"


@pytest.mark.parametrize("alert", alerts())
def test_alert_is_tried_where_it_fires_and_where_it_does_not(alert: Alert) -> None:
    firing, quiet = scenarios(alert["alert"])
    assert firing, "write a scenario in which it fires"
    assert quiet, "write a scenario in which it stays quiet"
    read = names_in(alert["expr"])
    for scenario in (*firing, *quiet):
        # Nothing fires on series that nobody gave.
        assert read & {name for one in scenario["input_series"] for name in names_in(one["series"])}


@pytest.mark.parametrize("alert", alerts())
def test_alert_reads_metrics_and_labels_that_exist(alert: Alert) -> None:
    read = names_in(alert["expr"])
    assert read
    assert read <= known_series()
    ours = [metric for metric in registered_metrics().values() if metric.series & read]
    allowed = _TARGET_LABELS | {label for metric in ours for label in metric.labels}
    assert labels_in(alert["expr"]) <= allowed


@pytest.mark.parametrize("alert", alerts())
def test_alert_leads_to_its_own_section_of_the_runbook(alert: Alert) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page == "{{ $externalLabels.holdfast_runbook }}"
    severity = alert["labels"]["severity"]
    assert severity in {"critical", "warning"}
    text = sections()[anchor]
    assert f"**Alert.** `{alert['alert']}`, {severity}." in text
    for part in ("**It means", "**Look.**", "**Do.**", "**Wake somebody**"):
        assert part in text, f"the section does not say {part}"


def test_the_runbooks_table_lists_every_section_with_its_alert() -> None:
    listed = re.findall(
        r"^\| \[[^]]+\]\(#([^)]+)\) \| (?:`(\w+)`, (\w+) )?\|$", RUNBOOK.read_text(), re.MULTILINE
    )
    by_anchor = {
        alert.values[0]["annotations"]["runbook_url"].partition("#")[2]: (
            alert.id,
            alert.values[0]["labels"]["severity"],
        )
        for alert in alerts()
    }
    assert listed == [(anchor, *by_anchor.get(anchor, ("", ""))) for anchor in sections()]
