#!/bin/bash
# One run on any number of nodes, one process per task:
#
#   sbatch [-N 2 --ntasks-per-node=4] slurm/finetune.sh configs/finetune.yaml key=value …
#
# Relative paths start in the folder from which you submit. Put your site's settings (partition,
# account, GPUs, modules) into slurm/site.sh, a copy of slurm/site.example.sh, and also source it in
# the shell that submits.
# Two minutes before the time limit the run saves and the job is requeued (slurm/job.sh).
# To continue a stopped run, submit again with the same run_dir.
# In --output=…, Slurm replaces %j, %t …: write a % of a folder's name as %%.
#SBATCH --job-name=hpc_ecg
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
  sed -n 's|^ *Command=\(.*\)/finetune\.sh.*|\1|p') || true
[ -f "$scripts/job.sh" ] || {
  echo "slurm: no slurm/job.sh: submit from the project's root, where slurm/finetune.sh lies" >&2
  exit 2
}
source "$scripts/job.sh"

run finetune "$@"
