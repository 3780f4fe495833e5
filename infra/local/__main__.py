"""`python -m infra.local up|down|status`: what `make up` and `make down` call."""

import argparse
import sys
import time
import urllib.error
import urllib.request

from infra.local.errors import LocalServiceError
from infra.local.installation import (
    Installation,
    installations,
    metrics_ports,
    process_states,
    stop_abandoned_runs,
)
from infra.local.supervise import ProcessState

_ANSWER_SECONDS = 2.0


def _up() -> None:
    begun_at = time.monotonic()
    installation = Installation()
    installation.up(lambda line: _say(f"  {line}"))
    shown = installation.env_file.relative_to(installation.folder.parent)
    _say(f"ready after {time.monotonic() - begun_at:.1f} s; `. {shown}` lets `holdfast` find it")


def _down(*, everything: bool) -> None:
    if everything:
        for installation in installations():
            installation.down()
        stop_abandoned_runs()
    else:
        Installation().down()
    _say("stopped; data is kept" if not everything else "stopped")


def _status() -> None:
    folders = Installation().folders
    ports = metrics_ports(folders)
    for name, (state, crashes) in process_states(folders).items():
        shown = f"{state}, {crashes} crashes in a row" if crashes else str(state)
        if name not in ports:
            _say(f"{name:12} {shown}")
            continue
        if state is ProcessState.READY and (problem := _unhealthy(ports[name])):
            shown = f"runs, but {problem}"
        _say(f"{name:12} {shown}  http://127.0.0.1:{ports[name]}/metrics")


def _unhealthy(port: int) -> str | None:
    """Ask a process that runs how it is; None if it is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=_ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return error.read(200).decode(errors="replace").strip()
    except OSError:
        return "does not answer"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Return the exit code: 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infra.local")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("up")
    actions.add_parser("status")
    down = actions.add_parser("down")
    down.add_argument("--everything", action="store_true", help="also demos, tests and benchmarks cut short")
    arguments = parser.parse_args()
    try:
        match arguments.action:
            case "up":
                _up()
            case "status":
                _status()
            case _:
                _down(everything=arguments.everything)
    except LocalServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
