"""The ranks of this process, from torchrun's variables (RANK, WORLD_SIZE …) or Slurm's (SLURM_…).

No launcher is needed: `srun python -m hpc_ecg …` is enough. This file needs no torch.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def read_ranks(env: Mapping[str, str]) -> Ranks:
    """The ranks of this process. torchrun's variables take precedence; without any, one process.

    Slurm's variables count only inside a step (`srun`): the batch shell also has SLURM_PROCID=0 and
    the job's number of tasks, but is a single process. ValueError if torchrun's are incomplete.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _read_torchrun(env)
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        return Ranks(
            rank=int(env["SLURM_PROCID"]),
            local_rank=int(env["SLURM_LOCALID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_world_size=_tasks_on_this_node(env),
        )
    return Ranks()


def without_ranks(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process that is a separate run, not a rank of this one."""
    dropped = (*RANK_VARIABLES, *MASTER_VARIABLES)
    return {
        name: value
        for name, value in env.items()
        if name not in dropped and not name.startswith(("SLURM_STEP", "SLURM_PROCID"))
    }


def _read_torchrun(env: Mapping[str, str]) -> Ranks:
    missing = [name for name in RANK_VARIABLES[:3] if name not in env]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not set, but RANK or WORLD_SIZE is; use torchrun"
        )
    return Ranks(
        rank=int(env["RANK"]),
        local_rank=int(env["LOCAL_RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
    )


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    """Parse SLURM_STEP_TASKS_PER_NODE: `4(x2),3` means four on two nodes, then three on one."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_STEP_NUM_TASKS"]).split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match, f"SLURM_STEP_TASKS_PER_NODE: {part}"
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(env.get("SLURM_NODEID", "0"))]


def slurm_job_facts() -> dict[str, str]:
    """Slurm's id, name, partition and nodes of this job, for environment.json; {} without Slurm."""
    names = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST")
    return {name: os.environ[name] for name in names if name in os.environ}
