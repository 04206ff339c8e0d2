"""What a job asks Slurm for, in Slurm's own forms. Imports neither torch nor submitit."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from hpc_ecg.config.load import load_config
from hpc_ecg.config.schema import check_settings, setting

DEFAULT_TIME_MIN = 720
TIMES = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"


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
    time: int | str | None = setting(None, at_least=1)
    """Time limit, at which a run saves and queues again: minutes, or as 12:00:00 or 1-12:00:00;
    null = SBATCH_TIMELIMIT, or 720."""
    nodes: int = setting(1, at_least=1)
    """Nodes of one run."""
    gpus_per_node: int | str | None = setting(None, at_least=0)
    """GPUs of one run on each node, with their type if you like: 4 or a100:4; 0 = none, whatever
    the SBATCH_… variables say."""
    tasks_per_node: int | None = setting(None, at_least=1)
    """Processes of one run on each node; null = gpus_per_node, or 1."""
    cpus_per_task: int = setting(8, at_least=1)
    """CPUs of each process."""
    mem: str | None = None
    """Memory on each node: 64G; 0 = all of it."""
    array_parallelism: int = setting(256, at_least=1)
    """Runs at the same time, at most."""
    jobs_at_once: int | None = setting(None, at_least=1)
    """Runs in the queue at the same time, waiting ones included; null = as many as Slurm takes."""
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
        for name in ("time", "gpus_per_node"):  # the command line gives text
            value = getattr(self, name)
            if isinstance(value, str) and value.isdecimal():
                object.__setattr__(self, name, int(value))
        check_settings(self, "slurm")
        if self.time is not None:
            time_limit_min(self)
        for name, pattern, allowed in (
            ("gpus_per_node", r"\d+|[\w.-]+:\d+(,[\w.-]+:\d+)*", "a number, or as a100:4"),
            ("mem", r"\d+([KMGT]B?)?", "a whole number with a unit, as 64G"),
        ):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, str(value), re.IGNORECASE):
                raise ValueError(f"slurm.{name} must be {allowed}, got {value!r}")
        texts = [self.partition, self.account, self.qos, self.constraint, self.mem]
        for text in [*texts, *self.options, *self.options.values()]:
            if text and not text.isprintable():  # the next line of the script would be run
                raise ValueError(f"slurm: {text!r} has a line break; write it on one line")

    @property
    def num_gpus(self) -> int:
        """GPUs on each node, of all types; 0 where that is left to the shell."""
        parts = str(self.gpus_per_node or 0).split(",")
        return sum(int(part.rpartition(":")[2]) for part in parts)


def time_limit_min(config: SlurmConfig) -> int:
    """The time limit in minutes. ValueError if it leaves no time before the signal to save."""
    shell = "" if config.time is not None else os.environ.get("SBATCH_TIMELIMIT", "")
    name, limit = ("SBATCH_TIMELIMIT", shell) if shell else ("slurm.time", config.time)
    minutes = DEFAULT_TIME_MIN if limit is None else parse_minutes(limit, name)
    if 60 * minutes <= config.signal_delay_s:
        raise ValueError(
            f"{name}={limit or minutes} is not more than slurm.signal_delay_s="
            f"{config.signal_delay_s}: the signal to save would come at the start; give more time"
        )
    return minutes


def parse_minutes(limit: int | str, name: str) -> int:
    """Read a time limit in any of Slurm's forms; seconds are rounded up, as Slurm does."""
    text = str(limit)
    days, _, clock = text.rpartition("-")
    if re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        parts = [int(part) for part in clock.split(":")]
        if not days and len(parts) < 3:
            parts = [0, *parts]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        total = 60 * (24 * int(days or 0) + hours) + minutes + math.ceil(seconds / 60)
        if total:
            return total
    raise ValueError(f"{name}={text} is no time limit; write it as {TIMES}")


@dataclass(frozen=True, kw_only=True)
class SlurmJobs:
    """An array of jobs among which work is divided."""

    jobs: int = 8
    """Jobs of the array."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Settings as in `SlurmConfig`, and other options of sbatch by their long names."""

    def config(self) -> SlurmConfig:
        """What one job asks for: one CPU and no GPU unless stated. Raises ValueError."""
        stated = {"cpus_per_task": 1, "gpus_per_node": 0, "signal_delay_s": 30}
        stated |= {name.replace("-", "_"): value for name, value in self.parameters.items()}
        known = SlurmConfig.__dataclass_fields__
        words = [f"{'' if k in known else 'options.'}{k}={value}" for k, value in stated.items()]
        return load_config(SlurmConfig, [], words)


def parse_slurm(text: str) -> SlurmJobs:
    """`jobs=8,partition=cpu`: the size of the array, and what each job asks for."""
    words = re.split(r",(?=[\w-]+=)", text)  # a value may be a list: partition=a,b
    pairs = [word.partition("=")[::2] for word in words]
    options = {name.replace("-", "_"): value for name, value in pairs}
    if len(options) < len(pairs):
        raise ValueError(f"--slurm: give each word once, got {text!r}")
    jobs = options.pop("jobs", "8")
    if not jobs.isdecimal() or int(jobs) < 1 or not all(options.values()):
        raise ValueError(f"--slurm: expected words like jobs=8,partition=cpu,time=60, got {text!r}")
    slurm = SlurmJobs(jobs=int(jobs), parameters=options)
    slurm.config()
    return slurm
