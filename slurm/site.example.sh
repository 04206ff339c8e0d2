# What this cluster needs. Copy to slurm/site.sh, edit, and `source slurm/site.sh` before sbatch:
# #SBATCH lines are read before a script runs, so partition and account come from these variables.
# The job sources the file again for modules and the Python to use.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my-project
export SBATCH_GPUS_PER_TASK=1
# module load python/3.11 cuda
export HPC_ECG_PYTHON="${SLURM_SUBMIT_DIR:-$PWD}/.venv/bin/python"
