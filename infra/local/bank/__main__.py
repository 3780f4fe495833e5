"""`python -m infra.local.bank` runs the simulated bank; `… keygen FILE` makes its signing key."""

import argparse
import os
import sys
from pathlib import Path

from infra.local.bank.keys import make_signing_key
from infra.local.bank.server import run_from_environment
from infra.local.errors import LocalServiceError
from infra.observability.logs import configure_logs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.bank", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    keygen = commands.add_parser("keygen", help="make the key file unless it exists; print the public key")
    keygen.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "keygen":
            sys.stdout.write(make_signing_key(chosen.file) + "\n")
            return 0
        configure_logs(format_=os.environ.get("HOLDFAST_LOG_FORMAT", "auto"), process="bank")
        return run_from_environment()
    except LocalServiceError as error:
        sys.stderr.write(f"simulated bank: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
