"""Images, manifests and units say what the code says: no container engine needed to know that much."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deployment_files import (
    ALERTS,
    CHECKOUT,
    DEPLOY,
    KUBERNETES,
    Manifest,
    compose,
    environment_of,
    manifests,
    of_kind,
    pod_of,
    procfile,
    prometheus_configuration,
    promtool,
    units,
)

from infra.observability.health import LIVE_PATH, METRICS_PATH, READY_PATH
from infra.observability.prometheus_rules import prometheus_rules
from infra.observability.tracing import FLUSH_SECONDS
from infra.rabbitmq import publisher, supervisor
from infra.rabbitmq.topology import QUARANTINE_QUEUE, WORK_QUEUES
from infra.settings import Settings

POOLS = sorted(procfile())
# A process may take so long to end: what it has in hand, then its connections one after another.
LONGEST_END_SECONDS = (
    Settings.model_fields["drain_seconds"].default
    + supervisor.CLOSE_SECONDS
    + publisher.CLOSE_SECONDS
    + FLUSH_SECONDS
)
# The oldest Kubernetes that is promised, and the newest whose schemas are at hand.
KUBERNETES_VERSIONS = ("1.29", kubernetes_validate.latest_version())

_SCALED_OBJECT = {
    "type": "object",
    "required": ["scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"],
    "additionalProperties": False,
    "properties": {
        "scaleTargetRef": {"type": "object", "required": ["name"]},
        "minReplicaCount": {"type": "integer", "minimum": 2},
        "maxReplicaCount": {"type": "integer"},
        "pollingInterval": {"type": "integer"},
        "advanced": {"type": "object"},
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "metadata"],
                "additionalProperties": False,
                "properties": {
                    "type": {"enum": ["rabbitmq", "postgresql", "prometheus"]},
                    # KEDA takes text only, numbers too.
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "authenticationRef": {"type": "object", "required": ["name"]},
                },
            },
        },
    },
}


# What of the Prometheus Operator's kinds is used; its own schemas are not at hand.
_POD_MONITOR = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object", "required": ["matchLabels"]},
        "podMetricsEndpoints": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string"},
                    "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                    "relabelings": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                "targetLabel": {"type": "string"},
                                "replacement": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    },
}
_SCRAPE_CONFIG = {
    "type": "object",
    "required": ["staticConfigs"],
    "additionalProperties": False,
    "properties": {
        "scrapeInterval": {"type": "string", "pattern": "^[0-9]+s$"},
        "metricsPath": {"type": "string"},
        "params": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "staticConfigs": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "targets": {"type": "array", "items": {"type": "string"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
    },
}


def containers() -> list[Any]:
    return [
        pytest.param(manifest, container, id=f"{manifest.kind} {manifest.name}")
        for manifest in of_kind("Deployment", "Job")
        for container in pod_of(manifest)["containers"]
    ]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_manifests_fit_kubernetes_own_schemas(version: str) -> None:
    own = [manifest for manifest in manifests() if manifest.is_kubernetes_own]
    assert {manifest.kind for manifest in own} >= {
        "Deployment",
        "Job",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    for manifest in own:
        kubernetes_validate.validate(manifest.document, version, strict=True)


def test_a_misspelt_field_does_not_fit() -> None:
    """A check that cannot fail proves nothing."""
    [deployment, *_] = of_kind("Deployment")
    spoilt = {**deployment.document, "spec": {**deployment.document["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(spoilt, KUBERNETES_VERSIONS[0], strict=True)


def test_compose_file_fits_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kustomization_lists_all_files_of_its_folder() -> None:
    for manifest in (m for m in manifests() if m.kind == "Kustomization"):
        beside = {path.name for path in manifest.path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(manifest.document["resources"]) == beside, manifest.path


def test_every_pool_of_the_procfile_is_deployed_with_the_procfiles_command() -> None:
    commands = procfile()
    deployed = {
        manifest.name.removeprefix("holdfast-"): pod_of(manifest)["containers"][0]["command"]
        for manifest in of_kind("Deployment")
    }
    services = compose()["services"]
    started = {pool: unit.one("Service", "ExecStart").split() for pool, unit in units().items()}
    assert deployed == commands
    assert {pool: services[pool]["command"] for pool in POOLS} == commands
    assert started == {
        pool: ["/opt/holdfast/venv/bin/python", *command[1:]] for pool, command in commands.items()
    }


def test_pools_differ_in_nothing_but_what_is_theirs() -> None:
    """Four files that are to say the same do not drift apart."""

    def alike(text: str, pool: str) -> list[str]:
        # What the payout worker alone gets, and the sentence that says what a pool does.
        own = ("PEPPERS", "peppers", "BANK_URL", "holdfast-bank", "Description=", "eplicas:", "# One")
        lines = text.replace(pool, "POOL").splitlines()
        said_of_numbers = ("# No replicas", "# Any number")
        return [line for line in lines if not any(word in line for word in (*own, *said_of_numbers))]

    for path in ("kubernetes/workers/{}.yaml", "systemd/holdfast-{}@.service"):
        texts = [alike((DEPLOY / path.format(pool)).read_text(), pool) for pool in POOLS]
        assert all(text == texts[0] for text in texts), path


def test_every_variable_is_a_setting() -> None:
    known = {f"HOLDFAST_{name.upper()}" for name in Settings.model_fields} | {"HOLDFAST_VERSION"}
    named = {
        (variable, path.name)
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for variable in re.findall(r"HOLDFAST_[A-Z0-9_]+", path.read_text())
    }
    assert {variable for variable, _ in named} >= {"HOLDFAST_BROKER_URL", "HOLDFAST_DRAIN_SECONDS"}
    assert {(variable, file) for variable, file in named if variable not in known} == set()


@pytest.mark.parametrize(("manifest", "container"), containers())
def test_container_gets_every_setting_that_has_no_default(
    manifest: Manifest, container: dict[str, Any]
) -> None:
    given = environment_of(container)
    required = {
        f"HOLDFAST_{name.upper()}" for name, field in Settings.model_fields.items() if field.is_required()
    }
    assert given.keys() >= required
    assert ("HOLDFAST_BANK_URL" in given) == (manifest.name == "holdfast-payout")
    assert given["HOLDFAST_ENVIRONMENT"] == "production"


@pytest.mark.parametrize(("manifest", "container"), containers())
def test_secrets_come_by_reference_only(manifest: Manifest, container: dict[str, Any]) -> None:
    for name, value in environment_of(container).items():
        if re.search(r"URL|KEY|PEPPER|PASSWORD", name) and "POOL" not in name:
            assert isinstance(value, dict), f"{manifest.name}: {name}"
            assert value.keys() == {"secretKeyRef"}, f"{manifest.name}: {name}"
    assert of_kind("Secret") == []


@pytest.mark.parametrize(("manifest", "container"), containers())
def test_containers_are_confined(manifest: Manifest, container: dict[str, Any]) -> None:
    pod, confined = pod_of(manifest), container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert confined == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_process_may_end_in_its_own_time_before_it_is_killed(pool: str) -> None:
    [deployment] = [m for m in of_kind("Deployment") if m.name == f"holdfast-{pool}"]
    compose_seconds = int(compose()["services"][pool]["stop_grace_period"].removesuffix("s"))
    assert pod_of(deployment)["terminationGracePeriodSeconds"] > LONGEST_END_SECONDS
    assert compose_seconds > LONGEST_END_SECONDS
    assert int(units()[pool].one("Service", "TimeoutStopSec")) > LONGEST_END_SECONDS
    given = environment_of(pod_of(deployment)["containers"][0])["HOLDFAST_DRAIN_SECONDS"]
    assert float(str(given)) == Settings.model_fields["drain_seconds"].default


@pytest.mark.parametrize("pool", POOLS)
def test_probes_ask_what_the_process_answers(pool: str) -> None:
    [deployment] = [m for m in of_kind("Deployment") if m.name == f"holdfast-{pool}"]
    [container] = pod_of(deployment)["containers"]
    given = environment_of(container)
    [port] = container["ports"]
    assert str(port["containerPort"]) == given["HOLDFAST_METRICS_PORT"]
    assert given["HOLDFAST_METRICS_ADDRESS"] == "0.0.0.0", "kubelet asks from outside of the container"  # noqa: S104
    asked = {
        probe: (container[probe]["httpGet"]["path"], container[probe]["httpGet"]["port"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert asked == {
        "startupProbe": (LIVE_PATH, port["name"]),
        "livenessProbe": (LIVE_PATH, port["name"]),
        "readinessProbe": (READY_PATH, port["name"]),
    }
    [scraped] = [m for m in of_kind("NetworkPolicy") if m.name == "holdfast"]
    [ingress] = scraped.document["spec"]["ingress"]
    assert [entry["port"] for entry in ingress["ports"]] == [port["containerPort"]]
    service = compose()["services"][pool]
    assert f"127.0.0.1:{service['environment']['HOLDFAST_METRICS_PORT']}{LIVE_PATH}" in str(
        service["healthcheck"]["test"]
    )


def test_every_pool_may_lose_one_process_at_a_time_and_scales_by_its_own_queues() -> None:
    budgets = {m.name: m.document["spec"] for m in of_kind("PodDisruptionBudget")}
    scaled = {m.name: m.document["spec"] for m in of_kind("ScaledObject")}
    # The exporter is one process; everybody else scales.
    assert scaled.keys() == {f"holdfast-{pool}" for pool in POOLS if pool != "exporter"}
    assert budgets.keys() == scaled.keys() | {"holdfast-exporter"}
    queues: dict[str, set[str]] = {}
    for name, spec in scaled.items():
        jsonschema.validate(spec, _SCALED_OBJECT)
        assert spec["scaleTargetRef"]["name"] == name
        assert spec["maxReplicaCount"] > spec["minReplicaCount"]
        assert budgets[name]["selector"]["matchLabels"]["app.kubernetes.io/component"] == name.split("-")[1]
        queues[name] = {t["metadata"]["queueName"] for t in spec["triggers"] if t["type"] == "rabbitmq"}
    expected = {
        name: {queue for queue in WORK_QUEUES if queue.startswith(f"{name.removeprefix('holdfast-')}.")}
        for name in scaled
    }
    assert queues == expected | {"holdfast-relay": {QUARANTINE_QUEUE}}
    triggers = [trigger for spec in scaled.values() for trigger in spec["triggers"]]
    known = {m.name for m in of_kind("TriggerAuthentication")}
    named = {t["authenticationRef"]["name"] for t in triggers if t["type"] != "prometheus"}
    assert named == known
    by_age = {name for name, spec in scaled.items() if {t["type"] for t in spec["triggers"]} != {"rabbitmq"}}
    assert by_age == scaled.keys(), "by length and by age"


def _age_by_prometheus() -> dict[str, str]:
    [metadata] = [
        trigger["metadata"]
        for scaled in of_kind("ScaledObject")
        for trigger in scaled.document["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    return dict(metadata)


@pytest.mark.parametrize(
    ("waits", "age_seconds"),
    [
        pytest.param({}, 0, id="no process was scraped yet"),
        pytest.param({"1": "5x20", "60": "5x20", "120": "5x20", "+Inf": "5x20"}, 0, id="nothing came"),
        pytest.param(
            {"1": "0+60x20", "60": "0+60x20", "120": "0+60x20", "+Inf": "0+60x20"}, 0.5, id="at once"
        ),
        pytest.param({"1": "0x20", "60": "0x20", "120": "0+60x20", "+Inf": "0+60x20"}, 90, id="all late"),
        pytest.param(
            {"1": "0+60x20", "60": "0+60x20", "120": "0+60x20", "+Inf": "0+61x20"},
            0.5 * 61 / 60,
            id="one late",
        ),
    ],
)
def test_payment_pool_grows_by_the_age_of_what_its_processes_take(
    waits: dict[str, str], age_seconds: float, tmp_path: Path
) -> None:
    """The answer is a number in every case, also where no message came: none would be an error to KEDA."""
    series = [
        {
            "series": f"holdfast_inbound_wait_seconds_bucket"
            f'{{job="holdfast-payment",instance="{instance}",le="{le}"}}',
            "values": values,
        }
        for instance in ("a", "b")
        for le, values in waits.items()
    ]
    expected = {"expr": "(" + _age_by_prometheus()["query"] + ")", "eval_time": "5m"}
    test = {
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [expected | {"exp_samples": [{"labels": "{}", "value": age_seconds}]}],
    }
    (tmp_path / "age.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    promtool("test", "rules", tmp_path / "age.yaml")


def test_all_processes_at_once_fit_the_connections_that_the_file_counts_with() -> None:
    a_process = Settings.model_fields["database_pool_size"].default + 2
    text = (KUBERNETES / "workers" / "autoscaling.yaml").read_text()
    assert f"up to {a_process} database connections" in text


def test_prometheus_in_compose_scrapes_every_process_and_the_broker() -> None:
    """prometheus.yml says where by names and ports; here they are those of the services."""
    services = compose()["services"]
    scraped = {job["job_name"]: job for job in prometheus_configuration()["scrape_configs"]}
    for pool in POOLS:
        [found] = scraped.pop(f"holdfast-{pool}")["dns_sd_configs"]
        environment = services[pool]["environment"]
        assert (found["names"], found["type"]) == ([pool], "A")
        assert str(found["port"]) == environment["HOLDFAST_METRICS_PORT"]
        assert environment["HOLDFAST_METRICS_ADDRESS"] == "0.0.0.0", "from another container"  # noqa: S104
    assert scraped.keys() == {"rabbitmq", "rabbitmq-queues"}
    for job in scraped.values():
        assert job["static_configs"] == [{"targets": [f"{services['rabbitmq']['hostname']}:15692"]}]
    assert all(
        address.startswith("127.0.0.1:") for name in services for address in _published(services[name])
    )


def _published(service: dict[str, Any]) -> list[str]:
    return list(service.get("ports", []))


def test_what_compose_mounts_is_there_and_where_the_programs_look() -> None:
    services = compose()["services"]
    mounted = {
        target: (DEPLOY / source).resolve()
        for name in ("prometheus", "grafana")
        for source, target, *_ in (volume.split(":") for volume in services[name]["volumes"])
        if source.startswith(".")
    }
    assert all(path.exists() for path in mounted.values())
    folder = Path("/etc/prometheus")
    assert f"--config.file={folder}/prometheus.yml" in services["prometheus"]["command"]
    for pattern in prometheus_configuration()["rule_files"]:
        assert list(mounted[str((folder / pattern).parent)].glob(Path(pattern).name))
    [provider] = yaml.safe_load(mounted["/etc/grafana/provisioning/dashboards/holdfast.yaml"].read_text())[
        "providers"
    ]
    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    [source] = yaml.safe_load(compose()["configs"]["grafana-prometheus"]["content"])["datasources"]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0].rpartition(':')[2]}"


def test_pods_are_scraped_under_the_names_that_rules_and_dashboards_go_by() -> None:
    [monitor] = of_kind("PodMonitor")
    jsonschema.validate(monitor.document["spec"], _POD_MONITOR)
    [endpoint] = monitor.document["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == METRICS_PATH
    [relabelling] = endpoint["relabelings"]
    example = {job["job_name"]: job for job in prometheus_configuration()["scrape_configs"]}
    jobs = set()
    for deployment in of_kind("Deployment"):
        labels = deployment.document["spec"]["template"]["metadata"]["labels"]
        assert monitor.document["spec"]["selector"]["matchLabels"].items() <= labels.items()
        [port] = pod_of(deployment)["containers"][0]["ports"]
        assert endpoint["port"] == port["name"]
        jobs.add(relabelling["replacement"].replace("$1", labels["app.kubernetes.io/component"]))
    assert relabelling["sourceLabels"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_component"]
    for config in of_kind("ScrapeConfig"):
        spec = config.document["spec"]
        jsonschema.validate(spec, _SCRAPE_CONFIG)
        [static] = spec["staticConfigs"]
        job = example[static["labels"]["job"]]
        assert (spec.get("metricsPath"), spec.get("params")) == (job.get("metrics_path"), job.get("params"))
        jobs.add(static["labels"]["job"])
    assert jobs == example.keys()


def test_rules_for_kubernetes_are_the_alerts_word_for_word(tmp_path: Path) -> None:
    path = KUBERNETES / "monitoring" / "rules.yaml"
    assert path.read_text() == prometheus_rules(), "run `make contract`"
    alerts = {f"holdfast-{alert.stem}": yaml.safe_load(alert.read_text()) for alert in ALERTS}
    rules = of_kind("PrometheusRule")
    assert {rule.name: rule.document["spec"] for rule in rules} == alerts
    for rule in rules:
        written = tmp_path / f"{rule.name}.yaml"
        written.write_text(yaml.safe_dump(rule.document["spec"]))
        promtool("check", "rules", written)


def test_image_is_pinned_unprivileged_and_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-\w+(@sha256:[0-9a-f]{64})?", base[1])
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "--require-hashes --no-deps -r requirements-production.lock" in text
    allowed = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == allowed
    assert all((CHECKOUT / source).exists() for source in copied)


def test_the_images_lock_pins_what_everybody_else_tests_with() -> None:
    """The image has the packages of production and of tracing, in the versions of the test run."""

    def pins(name: str) -> dict[str, str]:
        text = (CHECKOUT / name).read_text()
        return dict(re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z,]+\])?==(\S+)", text, re.MULTILINE))

    image, tested = pins("requirements-production.lock"), pins("requirements-dev.lock")
    assert image.keys() >= {"dramatiq", "pika", "psycopg", "sqlalchemy", "opentelemetry-sdk"}
    assert not image.keys() & {"pytest", "starlette", "ruff"}
    assert {name: pin for name, pin in image.items() if tested.get(name) != pin} == {}


def test_what_is_installed_into_the_image_holds_the_migrations(tmp_path: Path) -> None:
    """They are files that alembic reads, not modules that anybody imports."""
    wheel_of = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "schemas", "ledger", "infra", "workers", "ops"):
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run([*wheel_of, source, "--wheel-dir", tmp_path], check=True, timeout=100)
    [wheel] = tmp_path.glob("holdfast-*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True
    ).stdout
    for path in (CHECKOUT / "infra" / "postgres" / "migrations").rglob("*.py"):
        assert str(path.relative_to(CHECKOUT)) in listed


@pytest.mark.parametrize("pool", POOLS)
def test_units_are_ones_that_systemd_understands(pool: str, tmp_path: Path) -> None:
    unit = units()[pool]
    assert unit.one("Service", "RestartPreventExitStatus") == "2", "a wrong setting does not mend itself"
    assert unit.all("Service", "EnvironmentFile") == [
        "/etc/holdfast/settings.env",
        "/etc/holdfast/secrets.env",
    ]
    assert unit.one("Install", "WantedBy") == "holdfast.target"
    verify = shutil.which("systemd-analyze")
    if verify is not None:
        # Where it is installed (it need not be): a program that exists, in the place of the one that will.
        text = unit.path.read_text().replace("/opt/holdfast/venv/bin/python", sys.executable)
        (tmp_path / f"holdfast-{pool}@1.service").write_text(text)
        shutil.copy(DEPLOY / "systemd" / "holdfast.target", tmp_path)
        done = subprocess.run(
            [verify, "verify", "--man=no", tmp_path / f"holdfast-{pool}@1.service"],
            capture_output=True,
            text=True,
            check=False,
        )
        complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
        assert complaints == [], done.stderr
