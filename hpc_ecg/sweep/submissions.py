"""Which Slurm job runs which task: a note per submission, written before sbatch is called.

A note (`SWEEP/jobs/<name>.json`) holds the names of its tasks in the order of the array, and the
job has the note's name. So even if a launcher is killed between two lines, the queue still shows
which tasks have a job, and nothing is submitted twice. This file imports no torch.
"""

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from filelock import FileLock, Timeout

from hpc_ecg.hashing import read_record
from hpc_ecg.jobs.queue import QueuedJob, SlurmUnavailable, read_queue
from hpc_ecg.log import waiting_for
from hpc_ecg.sweep.folder import check_name

LOCK_PATIENCE_S, ENDING_S = 60, 60
OF_RETRIES = ("slurm.options.begin", "slurm.options.exclude")
"""What the launcher states for jobs of runs that were lost."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The last submission of a task."""

    job_name: str
    index: int
    """Index of the task in the array."""
    job_id: str
    """"" where the launcher was killed before it knew."""
    log: Path
    settings: dict[str, str]
    """What its job asks for; {} in notes of version 0.1."""


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the queue and submit what is missing; held for seconds."""
    jobs = folder / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(jobs / "lock", timeout=LOCK_PATIENCE_S)
    try:
        with waiting_for(f"waiting for the process that holds {jobs / 'lock'}"):
            lock.acquire()
    except Timeout:
        raise ValueError(f"{jobs / 'lock'} is held by another process; try again") from None
    with lock:
        lock.release()  # it counts how often it was acquired
        yield


@dataclass
class Tries:
    """What this start of the sweep knows about a task that was lost."""

    retries: int = 0
    gone_since: float | None = None
    """When the job of this try was first missed in the queue."""
    nodes: list[str] = field(default_factory=list)
    """The nodes on which it was lost."""
    excludes: bool = False
    """Whether the job in the queue excludes them."""


def last_submissions(folder: Path) -> dict[str, Submission]:
    """The last submission of every task that was ever submitted, by the task's name."""
    last: dict[str, Submission] = {}
    for path in sorted((folder / "jobs").glob("*.json")):
        note = read_record(path, {"tasks": list, "ids": list})
        settings = note.get("settings", {})
        for name, job_id in zip_longest(note["tasks"], note["ids"], fillvalue=""):
            index = note["tasks"].index(check_name(path, name))
            if not re.fullmatch(r"(\d+(_\d+)?)?", str(job_id)):
                raise ValueError(f"{path} is damaged: {str(job_id)[:40]!r} is no job")
            link = _log_link(folder, name, job_id)
            log = link if link.is_symlink() else folder / "submitit" / f"{job_id}_0_log.err"
            last[name] = Submission(
                job_name=path.stem, index=index, job_id=job_id, log=log, settings=settings
            )
    return last


def _log_link(folder: Path, task_name: str, job_id: str) -> Path:
    return folder / "jobs" / f"{task_name.replace('/', '-')}-{job_id}.err"


def link_log(folder: Path, task_name: str, job_id: str) -> None:
    """Make a link with the task's name to the job's log, on a disk that has links."""
    with suppress(OSError):
        _log_link(folder, task_name, job_id).symlink_to(f"../submitit/{job_id}_0_log.err")


def queued_jobs(folder: Path, task_names: Collection[str]) -> dict[str, QueuedJob] | None:
    """The jobs of these tasks that are pending or running; None if Slurm does not answer."""
    last = last_submissions(folder)
    submitted = {name: last[name] for name in task_names if name in last}
    if not submitted:
        return {}
    job_names = sorted({submission.job_name for submission in submitted.values()})
    try:
        queue = read_queue(f"--name={','.join(job_names)}")
    except SlurmUnavailable:
        return None
    jobs = {(job.name, job.index): job for job in queue}
    keys = {name: (submission.job_name, submission.index) for name, submission in submitted.items()}
    return {name: jobs[key] for name, key in keys.items() if key in jobs}


def let_jobs_end(folder: Path, task_names: Collection[str]) -> None:
    """Wait, for seconds, for jobs of these tasks that Slurm is ending, as after `sweep cancel`:
    their runs need new jobs."""
    end = time.monotonic() + ENDING_S
    with waiting_for("waiting for jobs that Slurm is ending"):
        while time.monotonic() < end:
            jobs = (queued_jobs(folder, task_names) or {}).values()
            if not any(job.state == "CG" for job in jobs):
                return
            time.sleep(1)


def describe_changes(
    folder: Path, queue: Mapping[str, QueuedJob], now: Mapping[str, str]
) -> list[str]:
    """Lines on jobs that wait with other settings than those given `now`, and on what to do."""
    last, ids = last_submissions(folder), dict[str, list[str]]()
    for name, job in queue.items():
        then = last[name].settings
        chosen = OF_RETRIES if "slurm.options.begin" in then else ()
        differing = {key for key in {*then, *now} if then.get(key) != now.get(key)}
        keys = sorted(differing.difference(chosen)) if then else []
        text = ", ".join(f"{k}={then.get(k, 'unset')} (now {now.get(k, 'unset')})" for k in keys)
        if text and job.is_pending:
            ids.setdefault(text, []).append(job.id)
    return [
        f"{len(jobs)} queued since an earlier start keep {text}: to change that, `hpc-ecg sweep "
        f"cancel {folder}` and start the sweep again, or, for what Slurm can change in the queue, "
        f"`scontrol update JobId={','.join(jobs)} …`"
        for text, jobs in ids.items()
    ]
