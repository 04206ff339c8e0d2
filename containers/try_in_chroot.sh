#!/bin/bash
# Run the steps of hpc-ecg.def in a fresh Debian root, and try what they installed without a network,
# as a user who is not root. For a machine without Apptainer and Docker; as root:
#
#   containers/try_in_chroot.sh [FOLDER]     (mmdebstrap; about 4 GB in FOLDER, default a temporary one)
set -euo pipefail
case ${1:-} in -*) grep '^# ' "$0" >&2; exit 2 ;; esac  # such as --help
cd "$(dirname "$0")/.."
root=${1:-$(mktemp -d)}/root
mkdir -p "$root"
recipe=containers/hpc-ecg.def
section() { awk -v name="%$1" '/^%/ { inside = ($1 == name); next } inside && /^ /' "$recipe"; }

echo "1. A fresh root with Python: $root"
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv bookworm "$root"
echo "2. %files, and all packages of the lock"
while read -r from to; do mkdir -p "$root$to" && cp -r "$from" "$root$to"; done < <(section files)
if [ -d wheels ]; then cp -r wheels "$root/src/wheels"; else containers/wheels.sh "$root/src/wheels"; fi
echo "3. %post, without a network"
section post | sed "s|{{ TORCH_INDEX }}||" > "$root/post.sh"
inside() { unshare --net --pid --fork --mount-proc="$root/proc" chroot "$@"; }
inside "$root" /bin/bash -eu /post.sh
echo "4. %environment and %test, then a doctor, five steps of training, and a prediction"
mkdir -p "$root/work" && cp -r tools configs "$root/work"
install -m 1777 -d "$root/tmp" "$root/dev/shm" && chown -R 10001 "$root/work"
{
  section environment
  section test
  cat << 'TRY'
cd /work
python tools/practice.py practice
hpc-ecg data shard practice/table.csv --signals practice --out shards --label af \
  --patient patient_id --workers 1
run="configs/practice.yaml data.shards=shards init.checkpoint=practice/base_ssl.pt run_dir=run"
hpc-ecg doctor $run
hpc-ecg finetune $run train.max_steps=5
hpc-ecg bundle run model
hpc-ecg predict model practice/inbox --out risks.csv
head -n 3 risks.csv
TRY
} > "$root/try.sh"
inside --userspec=10001:10001 "$root" /usr/bin/env -i HOME=/work PATH=/usr/bin:/bin \
  /bin/bash -eu /try.sh
echo "done: $root can be deleted"
