#!/bin/bash
# Download all packages of the lock, for a machine that builds the container without a network:
#
#   containers/wheels.sh [FOLDER]        (default: wheels, where containers/install.sh looks)
#
# Run it with the container's version of Python (PYTHON=python3.12). TORCH_INDEX as in install.sh.
set -euo pipefail
case ${1:-} in -*) grep '^# ' "$0" >&2; exit 2 ;; esac  # such as --help
cd "$(dirname "$0")/.."
download=("${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check -d "${1:-wheels}")
"${download[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements-torch.lock
"${download[@]}" --require-hashes --no-deps -r requirements.lock
du -sh "${1:-wheels}"
