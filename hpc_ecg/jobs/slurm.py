"""A sweep's jobs on Slurm: settings in, submitit's parameters out; and what the queue says.

The job's script is submitit's. What a site needs is taken from the shell that submits (SBATCH_…
variables of slurm/site.sh) and from that file in the job, as for slurm/finetune.sh. Nothing here
needs accounting: who is in the queue is asked of squeue.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

SITE = Path("slurm/site.sh")
PYTHON = f'"${{HPC_ECG_PYTHON[@]:-{sys.executable}}}"'
TIME_MIN = 720
# Slurm lets these win over the lines of a script, so a setting drops those that say the same.
VARIABLES = {
    "partition": ("PARTITION",),
    "account": ("ACCOUNT",),
    "qos": ("QOS",),
    "constraint": ("CONSTRAINT",),
    "gpus_per_node": ("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GRES"),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
}
OURS = (
    *("TIMELIMIT", "JOB_NAME", "ARRAY_INX", "SIGNAL", "OUTPUT", "ERROR", "OPEN_MODE"),
    *("REQUEUE", "NO_REQUEUE"),
)


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What one run asks for; null: what the shell's SBATCH_… variables say, or the cluster."""

    partition: str | None = None
    """Partition, or several: a,b."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have: a100."""
    time: int | None = None
    """Minutes until a job saves and queues again; null = SBATCH_TIMELIMIT, or 720."""
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
    """How often one start of the sweep submits a run again that was killed or lost its node."""
    max_timeouts: int = 20
    """How many time limits one job of a run may meet; each time it saves and queues again."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which a run is told to save."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the run, after those of slurm/site.sh: [module load cuda/12.4]."""
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

    @property
    def num_tasks(self) -> int:
        return self.nodes * self._tasks_per_node

    @property
    def _tasks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    def parameters(self, name: str) -> dict[str, Any]:
        """As submitit's executor wants them, for jobs of this name."""
        flags = {key: value == "true" or value for key, value in self.options.items()}
        return {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.time or minutes_of(os.environ.get("SBATCH_TIMELIMIT", str(TIME_MIN))),
            "nodes": self.nodes,
            "ntasks_per_node": self._tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": self.gpus_per_node,
            "mem": self.mem,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "wckey": None,
            "setup": [*_site_lines(), *self.setup],
            "srun_args": ["--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, **flags},
        }


def script_of(config: SlurmConfig, folder: Path, name: str, count: int) -> str:
    """The text that sbatch will get for so many runs."""
    command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
    many = count if count > 1 else None
    where = folder.absolute()
    return _make_sbatch_string(command, where, map_count=many, **config.parameters(name))


@contextmanager
def settings_win(config: SlurmConfig) -> Iterator[None]:
    """Over the shell's SBATCH_… variables, while jobs are submitted."""
    names = [n for key, own in VARIABLES.items() if getattr(config, key) is not None for n in own]
    dropped = {
        key: os.environ.pop(key)
        for key in [f"SBATCH_{name}" for name in (*names, *OURS)]
        if key in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(dropped)


def minutes_of(text: str) -> int:
    """Slurm's way to write a time: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"SBATCH_TIMELIMIT={text}: no time; write minutes, or as 1-12:00:00")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        return max(parts[0], 1)
    hours, minutes, *_ = [*parts, 0]
    return max((24 * int(days or 0) + hours) * 60 + minutes, 1)


@dataclass(frozen=True, kw_only=True)
class InQueue:
    id: str
    state: str
    """R, PD, CG … as squeue says it."""
    reason: str

    @property
    def waits(self) -> bool:
        return self.state == "PD"


def ask_queue(names: Sequence[str]) -> dict[tuple[str, int], InQueue] | None:
    """Name of job and number of task -> what waits or runs; None if no Slurm answers."""
    if not names:
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %j %t %r"]
    try:
        found = subprocess.run(
            [*command, f"--name={','.join(names)}"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    queue = {}
    for line in found.stdout.splitlines():
        job, name, state, reason = line.split(" ", 3)
        index = int(job.partition("_")[2] or 0)
        queue[name, index] = InQueue(id=job, state=state, reason=reason)
    return queue


def state_of(job: str) -> str:
    """How a job ended, as long as Slurm remembers it (minutes); "" then."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    found = re.search(r" JobState=(\w+)(?: Reason=(\w+))?", said)
    return " ".join(part for part in found.groups() if part not in (None, "None")) if found else ""


def cancel(jobs: Sequence[str]) -> None:
    """ValueError if Slurm does not take it."""
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"scancel: {' '.join(done.stderr.split())}")


def _site_lines() -> list[str]:
    """As slurm/job.sh begins: modules and environment, CPUs for srun (which does not inherit them
    since Slurm 22.05), and all GPUs of the node for each process."""
    source = [f"source {shlex.quote(str(SITE.absolute()))}"] if SITE.exists() else []
    return [
        *source,
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        "unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK",
    ]
