#!/bin/sh
# Makes .venv as uv.lock has it, with the extras and groups given as uv's own options. Quick when nothing changed.
# Needs Python 3.11 or newer, and uv or the venv module to get uv with. Needs no root and touches nothing outside
# this folder but uv's cache.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

is_usable_uv() {
    "$2" --version 2>/dev/null | "$1" -c '
import re, sys
version = re.match(r"uv (\d+)\.(\d+)", sys.stdin.read())
sys.exit(not version or tuple(map(int, version.groups())) < (0, 9))'
}

find_python() {
    for candidate in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer is on the PATH. On Debian or Ubuntu: apt-get install python3 python3-venv"
}

# A uv of the machine if it has one that works and is new enough, else one of our own in .cache/uv.
find_uv() {
    for candidate in uv .cache/uv/bin/uv; do
        if is_usable_uv "$1" "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$1 has no venv module, and uv is not installed. On Debian or Ubuntu: apt-get install python3-venv"
    echo "setup: getting uv into .cache/uv" >&2
    "$1" -m venv --clear .cache/uv >&2 || fail "could not make the environment .cache/uv"
    .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' >&2 ||
        fail "could not install uv from the package index; is the network up?"
    echo .cache/uv/bin/uv
}

python=$(find_python)
uv=$(find_uv "$python")
[ -x .venv/bin/python ] || echo "setup: making .venv; the first time downloads about 3 GB, most of it PyTorch" >&2

# The environment is .venv here, whatever environment the caller has active.
unset VIRTUAL_ENV || true
export UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
# A network with a certificate authority of its own has it in the system's store, not in the one that uv brings.
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
"$uv" sync --locked --quiet --python "$python" "$@" ||
    fail "uv sync failed; its message is above. Nothing but .venv was changed, so it can be tried again"
