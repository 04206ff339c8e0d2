#!/bin/bash
# A whole sweep inside one job on one node: runs_at_once runs side by side, one GPU each.
#
#   sbatch --gpus-per-task=4 --cpus-per-task=32 slurm/sweep.sh configs/sweep.yaml runs_at_once=4 \
#       sweep_dir=… run.data.shards=…
#
# The single task gets all GPUs, and the sweep assigns one to each run.
# Two minutes before the time limit all runs save and the job is requeued.
# To run what is not done yet, submit again with the same sweep_dir.
#SBATCH --job-name=hpc_ecg-sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail
scripts=${SLURM_SUBMIT_DIR:-.}/slurm
# Submitted from elsewhere? What runs is a copy in a spool folder.
[ -f "$scripts/job.sh" ] || scripts=$(scontrol show job "${SLURM_JOB_ID:-}" |
  sed -n 's|^ *Command=\(.*\)/sweep\.sh.*|\1|p') || true
[ -f "$scripts/job.sh" ] || {
  echo "slurm: no slurm/job.sh: submit from the project's root, where slurm/sweep.sh lies" >&2
  exit 2
}
source "$scripts/job.sh"

run --ntasks=1 sweep "$@"
