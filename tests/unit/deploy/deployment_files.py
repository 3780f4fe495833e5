"""The files of infra/deploy, read as what they are."""

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[3]
DEPLOY = CHECKOUT / "infra" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OBSERVABILITY = CHECKOUT / "infra" / "observability"
ALERTS = sorted((OBSERVABILITY / "alerts").glob("*.yaml"))

Document = dict[str, Any]


def procfile() -> dict[str, list[str]]:
    """Return each process type's command."""
    lines = (CHECKOUT / "Procfile").read_text().splitlines()
    return {name: shlex.split(command) for name, _, command in (line.partition(":") for line in lines)}


@dataclass(frozen=True, slots=True)
class Manifest:
    path: Path
    document: Document

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def is_kubernetes_own(self) -> bool:
        """Whether Kubernetes itself defines it; else a tool or an extension does."""
        group = str(self.document["apiVersion"]).partition("/")[0]
        return "." not in group or (group.endswith(".k8s.io") and not group.startswith("kustomize"))


def manifests() -> list[Manifest]:
    return [
        Manifest(path, document)
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def of_kind(*kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests() if manifest.kind in kinds]


def pod_of(manifest: Manifest) -> Document:
    return dict(manifest.document["spec"]["template"]["spec"])


def environment_of(container: Document) -> dict[str, object]:
    """Return the variables that a container gets, from the settings' map and by name."""
    [settings] = of_kind("ConfigMap")
    given: dict[str, object] = dict(settings.document["data"])
    return given | {entry["name"]: entry.get("valueFrom") or entry["value"] for entry in container["env"]}


def compose() -> Document:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def prometheus_configuration() -> Document:
    return dict(yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text()))


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    assert program is not None, "promtool is missing: infra/local/setup.sh installs Debian's prometheus"
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class Unit:
    """A systemd unit; a name may stand more than once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = list(_entries(path.read_text()))

    def all(self, section: str, name: str) -> list[str]:
        return [value for in_section, key, value in self.entries if (in_section, key) == (section, name)]

    def one(self, section: str, name: str) -> str:
        [value] = self.all(section, name)
        return value


def units() -> dict[str, Unit]:
    """Return the units of the pools by process type."""
    found = {}
    for path in sorted((DEPLOY / "systemd").glob("holdfast-*@.service")):
        found[path.name.removeprefix("holdfast-").removesuffix("@.service")] = Unit(path)
    return found


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    section = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise configparser.ParsingError(line)
        yield section, name, value
