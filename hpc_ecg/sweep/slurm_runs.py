"""The tasks of a sweep on Slurm: submitted as one array, watched, submitted again if they are lost.

The jobs do not need the process that started them: a later start waits for the jobs of an earlier
one and does not submit them twice. A task is lost when its job has left the queue and its folder
holds neither the results nor an error.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_ecg.atomic_io import write_json
from hpc_ecg.jobs.queue import SlurmUnavailable, read_job_state
from hpc_ecg.jobs.sbatch_environment import job_settings
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import SubmissionLimit, submit_in_pieces, submit_to_slurm
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.sweep.slurm_task import SlurmTask
from hpc_ecg.sweep.submissions import (
    describe_changes,
    last_submissions,
    queued_jobs,
    submission_lock,
)
from hpc_ecg.sweep.task import Task

POLL_S, MAX_POLL_S, POLL_GROWTH = 2.0, 30.0, 1.2
LOST_AFTER_S = 10.0
"""Shared disks cache: a job's results may show later than its end in the queue."""
OUT_OF_MEMORY, CANCELLED = "OUT_OF_MEMORY", "CANCELLED"
"""States of a job that another try would not change."""


def run_tasks_on_slurm(
    tasks: Sequence[Task],
    folder: Path,
    config: SlurmConfig,
    wait: bool,
    on_done: Callable[[Task], None],
) -> list[str]:
    """Submit the tasks that are not done; with `wait`, returns a line for each that failed."""
    todo = [task for task in tasks if not task.is_done()]
    waiting = submit_missing(todo, folder, config)
    if waiting:
        when = "as others end" if wait else "by the next start of the sweep"
        logger.info("%d more are submitted %s", len(waiting), when)
    return _watch(todo, folder, config, on_done, waiting) if wait else []


def submit_missing(
    tasks: Sequence[Task], folder: Path, config: SlurmConfig, room: int | None = None
) -> list[Task]:
    """Submit the tasks that are not done and have no job in the queue; returns those for which
    there is no place yet. `room`: try no more than this of what is left of an earlier call.
    """
    if not tasks:
        return []
    ids: list[str] = []
    with submission_lock(folder):
        queue = queued_jobs(folder, last_submissions(folder))
        if queue is None:
            raise SlurmUnavailable("squeue does not answer: is this a login node of a cluster?")
        missing = [task for task in tasks if task.name not in queue and not task.is_done()]
        count = submit_in_pieces(
            missing,
            lambda part: ids.extend(_submit(part, folder, config)),
            config,
            len(queue),
            room,
        )
    earlier = {task.name: queue[task.name] for task in tasks if task.name in queue}
    if earlier:
        logger.info("%d are queued or running since an earlier start", len(earlier))
        for line in describe_changes(folder, earlier, job_settings(config)):
            logger.warning("%s", line)
    if ids:
        arrays = ", ".join(dict.fromkeys(job_id.partition("_")[0] for job_id in ids))
        logger.info("%d submitted: job %s, logs in %s", len(ids), arrays, folder / "submitit")
    return missing[count:]


def _submit(tasks: Sequence[Task], folder: Path, config: SlurmConfig) -> list[str]:
    """Submit the tasks as one array, without their earlier errors; returns the jobs' ids."""
    number = len(list((folder / "jobs").glob("*.json")))
    job_name = f"hpc_ecg-{number:04d}-{uuid.uuid4().hex[:8]}"
    path = folder / "jobs" / f"{job_name}.json"
    note = {"tasks": [task.name for task in tasks], "settings": job_settings(config)}
    for task in tasks:
        task.error.unlink(missing_ok=True)
    write_json(path, note | {"ids": []})
    functions = [SlurmTask(task=task) for task in tasks]
    try:
        jobs = submit_to_slurm(
            functions, folder / "submitit", config, job_name, config.max_timeouts
        )
    except ValueError as error:
        if "timed out" not in str(error):  # then Slurm may have taken the jobs, as the queue shows
            path.unlink()
        raise
    ids = [job.job_id for job in jobs]
    write_json(path, note | {"ids": ids})
    return ids


def _watch(
    tasks: Sequence[Task],
    folder: Path,
    config: SlurmConfig,
    on_done: Callable[[Task], None],
    waiting: list[Task],
) -> list[str]:
    left = {task.name: task for task in tasks}
    gone_since: dict[str, float] = {}
    retries: Counter[str] = Counter()
    failures = []
    pause = POLL_S
    with progress_bar("runs", len(left)) as advance:
        while left:
            time.sleep(pause)
            pause = min(pause * POLL_GROWTH, MAX_POLL_S)
            queue = queued_jobs(folder, left)
            if queue is None:  # the controller may be restarting
                continue
            lost = []
            submitted = {name: task for name, task in left.items() if task not in waiting}
            ended = _ended(submitted, queue, gone_since)
            for task in ended:
                pause = POLL_S
                if _should_retry(task, folder, retries[task.name], config.max_retries):
                    lost.append(task)
                    continue
                if task.is_done():
                    on_done(task)
                else:
                    failures.append(task.failure())
                    logger.warning("%s", failures[-1])
                del left[task.name]
                advance()
            if lost:
                names = [task.name for task in lost]
                retries.update(names)
                logger.info("lost, submitted again: %s", ", ".join(names))
                submit_missing(lost, folder, config)
            with suppress(SubmissionLimit, SlurmUnavailable):
                waiting = submit_missing(waiting, folder, config, max(len(ended) - len(lost), 1))
    return failures


def _ended(
    tasks: dict[str, Task], queue: Container[str], gone_since: dict[str, float]
) -> list[Task]:
    """The tasks that are done, or whose job left the queue long enough ago."""
    now, ended = time.monotonic(), []
    for name, task in tasks.items():
        if name in queue:
            gone_since.pop(name, None)
        elif task.is_done() or now - gone_since.setdefault(name, now) > LOST_AFTER_S:
            ended.append(task)
    return ended


def _should_retry(task: Task, folder: Path, retries: int, max_retries: int) -> bool:
    """Whether an ended task was lost and may be submitted again. Without a retry left, it fails."""
    if task.is_done() or task.error.exists():
        return False
    submission = last_submissions(folder)[task.name]
    state = read_job_state(submission.job_id) if submission.job_id else ""
    if retries < max_retries and not state.startswith((CANCELLED, OUT_OF_MEMORY)):
        return True
    times = f" {retries + 1} times" if retries else ""
    if state.startswith(CANCELLED):  # without the reason for which it was pending
        state = CANCELLED
    text = f"its job ended{times} without a result: {state or 'killed or lost'}"
    task.fail(text, submission.log, from_outside=not state.startswith(OUT_OF_MEMORY))
    return False
