"""
Named places at which a test can kill the process, as a power cut would.

`HOLDFAST_CRASH_AT` names one; the process ends there at once, without a goodbye to database or broker.
The proof in tests/crash visits every name that stands in the code. Refused in production.
"""

import os
from typing import Final

CRASH_AT_VARIABLE: Final = "HOLDFAST_CRASH_AT"
CRASH_EXIT_CODE: Final = 137  # as after kill -9

_crash_at = os.environ.get(CRASH_AT_VARIABLE)


def reach(point: str) -> None:
    """Pass a named place; costs one comparison where no crash is asked for."""
    if _crash_at is not None and point == _crash_at:
        os._exit(CRASH_EXIT_CODE)
