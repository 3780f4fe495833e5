"""`make status` says how a process is, not only that it was ready once."""

import socket

from infra.local.__main__ import _unhealthy
from infra.observability.health import serve_health


def test_a_process_is_asked_how_it_is() -> None:
    problem = [None, "the database cannot be read"]
    server = serve_health("127.0.0.1", 0, live=lambda: None, ready=lambda: problem.pop(0))
    try:
        port = int(server.server_address[1])
        assert _unhealthy(port) is None
        assert _unhealthy(port) == "the database cannot be read"
    finally:
        server.shutdown()
        server.server_close()
    assert _unhealthy(port) == "does not answer"


def test_a_process_that_hangs_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert _unhealthy(silent.getsockname()[1]) == "does not answer"
