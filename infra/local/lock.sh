#!/usr/bin/env bash
# Chooses the newest versions of all dependencies and pins them with their hashes, for `make lock`.
# Needs the package index; changes nothing but the two lock files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=.local/lock-tools
[ -x "$tools/bin/python" ] || python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --upgrade pip pip-tools

# --all-build-deps brings setuptools, with which the project itself is installed.
pin() {
    "$tools/bin/python" -m piptools compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --all-build-deps "$@" pyproject.toml
}
pin --extra local --output-file requirements.lock
pin --extra local --extra dev --output-file requirements-dev.lock
