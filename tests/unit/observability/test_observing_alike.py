"""Many equal observations at once leave a histogram as if each had been made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from infra.observability.metrics import observe_alike


@given(values=st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 9)), max_size=6))
def test_observing_alike_values_at_once_is_observing_each(values: list[tuple[float, int]]) -> None:
    registry = CollectorRegistry()
    each, at_once = (
        Histogram(name, "What is compared.", buckets=(0, 0.5, 1, 60), registry=registry)
        for name in ("each", "at_once")
    )
    for value, times in values:
        observe_alike(at_once, value, times=times)
        for _ in range(times):
            each.observe(value)
    page = generate_latest(registry).decode()
    samples = {
        name: [
            line.split()[1]
            for line in page.splitlines()
            if line.startswith((f"{name}_bucket", f"{name}_count"))
        ]
        for name in ("each", "at_once")
    }
    assert samples["each"] == samples["at_once"]
    assert each._sum.get() == pytest.approx(at_once._sum.get())
