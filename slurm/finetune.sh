#!/bin/bash
# One run on any number of nodes, one process per task:
#
#   sbatch [-N 2 --ntasks-per-node=4] slurm/finetune.sh configs/finetune.yaml key=value …
#
# Submit from the project's root. Put your site's settings (partition, account, GPUs, modules) into
# slurm/site.sh, a copy of slurm/site.example.sh, and also source it in the shell that submits.
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
source "${SLURM_SUBMIT_DIR:-.}/slurm/job.sh"

run finetune "$@"
