"""
Named places at which a test can kill the process, as a power cut would; and by which tracing tells the time.

`HOLDFAST_CRASH_AT` names one; the process ends there at once, without a goodbye to database or broker.
The proof in tests/crash visits every name that stands in the code. Refused in production.
"""

import os
from collections.abc import Callable
from typing import Final

CRASH_AT_VARIABLE: Final = "HOLDFAST_CRASH_AT"
CRASH_EXIT_CODE: Final = 137  # as after kill -9

_crash_at = os.environ.get(CRASH_AT_VARIABLE)


def _end_there(point: str) -> None:
    if point == _crash_at:
        os._exit(CRASH_EXIT_CODE)


_at_each: Callable[[str], None] | None = _end_there if _crash_at is not None else None


def reach(point: str) -> None:
    """Pass a named place; costs one comparison where nobody wants to know."""
    if _at_each is not None:
        _at_each(point)


def watch(observer: Callable[[str], None]) -> None:
    """Have every place that is passed told to an observer, in the thread that passes it."""

    def both(point: str) -> None:
        observer(point)
        _end_there(point)

    global _at_each  # noqa: PLW0603 - one for the process, so that passing a place needs no look-up
    _at_each = both
