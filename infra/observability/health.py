"""
What a process says of itself over HTTP: `/livez`, `/readyz` and `/metrics`, on a port of its own.

Live means that starting it again would not help: nothing in it has died. It does not depend on broker or
database, whose absence a worker waits out. Ready means that it is at work, or would be if work came.
"""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

LIVE_PATH = "/livez"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"

Check = Callable[[], str | None]
"""Returns what is wrong, in a sentence; None where nothing is."""


def serve_health(address: str, port: int, *, live: Check, ready: Check) -> ThreadingHTTPServer:
    """
    Answer in a thread of its own until `shutdown` is called on what is returned.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        # A client that says nothing gives up its thread.
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == METRICS_PATH:
                self._answer(HTTPStatus.OK, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
            elif path in {LIVE_PATH, READY_PATH}:
                problem = live() if path == LIVE_PATH else ready()
                status = HTTPStatus.OK if problem is None else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, f"{problem or 'ok'}\n".encode(), "text/plain; charset=utf-8")
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"no such page\n", "text/plain; charset=utf-8")

        def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: somebody asks every few seconds."""

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
