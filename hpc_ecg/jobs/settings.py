"""What a job asks Slurm for. Imports neither torch nor submitit."""

from dataclasses import dataclass, field
from typing import Any

from hpc_ecg.config.schema import check_settings, setting


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
    time: int | None = setting(None, at_least=1)
    """Time limit in minutes, at which a run saves and queues again; null = SBATCH_TIMELIMIT, or
    720."""
    nodes: int = setting(1, at_least=1)
    """Nodes of one run."""
    gpus_per_node: int | None = setting(None, at_least=1)
    """GPUs of one run on each node."""
    tasks_per_node: int | None = setting(None, at_least=1)
    """Processes of one run on each node; null = gpus_per_node, or 1."""
    cpus_per_task: int = setting(8, at_least=1)
    """CPUs of each process."""
    mem: str | None = None
    """Memory on each node: 64G."""
    array_parallelism: int = setting(256, at_least=1)
    """Runs at the same time, at most."""
    max_retries: int = setting(3, at_least=0)
    """How many times one start of the sweep resubmits a run that was killed or lost its node."""
    max_timeouts: int = setting(20, at_least=0)
    """How many time limits one job may reach; each time the run saves and queues again."""
    signal_delay_s: int = setting(120, at_least=0)
    """Seconds before the time limit at which a run gets the signal to save."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the run, after those of slurm/site.sh: [module load cuda/12.4]."""
    options: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch by their long names: {exclude: node3}; true = without a value."""

    def __post_init__(self) -> None:
        check_settings(self, "slurm")
        texts = [self.partition, self.account, self.qos, self.constraint, self.mem]
        for text in [*texts, *self.options, *self.options.values()]:
            if text and not text.isprintable():  # the next line of the script would be run
                raise ValueError(f"slurm: {text!r} has a line break; write it on one line")


@dataclass(frozen=True, kw_only=True)
class SlurmJobs:
    """An array of jobs among which work is divided."""

    jobs: int = 8
    """Jobs of the array."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """sbatch's options by their long names: partition, account, time (minutes), mem …"""
