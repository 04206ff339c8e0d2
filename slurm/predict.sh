#!/bin/bash
# Risks of many recordings, shared among all tasks of a job or of an array:
#
#   sbatch [--array=0-7] [-N 2] slurm/predict.sh MODEL FILES… --out risks.parquet
#
# The task that ends last writes the table. Before the time limit the job is requeued, and goes on
# with what is missing; so does the same command, submitted again.
#SBATCH --job-name=hpc_ecg-predict
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail
scripts=${SLURM_SUBMIT_DIR:-.}/slurm
# Submitted from elsewhere? What runs is a copy in a spool folder.
[ -f "$scripts/job.sh" ] || scripts=$(scontrol show job "${SLURM_JOB_ID:-}" |
  sed -n 's|^ *Command=\(.*\)/predict\.sh.*|\1|p') || true
[ -f "$scripts/job.sh" ] || {
  echo "slurm: no slurm/job.sh: submit from the project's root, where slurm/predict.sh lies" >&2
  exit 2
}
source "$scripts/job.sh"

run predict "$@"
