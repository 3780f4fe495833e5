"""`make chaos`: break everything for some minutes under load, and account for every event."""

import argparse
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

from chaos.run import Options, run
from infra.local.installation import LOCAL


def main() -> int:
    """Run with the options of the command line; 0 if nothing was lost, doubled or early."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0, help="how long to break things (240)")
    parser.add_argument("--rate", type=float, default=15.0, help="messages a second, of both shops (15)")
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between killed workers (2)")
    parser.add_argument("--settle", type=float, default=180.0, help="seconds until all must be at rest (180)")
    parser.add_argument("--copies", type=int, default=2, help="processes of each worker (2)")
    parser.add_argument("--seed", type=int, help="draws load and faults of an earlier run again")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    given = parser.parse_args()
    options = Options(
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
        seconds=given.seconds,
        rate=given.rate,
        kill_worker_every_seconds=given.kill_every,
        settle_seconds=given.settle,
        copies=dict.fromkeys(("payment", "escrow", "payout", "relay"), given.copies),
    )
    folder = Path(LOCAL, "chaos", f"run-{os.getpid()}")
    # Also as a background job, which ignores Ctrl-C by default: whatever was started is stopped again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        report = run(options, folder, lambda line: print(line, flush=True))  # noqa: T201 - what it is for
    finally:
        if given.keep:
            sys.stdout.write(f"kept: {folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    verdict = "nothing lost, nothing twice, nothing early" if report.ok else "BROKEN"
    sys.stdout.write(f"\n{report.text}\n\nseed {options.seed}: {verdict}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
