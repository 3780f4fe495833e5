"""A process says of itself whether it lives and whether it is at work, to anybody who asks over HTTP."""

from collections.abc import Iterator

import httpx
import pytest

from infra.observability import metrics  # noqa: F401 - the counters that a worker has
from infra.observability.health import serve_health


class Mood:
    """What the process would say."""

    live: str | None = None
    ready: str | None = None


@pytest.fixture
def mood() -> Mood:
    return Mood()


@pytest.fixture
def url(mood: Mood) -> Iterator[str]:
    server = serve_health("127.0.0.1", 0, live=lambda: mood.live, ready=lambda: mood.ready)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_process_at_work_is_live_and_ready(url: str) -> None:
    for path in ("/livez", "/readyz"):
        answer = httpx.get(url + path)
        assert (answer.status_code, answer.text) == (200, "ok\n")


def test_live_and_ready_are_told_apart_and_say_why(url: str, mood: Mood) -> None:
    mood.ready = "the database is away"
    assert httpx.get(url + "/livez").status_code == 200, "starting it again would not bring the database back"
    answer = httpx.get(url + "/readyz")
    assert (answer.status_code, answer.text) == (503, "the database is away\n")
    mood.live = "worker thread died"
    assert httpx.get(url + "/livez").status_code == 503


def test_metrics_are_served_and_nothing_else(url: str) -> None:
    assert "holdfast_swept_total" in httpx.get(url + "/metrics").text
    assert httpx.get(url + "/").status_code == 404


def test_a_port_that_is_taken_is_an_error(url: str) -> None:
    with pytest.raises(OSError, match="in use"):
        serve_health("127.0.0.1", int(url.rpartition(":")[2]), live=lambda: None, ready=lambda: None)
