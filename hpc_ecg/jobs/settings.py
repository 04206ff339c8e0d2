"""What a job asks Slurm for. Imports neither torch nor submitit."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What one run asks for; null leaves it to the shell's SBATCH_… variables, or the cluster."""

    partition: str | None = None
    """Partition, or several: a,b."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have: a100."""
    time: int | None = None
    """Time limit in minutes, at which a run saves and queues again; null = SBATCH_TIMELIMIT, or
    720."""
    nodes: int = 1
    """Nodes of one run."""
    gpus_per_node: int | None = None
    """GPUs of one run on each node."""
    tasks_per_node: int | None = None
    """Processes of one run on each node; null = gpus_per_node, or 1."""
    cpus_per_task: int = 8
    """CPUs of each process."""
    mem: str | None = None
    """Memory on each node: 64G."""
    array_parallelism: int = 256
    """Runs at the same time, at most."""
    max_retries: int = 3
    """How many times one start of the sweep resubmits a run that was killed or lost its node."""
    max_timeouts: int = 20
    """How many time limits one job may reach; each time the run saves and queues again."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which a run gets the signal to save."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the run, after those of slurm/site.sh: [module load cuda/12.4]."""
    options: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch by their long names: {exclude: node3}; true = without a value."""

    def __post_init__(self) -> None:
        for name in ("time", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"slurm.{name} must be at least 1, got {value}")
        for name in ("max_retries", "max_timeouts", "signal_delay_s", "array_parallelism"):
            least = int(name == "array_parallelism")
            if getattr(self, name) < least:
                raise ValueError(
                    f"slurm.{name} must be at least {least}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class SlurmJobs:
    """An array of jobs among which work is divided."""

    jobs: int = 8
    """Jobs of the array."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """sbatch's options by their long names: partition, account, time (minutes), mem …"""
