#!/bin/bash
# Install hpc_ecg and the locked versions into /opt/hpc_ecg: what both recipes do, as root.
#
#   containers/install.sh SOURCE
#
# SOURCE holds this repository. Packages come from the index that pip is set to; if there is a folder
# SOURCE/wheels (containers/wheels.sh makes it), from there alone, without a network. TORCH_INDEX is
# the index of another build of torch, such as one for an older driver.
set -euo pipefail
case ${1:-} in -*) grep '^# ' "$0" >&2; exit 2 ;; esac  # such as --help
cd "${1:?usage: containers/install.sh SOURCE}"
python3 -m venv /opt/hpc_ecg
install=(/opt/hpc_ecg/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check)
if [ -d wheels ]; then install+=(--no-index --find-links "$PWD/wheels"); fi
"${install[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements-torch.lock
"${install[@]}" --require-hashes -r requirements.lock
"${install[@]}" --no-deps --no-build-isolation .
/opt/hpc_ecg/bin/hpc-ecg --version
