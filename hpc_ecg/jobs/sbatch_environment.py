"""The environment that sbatch and its job get: the site's settings, not those of the caller's job.

A sweep may be started from inside a job (`srun --pty`, sbatch). What Slurm set for that job would
reach the new one, whose srun takes it for its own: another job's memory, CPU binding, tasks.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES
from hpc_ecg.jobs.settings import SlurmConfig

OF_JOBS = ["SLURM_", "SLURMD_", "PMI_", "PMIX_", "SUBMITIT_", "SRUN_CPUS_PER_TASK", "SRUN_DEBUG"]
OF_JOBS += ["SBATCH_CPU_BIND", "SBATCH_MEM_BIND"]
OF_GPUS = ("CUDA_VISIBLE_", "ROCR_VISIBLE_", "HIP_VISIBLE_", "GPU_DEVICE_", "ZE_AFFINITY_")
OF_SITES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "PMI_FANOUT", "PMI_TIME", "PMIX_MCA_")
"""How variables begin that Slurm sets for a job or its steps, and exceptions, which sites set."""
SAME = [["MEM", "MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"], ["ARRAY", "ARRAY_INX"]]
SAME += [["TIME", "TIMELIMIT"], ["REQUEUE", "NO_REQUEUE"]]
GPUS = ["GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET"]
"""Options, and SBATCH_… variables, that say the same; the variables count more than a script."""
OF_THE_SCRIPT = ("time", "job_name", "array", "signal", "output", "error", "open_mode", "requeue")
OF_THE_LAUNCHER = ("array_parallelism", "jobs_at_once", "max_retries", "max_timeouts")
"""Options that every script states, and settings on which a job in the queue does not depend."""
NOT_IN_PATHS = re.compile(r"%(\d*[A-Za-z]|%)|[\\\n\r]")
"""What Slurm does not take literally in the path of a log: %j, 5%%, a backslash."""


@contextmanager
def sbatch_environment(config: SlurmConfig) -> Iterator[None]:
    """Unset what belongs to the caller's job, and SBATCH_… variables that a setting overrides."""
    names = {f"SBATCH_{name}" for name in _overridden(config)}
    if any(name.startswith(("SLURM_JOB", "SLURM_STEP")) for name in os.environ):
        of_job = (*OF_JOBS, *OF_GPUS, *RANK_VARIABLES, *MASTER_VARIABLES)
        names |= {n for n in os.environ if n.startswith(of_job) and not n.startswith(OF_SITES)}
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def check_log_folder(folder: Path) -> None:
    """Raise ValueError for a folder whose path Slurm would not take literally."""
    path = str(folder.absolute())
    if found := NOT_IN_PATHS.search(path):
        raise ValueError(f"{path}: Slurm replaces {found[0]!r} in paths of logs; rename the folder")


def job_settings(config: SlurmConfig) -> dict[str, str]:
    """What jobs in the queue were submitted with: settings, and the shell's SBATCH_… variables."""
    stated = {k: v for k, v in flatten(asdict(config), "slurm").items() if v not in (None, {}, [])}
    stated = {k: str(v) for k, v in stated.items() if not k.endswith(OF_THE_LAUNCHER)}
    with sbatch_environment(config):
        return stated | {k: text for k, text in os.environ.items() if k.startswith("SBATCH_")}


def _overridden(config: SlurmConfig) -> set[str]:
    """Names of variables, without SBATCH_, that say the same as a setting or the script."""
    named = {name for name, value in asdict(config).items() if value is not None}
    stated = {name.replace("-", "_").upper() for name in (*named, *config.options, *OF_THE_SCRIPT)}
    gpus = GPUS + ["GRES"] * ("gpu" in os.environ.get("SBATCH_GRES", ""))
    stated |= {name for group in (gpus, *SAME) if stated & set(group) for name in group}
    of_shell = [name.removeprefix("SBATCH_") for name in os.environ]
    return stated | {name for name in of_shell if "GPU" in name and config.gpus_per_node == 0}
