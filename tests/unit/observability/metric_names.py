"""The metrics that there are, by the code that registers them, and those that an expression reads."""

import re
from dataclasses import dataclass

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from infra.observability import metrics
from workers.exporter.books import GAUGES, Snapshot

# All that we read of RabbitMQ's plugin rabbitmq_prometheus, by the names that 3.10 and 4.x give it.
RABBITMQ_METRICS = frozenset(
    {
        "rabbitmq_alarms_free_disk_space_watermark",
        "rabbitmq_alarms_memory_used_watermark",
        "rabbitmq_detailed_queue_consumers",
        "rabbitmq_detailed_queue_messages_ready",
        "rabbitmq_detailed_queue_messages_unacked",
        "rabbitmq_disk_space_available_bytes",
        "rabbitmq_disk_space_available_limit_bytes",
        "rabbitmq_global_messages_received_total",
        "rabbitmq_global_messages_redelivered_total",
        "rabbitmq_process_resident_memory_bytes",
        "rabbitmq_resident_memory_limit_bytes",
    }
)
# Of Prometheus itself and of its Python client.
OTHER_METRICS = frozenset(
    {"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
)

# PromQL's own words that are not followed by a parenthesis.
_WORDS = frozenset({"and", "bool", "offset", "on", "or", "unless"})


@dataclass(frozen=True, slots=True)
class Registered:
    name: str
    type: str
    labels: tuple[str, ...]

    @property
    def series(self) -> set[str]:
        """The names under which Prometheus stores it."""
        if self.type != "histogram":
            return {self.name}
        return {self.name + suffix for suffix in ("_bucket", "_sum", "_count")}


def registered_metrics() -> dict[str, Registered]:
    """Return what workers and exporter register, by name."""
    found = [
        Registered(name + ("_total" if made._type == "counter" else ""), made._type, made._labelnames)
        for name, made in (
            (made._name, made) for made in vars(metrics).values() if hasattr(made, "_labelnames")
        )
    ]
    found += [Registered(gauge.name, "gauge", gauge.labels) for gauge in GAUGES]
    found += [
        Registered(family.name + ("_total" if family.type == "counter" else ""), family.type, ())
        for family in _of_the_exporter_itself()
    ]
    return {metric.name: metric for metric in found}


def names_in(expression: str) -> set[str]:
    """
    Return the metrics that a PromQL expression reads.

    What stands in braces, brackets and quotes, or in parentheses after a word that takes labels, is none.
    """
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)) - _WORDS


def labels_in(expression: str) -> set[str]:
    """Return the labels that an expression selects or groups by."""
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    grouped = {label.strip() for group in groups for label in group.split(",")}
    selected = {
        label
        for braces in re.findall(r"\{([^}]*)\}", expression)
        for label in re.findall(r"([a-z_]+)\s*[=!]", re.sub(r'"[^"]*"', "", braces))
    }
    return (grouped | selected) - {""}


def known_series() -> set[str]:
    """Return every name that an expression may read."""
    ours = {series for metric in registered_metrics().values() for series in metric.series}
    return ours | RABBITMQ_METRICS | OTHER_METRICS


def _of_the_exporter_itself() -> list[Metric]:
    return [family for family in Snapshot(lambda: 0.0).collect() if family.name.startswith("holdfast_")]


def registered_in_process() -> set[str]:
    """Return what this process's registry has of ours, to see that no other module makes any."""
    return {family.name for family in REGISTRY.collect() if family.name.startswith("holdfast_")}
