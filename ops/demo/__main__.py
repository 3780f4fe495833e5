"""`python -m ops.demo`: what `make demo` runs after the set-up."""

import os
import signal
import sys

import httpx
import psycopg
from pika.exceptions import AMQPError

from infra.local.errors import LocalServiceError
from ops.demo.display import Display
from ops.demo.errors import DemoFailed
from ops.demo.recourse import build_recourse_shop
from ops.demo.scenario import build_scenario
from ops.demo.stage import Stage
from ops.demo.story import Story

_INTERRUPTED = 130
_WHAT_NEXT = """
What to try next
  make up                              the same in the background, for clients of yours; `make down` stops it
  . .local/env && holdfast doctor      then `holdfast --help`
  make test                            every check and test, on real services
"""


def main() -> int:
    """Return the exit code: 0 only if everything that was promised was kept."""
    display = Display()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Who started us under `nohup` means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        return _demonstrate(display)
    except DemoFailed as error:
        display.failure(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        display.failure("demo: interrupted; everything that it started is stopped and removed")
        return _INTERRUPTED


def _demonstrate(display: Display) -> int:
    stage = Stage(os.environ)
    with stage:
        display.title("Holdfast: an escrow engine on RabbitMQ and PostgreSQL")
        if stage.given:
            display.plain(f"  using {' and '.join(stage.given)} as given; shops and orders stay there\n")
        try:
            stage.start(display.say)
            story = Story(stage, display, build_scenario(stage.suffix), build_recourse_shop(stage.suffix))
            checks = story.play()
        except (DemoFailed, LocalServiceError, AMQPError, httpx.HTTPError, psycopg.Error) as error:
            return _failed(stage, display, f"{error}" or type(error).__name__)
        for check in checks:
            display.result(check.name, ok=check.ok, detail=check.detail)
        wrong = sum(not check.ok for check in checks)
        if wrong:
            return _failed(stage, display, f"{wrong} of {len(checks)} checks are wrong, see above")
        took = display.elapsed_seconds
    display.plain(
        f"\nAll {len(checks)} checks hold, after {took:.0f} s; everything it started is stopped and removed."
    )
    display.plain(_WHAT_NEXT)
    return 0


def _failed(stage: Stage, display: Display, sentence: str) -> int:
    logs = stage.keep_logs()
    display.failure(f"demo: {sentence}" + (f"\nLogs of the workers: {logs}" if logs else ""))
    return 1


if __name__ == "__main__":
    sys.exit(main())
