"""Whether this process can work at all right now, shared by its consumers and its worker threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger(__name__)


class Availability:
    """
    Closed while any worker thread waits for a database or broker that is away.

    While it is closed, consumers hand out nothing new: a second batch would only wait beside the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed_at: float | None = None

    @property
    def open(self) -> bool:
        return self._closed_at is None

    @property
    def closed_seconds(self) -> float:
        """How long nothing has been possible; 0 while open."""
        closed_at = self._closed_at
        return 0.0 if closed_at is None else time.monotonic() - closed_at

    @contextmanager
    def suspended(self, cause: str) -> Iterator[None]:
        """Around one wait. One line when the first begins and one when the last ends, not one an attempt."""
        with self._lock:
            self._waiting += 1
            if self._closed_at is None:
                self._closed_at = time.monotonic()
                log.warning("work_suspended", cause=cause)
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._waiting == 0 and self._closed_at is not None:
                    seconds = round(time.monotonic() - self._closed_at, 1)
                    self._closed_at = None
                    log.info("work_resumed", suspended_seconds=seconds)
