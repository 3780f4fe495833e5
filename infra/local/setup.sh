#!/usr/bin/env bash
# Sets up what Holdfast needs on this machine; quick when nothing is to be done.
#
#   infra/local/setup.sh runtime    what `make demo` and `make up` need
#   infra/local/setup.sh dev        the same, and the tools of `make test`
#   infra/local/setup.sh bench      the same, and what the benchmarks compare with
#   infra/local/setup.sh checks     what `make check` needs: no RabbitMQ, no PostgreSQL
#   infra/local/setup.sh pages      Python packages alone, for what is made from code and for the pages
#
# Debian packages are installed only where they are missing. Python packages go into .local/venv,
# pinned by hash. Nothing else outside the checkout changes: no server is started or configured.
set -euo pipefail

purpose=${1:?usage: setup.sh runtime|dev|bench|checks|pages}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
local_folder=$checkout/.local
venv=$local_folder/venv
stamp=$venv/holdfast-installed

export DEBIAN_FRONTEND=noninteractive
# A stripped PATH lacks where Debian keeps the tools of root.
export PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Without these bash would end while the part that puts things back still works on it.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '  %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------------------- what is missing

can_make_venvs() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name path
    for name in python3.11 python3 python3.12 python3.13; do
        path=$(command -v "$name") || continue
        if can_make_venvs "$path"; then printf '%s\n' "$path"; return; fi
    done
    # Another Python may hide Debian's own on PATH.
    if [ -x /usr/bin/python3 ] && can_make_venvs /usr/bin/python3; then printf '/usr/bin/python3\n'; return; fi
    return 1
}

has_broker() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server; } >/dev/null
has_database() { compgen -G '/usr/lib/postgresql/*/bin/initdb' || command -v initdb; } >/dev/null

has_alert_tests() { command -v promtool; } >/dev/null
has_node() { command -v node && command -v npm; } >/dev/null

