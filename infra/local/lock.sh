#!/usr/bin/env bash
# Chooses the newest versions of all dependencies and pins them with their hashes, for `make lock`.
# Needs the package index; changes nothing but the lock files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=.local/lock-tools
[ -x "$tools/bin/python" ] || python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --upgrade uv

pin() {
    # Standard input adds what the project itself is built with: it is installed without build isolation.
    printf 'setuptools\n' | "$tools/bin/uv" pip compile --quiet --upgrade --generate-hashes \
        --python-version 3.11 --no-header --no-annotate "$@" pyproject.toml -
}
pin --extra tracing --output-file requirements-production.lock
pin --extra local --output-file requirements.lock
pin --extra dev --output-file requirements-dev.lock
pin --extra bench --output-file requirements-bench.lock
