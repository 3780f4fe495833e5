"""
All four workers in one process, started as often as a test wants within milliseconds.

Run as a program it imports everything once, without starting a thread, and forks a worker process for
every line of JSON on its standard input: `{"name", "environment", "log", "sabotage"}`. It answers
`started <name> <pid>` and, when one has ended, `ended <name> <exit code>`. It ends, and its children with
it, when its standard input does.
"""

import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

import sabotages

import infra.local.bank.server  # noqa: F401 - forked processes run it without importing anything
from infra import crash_points
from infra.local.bank.server import run_from_environment
from infra.observability.logs import configure_logs
from workers.escrow.actors import declare_actors as declare_escrow
from workers.payment.actors import declare_actors as declare_payment
from workers.payout.worker import _declare as declare_payout
from workers.process import WorkerProcess, run_worker
from workers.relay.loops import build_loops
from workers.relay.worker import _declare as declare_relay

BANK = "bank"


def declare_all(process: WorkerProcess) -> None:
    """Every actor of every worker, as their own `worker.py` declares them."""
    declare_payment(process)
    declare_escrow(process)
    declare_payout(process)
    declare_relay(process)


def _live(order: dict[str, Any]) -> int:
    """Be the process that was ordered, until it ends."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        del os.environ[name]
    os.environ.update(order["environment"])
    # It reads its variable at import, which was before this process was born.
    importlib.reload(crash_points)
    if order["sabotage"] is not None:
        getattr(sabotages, order["sabotage"])()
    if order["name"] == BANK:
        configure_logs(format_="json", process=BANK)
        return run_from_environment()
    return run_worker("everything", declare_all, loops=build_loops)


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = _live(order)
    except BaseException:  # noqa: BLE001 - a child never returns into its parent's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def serve() -> None:
    children: dict[int, str] = {}
    waking, waker = os.pipe()
    os.set_blocking(waking, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _say("ready")
    pending = b""
    while True:
        ready, _, _ = select.select([0, waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _say("ended", children.pop(pid), os.waitstatus_to_exitcode(status))
        if 0 in ready:
            piece = os.read(0, 65536)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(order)
                children[pid] = order["name"]
                _say("started", order["name"], pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
