"""What Slurm knows about jobs: squeue, scontrol and scancel. None of it needs accounting."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from hpc_ecg.reporting.numbers import count

NO_NODES = ("ReqNodeNotAvail", "BadConstraints", "Nodes required")
REASONS = {
    "Resources": "nodes must become free",
    "Priority": "jobs of higher priority come first",
    "BeginTime": "its start time has not come",
    "DependencyNever": "the job that it waits for failed; cancel it",
    "Dependency": "another job must end first",
    "JobArrayTaskLimit": "as many run as slurm.array_parallelism allows",
    "JobHeldAdmin": "held by an administrator, who can release it",
    "JobHeld": "held; scontrol release starts it",
    "launch failed": "held, as its node could not start it; scontrol release tries again",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "BadConstraints": "no node has what it asks for",
    "PartitionTimeLimit": "it asks for more time than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "Partition": "the partition is closed",
    "Reservation": "its reservation has not begun, or is over",
    "Licenses": "a licence must become free",
    "InvalidAccount": "the account may not be used; see slurm.account",
    "InvalidQOS": "the quality of service may not be used; see slurm.qos",
    "QOSNotAllowed": "the partition or account does not take this quality of service",
    "QOS": "a limit of the quality of service",
    "Assoc": "a limit of the account",
    "Max": "a limit of the account",
}
"""Why a job waits, by how Slurm's word for it begins."""

LIMIT = re.compile(r"(?:QOS|Assoc)?(Grp|Max)(.+?)(?:Run)?(Minutes)?(?:Per(\w+?))?(?:Limit)?$")
"""A limit of all jobs together or of one, of what, and per what."""
LIMITED = {"gre": "GPUs (or other GRES)", "cpu": "CPUs", "mem": "memory", "memory": "memory"}
LIMITED |= {"node": "nodes", "job": "jobs at once", "submitjob": "jobs submitted"}
LIMITED |= {"wall": "time", "wallduration": "time"}


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

    @property
    def lacks_nodes(self) -> bool:
        """Whether it waits for nodes that are down, drained, reserved or excluded."""
        return self.is_pending and self.reason.startswith(NO_NODES)

    def describe_reason(self) -> str:
        """Why it waits, as Slurm says it and in words; "" without a reason."""
        words = [text for start, text in REASONS.items() if self.reason.startswith(start)][:1]
        if words and (limit := LIMIT.match(self.reason)):
            what = LIMITED.get(limit[2].lower().rstrip("s"), limit[2]) + " × time" * bool(limit[3])
            whose = f" per {limit[4].lower()}" if limit[4] else ""
            words[0] += f", {what}{whose}{', all jobs together' * (limit[1] == 'Grp')}"
        return " ".join([self.reason.replace("None", ""), *(f"({text})" for text in words)])


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


def describe_queue(jobs: Collection[QueuedJob], unsubmitted: int = 0, refusal: str = "") -> str:
    """How many jobs run, how many wait for what, and how many Slurm does not take yet."""
    reasons = Counter(job.describe_reason() or "submitted" for job in jobs if job.is_pending)
    parts = [f"{count(number, 'job')} waiting: {why}" for why, number in reasons.most_common()]
    if unsubmitted:
        parts.append(f"{unsubmitted} not submitted yet: {refusal or 'others must end first'}")
    return "; ".join([f"{count(len(jobs) - reasons.total(), 'job')} running", *parts])


def show_job(job_id: str) -> str:
    """scontrol's line about a job, which it knows until minutes after the job's end, or ""."""
    return ask_scontrol("--oneliner", "show", "job", job_id)


def ask_scontrol(*words: str) -> str:
    """What scontrol prints; "" without an answer."""
    try:
        command = ["scontrol", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def parse_job_state(shown: str) -> str:
    """Reduce scontrol's line about a job to its state and reason: RUNNING, COMPLETING TimeLimit."""
    match = re.search(r"\bJobState=(\w+)(?: Reason=(\w+))?", shown)
    return " ".join(part for part in match.groups() if part not in (None, "None")) if match else ""


def parse_single_node(shown: str) -> str:
    """The node of a job that had one, from scontrol's line; "" for several or none."""
    match = re.search(r"\bNodeList=([^\s,\[\]()]+)\s", shown)
    return match[1] if match else ""


def allow_nodes(job_id: str, still_excluded: str) -> None:
    """Let a pending job, unless it has started, run on all nodes but those `still_excluded`."""
    ask_scontrol("update", f"JobId={job_id}", f"ExcNodeList={still_excluded}")


def cancel_jobs(job_ids: list[str]) -> None:
    """Run scancel. Raises ValueError if Slurm refuses."""
    answer = subprocess.run(["scancel", *job_ids], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(f"scancel: {' '.join(answer.stderr.split())}")
