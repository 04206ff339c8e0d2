#!/bin/bash
# One run on any number of nodes, one process per task:
#
#   sbatch [-N 2 --ntasks-per-node=4] slurm/finetune.sh configs/finetune.yaml key=value …
#
# Submit from the project's root. What a site needs (partition, account, GPUs, modules) stands in
# slurm/site.sh, made from slurm/site.example.sh; source it in the shell that submits, too.
# Submitting again with the same run_dir goes on where the run stopped.
#SBATCH --job-name=hpc_ecg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

site="${SLURM_SUBMIT_DIR:-.}/slurm/site.sh"
if [ -f "$site" ]; then source "$site"; fi
# srun does not inherit --cpus-per-task since Slurm 22.05
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

srun --kill-on-bad-exit=1 "${HPC_ECG_PYTHON:-python}" -m hpc_ecg finetune "$@"
