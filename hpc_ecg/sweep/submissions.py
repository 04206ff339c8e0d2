"""Which Slurm job runs which task: a note per submission, written before sbatch is called.

A note (`SWEEP/jobs/<name>.json`) holds the names of its tasks in the order of the array, and the
job has the note's name. So even if a launcher is killed between two lines, the queue still shows
which tasks have a job, and nothing is submitted twice.
"""

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import read_json, write_json
from hpc_ecg.jobs.queue import QueuedJob, SlurmUnavailable, read_queue
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import (
    PYTHON,
    sbatch_parameters,
    submit_to_slurm,
    without_sbatch_variables,
)
from hpc_ecg.sweep.slurm_task import SlurmTask
from hpc_ecg.sweep.task import Task

LOCK_PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The last submission of a task."""

    job_name: str
    index: int
    """Index of the task in the array."""
    job_id: str
    """"" where the launcher was killed before it knew."""
    log: Path


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the queue and submit what is missing; held for seconds."""
    jobs = folder / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(jobs / "lock", timeout=LOCK_PATIENCE_S):
            yield
    except Timeout:
        raise ValueError(f"{jobs / 'lock'} is held by another process; try again") from None


def last_submissions(folder: Path) -> dict[str, Submission]:
    """The last submission of every task that was ever submitted, by the task's name."""
    last: dict[str, Submission] = {}
    for path in sorted((folder / "jobs").glob("*.json")):
        note = read_json(path)
        for index, name in enumerate(note["tasks"]):
            job_id = note["ids"][index] if note["ids"] else ""
            log = folder / "submitit" / f"{job_id}_0_log.err"
            last[name] = Submission(job_name=path.stem, index=index, job_id=job_id, log=log)
    return last


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


def submit(tasks: Sequence[Task], folder: Path, config: SlurmConfig) -> list[str]:
    """Submit the tasks as one array, without their earlier errors; returns the jobs' ids."""
    number = len(list((folder / "jobs").glob("*.json")))
    job_name = f"hpc_ecg-{number:04d}-{uuid.uuid4().hex[:8]}"
    path, note = folder / "jobs" / f"{job_name}.json", {"tasks": [task.name for task in tasks]}
    for task in tasks:
        task.error.unlink(missing_ok=True)
    write_json(path, note | {"ids": []})
    try:
        with without_sbatch_variables(config):
            jobs = submit_to_slurm(
                [SlurmTask(task=task) for task in tasks],
                folder / "submitit",
                sbatch_parameters(config, job_name),
                max_num_timeout=config.max_timeouts,
                python=PYTHON,
            )
    except ValueError:
        path.unlink()
        raise
    ids = [job.job_id for job in jobs]
    write_json(path, note | {"ids": ids})
    return ids
