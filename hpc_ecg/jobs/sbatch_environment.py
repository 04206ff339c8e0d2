"""The environment that sbatch and its job get: the site's settings, not those of the caller's job.

A sweep may be started from inside a job (`srun --pty`, sbatch). What Slurm set for that job would
reach the new one, whose srun takes it for its own: another job's memory, CPU binding, tasks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES
from hpc_ecg.jobs.settings import SlurmConfig

OF_A_JOB: tuple[str, ...] = ("SLURM_", "SLURMD_", "PMI_", "PMIX_", "SUBMITIT_", *RANK_VARIABLES, *MASTER_VARIABLES)
OF_A_JOB += ("CUDA_VISIBLE_", "ROCR_VISIBLE_", "HIP_VISIBLE_", "GPU_DEVICE_", "ZE_AFFINITY_")
OF_A_JOB += ("SRUN_CPUS_PER_TASK", "SRUN_DEBUG")
OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "PMI_FANOUT", "PMI_TIME", "PMIX_MCA_")
"""How variables begin that Slurm sets for a job or its steps, and exceptions, which sites set."""
NOT_OF_THE_JOB = ("array_parallelism", "jobs_at_once", "max_retries", "max_timeouts")
"""Settings of the launcher: a job in the queue does not depend on them."""
MEMORY = ["MEM", "MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"]
GPUS = ["GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET"]
ONLY_WITH_GPUS = ["CPUS_PER_GPU", "MEM_PER_GPU", "NTASKS_PER_GPU", "GPU_BIND", "GPU_FREQ"]
SAME = [MEMORY, ["TIME", "TIMELIMIT"], ["ARRAY", "ARRAY_INX"], ["REQUEUE", "NO_REQUEUE"]]
"""SBATCH_… variables that say the same; to sbatch they count more than the script."""
OF_THE_SCRIPT = ("time", "job_name", "array", "signal", "output", "error", "open_mode", "requeue")
"""Options that every script states."""


@contextmanager
def sbatch_environment(config: SlurmConfig) -> Iterator[None]:
    """Unset what belongs to the caller's job, and SBATCH_… variables that a setting overrides."""
    names = {f"SBATCH_{name}" for name in _overridden(config)}
    if any(name.startswith(("SLURM_JOB", "SLURM_STEP")) for name in os.environ):
        names |= {n for n in os.environ if n.startswith(OF_A_JOB) and not n.startswith(OF_THE_SITE)}
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def job_settings(config: SlurmConfig) -> dict[str, str]:
    """All that a job in the queue was submitted with: settings, and the shell's variables."""
    settings = {f"slurm.{k}": str(v) for k, v in asdict(config).items() if k not in NOT_OF_THE_JOB}
    return settings | shell_settings(config)


def shell_settings(config: SlurmConfig) -> dict[str, str]:
    """The shell's SBATCH_… variables that sbatch gets beside the settings."""
    with sbatch_environment(config):
        return {name: text for name, text in os.environ.items() if name.startswith("SBATCH_")}


def _overridden(config: SlurmConfig) -> set[str]:
    """Names of variables, without SBATCH_, that say the same as a setting or the script."""
    gpus = [*GPUS, *["GRES"] * ("gpu" in os.environ.get("SBATCH_GRES", ""))]
    names = {name for name, value in asdict(config).items() if value is not None}
    stated = {name.replace("-", "_").upper() for name in (*names, *config.options, *OF_THE_SCRIPT)}
    stated |= {name for group in (gpus, *SAME) if stated & set(group) for name in group}
    return stated | set(ONLY_WITH_GPUS if config.gpus_per_node == 0 else [])
