"""
The alerts as Kubernetes takes them: one PrometheusRule of the Prometheus Operator for each file of `alerts/`.

`python -m infra.observability.prometheus_rules` writes the file of the Kubernetes manifests that holds them;
so does `make contract`. Change the alerts, not that file.
"""

from pathlib import Path
from textwrap import indent
from typing import Final

_ALERTS: Final = Path(__file__).parent / "alerts"
_RULES: Final = Path(__file__).parent.parent / "deploy" / "kubernetes" / "monitoring" / "rules.yaml"
_HEAD: Final = """\
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: holdfast-{name}
  namespace: holdfast
  labels: {{app.kubernetes.io/name: holdfast}}
spec:
"""


def prometheus_rules() -> str:
    """Return the manifests; the rules in them are the files' own text, comments included."""
    parts = ["# Made by `make contract` from infra/observability/alerts/. Change those, not this file.\n"]
    for path in sorted(_ALERTS.glob("*.yaml")):
        parts += [_HEAD.format(name=path.stem), indent(path.read_text(encoding="utf-8"), "  ")]
    return "".join(parts)


if __name__ == "__main__":
    _RULES.write_text(prometheus_rules(), encoding="utf-8")
