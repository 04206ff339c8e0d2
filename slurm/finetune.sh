#!/bin/bash
# One run on any number of nodes, one process per task:
#
#   sbatch [-N 2 --ntasks-per-node=4] slurm/finetune.sh configs/finetune.yaml key=value …
#
# Submit from the project's root. Put what your site needs (partition, account, GPUs, modules) into
# slurm/site.sh, a copy of slurm/site.example.sh, and source it in the shell that submits, too.
# Two minutes before the time limit the run saves, and the job is requeued (slurm/job.sh).
# Submit again with the same run_dir to continue a run that stopped.
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
