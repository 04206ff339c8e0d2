"""Which process am I? Ranks from torchrun's or Slurm's variables, said in torchrun's words.

Accelerate and torch.distributed read RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT;
`srun` sets SLURM_* instead. There is no launcher: `srun python -m hpc_ecg …` is enough.
"""

import os
import re
import subprocess
from collections.abc import Mapping, MutableMapping
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
    """Ranks of this process; torchrun's variables win over Slurm's; one process without either.

    Slurm's count only inside a step (`srun`): the batch shell has SLURM_PROCID=0 as well, and the
    job's number of tasks, but runs a single process.
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


def join_world(env: MutableMapping[str, str]) -> Ranks:
    """Read the ranks and export them, with the address to meet at, for torch.distributed."""
    ranks = read_ranks(env)
    if ranks.world_size == 1:
        return ranks
    values = (ranks.rank, ranks.local_rank, ranks.world_size, ranks.local_world_size)
    env.update({name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True)})
    if "SLURM_JOB_ID" in env:
        env.setdefault("MASTER_ADDR", _first_host(env))
        env.setdefault("MASTER_PORT", str(_port_of_job(env)))
    missing = [name for name in MASTER_VARIABLES if name not in env]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={ranks.world_size} but {' and '.join(missing)} not set; "
            "start several processes with torchrun or srun"
        )
    return ranks


def without_ranks(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that is a run of its own, not a rank of this one."""
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
    """SLURM_STEP_TASKS_PER_NODE reads `4(x2),3`: four on two nodes, then three on one."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_STEP_NUM_TASKS"]).split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match, f"SLURM_STEP_TASKS_PER_NODE: {part}"
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(env.get("SLURM_NODEID", "0"))]


def _first_host(env: Mapping[str, str]) -> str:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    if "[" not in nodes:
        return nodes.split(",")[0]
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):  # a container often has no scontrol
        return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).split(",")[0]


def _port_of_job(env: Mapping[str, str]) -> int:
    """Below the ephemeral range (32768 and up), different for jobs and steps that share a node."""
    step = int(env.get("SLURM_STEP_ID", "0"))
    return 20000 + (int(env["SLURM_JOB_ID"]) + 1009 * step) % 12000


def this_job() -> dict[str, str]:
    """What Slurm says about this job, for the record."""
    names = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST")
    return {name: os.environ[name] for name in names if name in os.environ}
