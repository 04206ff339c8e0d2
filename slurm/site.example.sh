# Your cluster's settings, the only file to edit: copy it to slurm/site.sh, and run
# `source slurm/site.sh` in the shell that submits, because Slurm reads SBATCH_… before a script
# runs. The job sources it again for modules, Python and the network. Options of sbatch override it.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my-project
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=a100
# export SBATCH_TIMELIMIT=24:00:00
export SBATCH_GPUS_PER_TASK=1        # one process per GPU; some sites accept only SBATCH_GRES=gpu:4
export SBATCH_MEM_PER_GPU=64G
# Slurm replaces %j, %t … in paths of logs, also in the name of the folder that you submit from.
case $PWD in
  *\\*) echo "slurm: $PWD: Slurm drops the backslash: rename the folder, or jobs have no log" >&2 ;;
  *%*) export SBATCH_OUTPUT="${PWD//%/%%}/slurm-%x-%j.log" ;;
esac

# module purge && module load python/3.11 cuda/12.4
HPC_ECG_PYTHON="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)/.venv/bin/python"
# In a container: a bash array with the command; quote arguments that contain spaces.
# HPC_ECG_PYTHON=(apptainer exec --nv --bind /scratch "/images/hpc-ecg.sif" python)
# export HPC_ECG_MAX_RESTARTS=5        # after lost nodes or hangs; saved runs always continue

# The network between nodes, if the libraries choose the wrong one:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5_0
# export NCCL_DEBUG=WARN