needs_venv() { ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# ---------------------------------------------------------------------------- Debian packages

policy=/usr/sbin/policy-rc.d
# What stood in its place waits under this name, so that even a run that was killed can put it back.
policy_before=$policy.before-holdfast
policy_mark='Written by Holdfast while it installs packages'
no_cluster=/etc/postgresql-common/createcluster.d/holdfast-setup.conf

write_policy() {
    printf '#!/bin/sh\n# %s: no server starts meanwhile.\nexit 101\n' "$policy_mark" >"$policy"
    chmod 755 "$policy"
}

# Debian starts a server as soon as it is installed, and PostgreSQL makes a database cluster for the
# system. Neither is wanted here; both are refused for the time of the installation only.
refuse_servers() {
    restore_machine
    if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$policy_before"; fi
    write_policy
    made_folders=()
    local folder
    for folder in /etc/postgresql-common /etc/postgresql-common/createcluster.d; do
        if [ ! -d "$folder" ]; then mkdir "$folder"; made_folders+=("$folder"); fi
    done
    printf 'create_main_cluster = off\n' >"$no_cluster"
}

restore_machine() {
    if [ -e "$policy_before" ] || [ -L "$policy_before" ]; then
        mv -f "$policy_before" "$policy"
    elif grep -qs "$policy_mark" "$policy"; then
        rm -f "$policy"
    fi
    rm -f "$no_cluster"
    local index
    for ((index = ${#made_folders[@]} - 1; index >= 0; index--)); do
        rmdir --ignore-fail-on-non-empty "${made_folders[index]}" 2>/dev/null || true
    done
    made_folders=()
}
made_folders=()

apt() { apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@"; }

# apt waits for the lock of dpkg by itself, but not for that of the package lists.
update_lists() {
    local tries=0 said
    until said=$(apt update 2>&1); do
        tries=$((tries + 1))
        if [[ $said != *"/var/lib/apt/lists/lock"* ]] || ((tries > 150)); then
            printf '%s\n' "$said"
            return 1
        fi
        sleep 2
    done
}

lists_are_new=''
install_packages() (
    log=$local_folder/log/packages.log
    mkdir -p "$local_folder/log"
    # One at a time, also from two checkouts: they would put back each other's policy-rc.d.
    exec 8</usr/sbin
    flock 8
    trap restore_machine EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    refuse_servers
    # Unsafe input and output: dpkg skips one fsync a file, which takes most of its time.
    { [ -n "$lists_are_new" ] || update_lists; } >>"$log" 2>&1 &&
        apt install --yes --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
            -o Dpkg::Options::=--force-confold "$@" >>"$log" 2>&1 </dev/null
)

# ---------------------------------------------------------------------------- Python packages

fingerprint() { # of everything that an installed environment depends on
    { printf '%s\n' "$checkout"; cat "$checkout/pyproject.toml" "$checkout/$1"; } | sha256sum | cut -d' ' -f1
}

is_installed() { grep -qsx "$1 $(fingerprint "$1")" "$stamp"; }

install_python_packages() {
    local lock=$1 from=$SECONDS
    # Of a checkout that was moved or copied, the scripts in the venv still name the old place.
    if [ -e "$stamp" ] && ! grep -qsx "folder $checkout" "$stamp"; then rm -rf "$venv"; fi
    if needs_venv; then rm -rf "$venv" && "$python" -m venv "$venv"; fi
    rm -f "$stamp"
    # The caller's pip may be set up to install for a user, which a venv refuses.
    export PIP_USER=false PIP_REQUIRE_VIRTUALENV=false PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    local log=$local_folder/log/python-packages.log
    mkdir -p "$local_folder/log"
    if ! {
        # Modules are compiled when they are first imported; most never are.
        "$venv/bin/python" -m pip install --require-hashes --no-compile -r "$checkout/$lock" &&
            "$venv/bin/python" -m pip install --no-build-isolation --no-deps --no-compile -e "$checkout"
    } >"$log" 2>&1; then
        grep -v '^WARNING' "$log" | tail -n 10 >&2
        fail "Python packages of $lock could not be installed, see .local/log/python-packages.log"
    fi
    { printf 'folder %s\n' "$checkout"; printf '%s %s\n' "$lock" "$(fingerprint "$lock")"; } >"$stamp"
    # Each lock holds all of those before it.
    local smaller
    for smaller in requirements.lock requirements-dev.lock; do
        if [ "$lock" = "$smaller" ]; then break; fi
        printf '%s %s\n' "$smaller" "$(fingerprint "$smaller")" >>"$stamp"
    done
    say "Python packages installed ($((SECONDS - from)) s)"
}

# ---------------------------------------------------------------------------- main

case $purpose in
    runtime) lock=requirements.lock ;;
    dev | checks | pages) lock=requirements-dev.lock ;;
    bench) lock=requirements-bench.lock ;;
    *) fail "usage: setup.sh runtime|dev|bench|checks|pages" ;;
esac

missing=() broker_missing='' database_missing='' tools_missing=''
if [ "$purpose" != checks ] && [ "$purpose" != pages ]; then
    if [ -z "${HOLDFAST_BROKER_URL:-}" ] && ! has_broker; then missing+=(rabbitmq-server); broker_missing=1; fi
    if [ -z "${HOLDFAST_DATABASE_URL:-}" ] && ! has_database; then missing+=(postgresql); database_missing=1; fi
fi
# promtool tests the alerts; Node runs the example of a shop that is not written in Python.
if [ "$purpose" = dev ] || [ "$purpose" = checks ]; then
    if ! has_alert_tests; then missing+=(prometheus); tools_missing+=' promtool'; fi
fi
if [ "$purpose" = dev ] && ! has_node; then missing+=(nodejs npm); tools_missing+=' node npm'; fi

if [ -n "$broker_missing$database_missing" ]; then
    no_servers="RabbitMQ or PostgreSQL is missing and can't be installed here; set HOLDFAST_BROKER_URL and HOLDFAST_DATABASE_URL to servers of yours"
    if [ "$(id -u)" != 0 ]; then fail "$no_servers (not root)"; fi
    if ! command -v apt-get >/dev/null; then fail "$no_servers (no apt)"; fi
fi
if [ -n "$tools_missing" ] && { [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; }; then
    fail "${missing[*]} can't be installed here (needs root and apt): put these on PATH:$tools_missing"
fi

mkdir -p "$local_folder"
# A second run waits for the first and then finds everything done.
exec 9<"$local_folder"
flock 9

install_or_fail() {
    local from=$SECONDS
    say "installing Debian packages: $*"
    if ! install_packages "$@"; then
        tail -n 5 "$local_folder/log/packages.log" >&2
        if [ -n "$broker_missing$database_missing" ]; then fail "$no_servers (apt failed)"; fi
        fail "apt failed, see .local/log/packages.log"
    fi
    lists_are_new=1
    say "Debian packages installed ($((SECONDS - from)) s): $*"
}

rm -f "$local_folder/log/packages.log"
python=$(find_python) || python=''
if needs_venv && [ -z "$python" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "no Python 3.11 or newer that can make virtual environments: install python3-venv"
    fi
    install_or_fail python3-venv
    python=$(find_python) || fail "Python still can't make virtual environments"
fi

# Both take long, and neither needs the other. apt stays in the foreground, where Ctrl-C reaches it.
python_packages=''
if needs_venv || ! is_installed "$lock"; then
    say "installing Python packages from $lock"
    install_python_packages "$lock" &
    python_packages=$!
    trap 'kill "$python_packages" 2>/dev/null || true' EXIT
fi
if [ ${#missing[@]} -gt 0 ]; then install_or_fail "${missing[@]}"; fi
if [ -n "$python_packages" ]; then
    wait "$python_packages"
    trap - EXIT
fi
