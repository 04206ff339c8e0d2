"""What Slurm knows about jobs: squeue, scontrol and scancel. None of it needs accounting."""

import os
import re
import subprocess
from dataclasses import dataclass


class SlurmUnavailable(ValueError):  # noqa: N818
    """squeue is not installed, or its controller does not answer."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job, or one task of an array, that is pending or running."""

    id: str
    """17, or 17_3 for task 3 of array 17."""
    name: str
    state: str
    """squeue's short form: R, PD, CG …"""
    reason: str
    """Why it is pending; the text None where there is no reason."""

    @property
    def index(self) -> int:
        """Index in the array; 0 without an array."""
        return int(self.id.partition("_")[2] or 0)

    @property
    def is_pending(self) -> bool:
        return self.state == "PD"


def read_queue(filter_option: str) -> list[QueuedJob]:
    """List the jobs that are pending or running, an array task by task.

    `filter_option` is squeue's: --jobs=17 or --name=a,b. Raises SlurmUnavailable.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i|%j|%t|%r", filter_option]
    # the user's own filters, such as SQUEUE_STATES, would hide jobs
    environment = {name: v for name, v in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        raise SlurmUnavailable(f"squeue does not answer: {error}") from None
    # a job that ended some minutes ago is not in the queue, which is no failure of Slurm
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise SlurmUnavailable(f"squeue does not answer: {answer.stderr.strip()}")
    lines = answer.stdout.splitlines()
    rows = [line.split("|", 3) for line in lines if "|" in line]  # SLURM_CLUSTERS adds titles
    return [QueuedJob(id=id, name=name, state=state, reason=why) for id, name, state, why in rows]


def read_job_state(job_id: str) -> str:
    """Ask scontrol, which knows a job until minutes after its end; "" if it does not answer."""
    command = ["scontrol", "--oneliner", "show", "job", job_id]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return parse_job_state(answer.stdout)


def parse_job_state(shown: str) -> str:
    """Reduce scontrol's line about a job to its state and reason: RUNNING, COMPLETING TimeLimit."""
    match = re.search(r"\bJobState=(\w+)(?: Reason=(\w+))?", shown)
    return " ".join(part for part in match.groups() if part not in (None, "None")) if match else ""


def cancel_jobs(job_ids: list[str]) -> None:
    """Run scancel. Raises ValueError if Slurm refuses."""
    answer = subprocess.run(["scancel", *job_ids], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(f"scancel: {' '.join(answer.stderr.split())}")
