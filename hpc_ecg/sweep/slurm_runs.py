"""The tasks of a sweep on Slurm: submitted as one array, watched, submitted again if they are lost.

Whoever starts a sweep is not needed for it: jobs that an earlier start submitted are waited for,
not submitted twice. A task is lost when the queue does not know it any more and its folder says
neither that it is done nor why it failed.
"""

import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from hpc_ecg.jobs.slurm import SlurmConfig, state_of
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.sweep.submissions import in_queue, last_submissions, submission_lock, submit
from hpc_ecg.sweep.task import Task

POLL_S, POLL_AT_MOST_S, SLOWER = 2.0, 30.0, 1.2
LOST_AFTER_S = 10.0
"""A folder may show later than the queue what a run left there: shared disks cache."""
OUT_OF_MEMORY = "OUT_OF_MEMORY"
FINAL = ("CANCELLED", OUT_OF_MEMORY)
"""Ends that another try would not change."""


def run_tasks_on_slurm(
    tasks: Sequence[Task],
    folder: Path,
    config: SlurmConfig,
    wait: bool,
    report: Callable[[Task], None],
) -> list[str]:
    """Have done what is not done; returns a line for each task that failed."""
    todo = [task for task in tasks if not task.is_done()]
    submit_missing(todo, folder, config)
    return _watch(todo, folder, config, report) if wait else []


def submit_missing(tasks: Sequence[Task], folder: Path, config: SlurmConfig) -> None:
    """Those that nobody has submitted, or whose job has ended."""
    if not tasks:
        return
    with submission_lock(folder):
        queue = in_queue(folder, [task.name for task in tasks])
        if queue is None:
            raise ValueError("squeue does not answer: is this a login node of a Slurm cluster?")
        missing = [task for task in tasks if task.name not in queue and not task.is_done()]
        ids = submit(missing, folder, config) if missing else []
    if queue:
        logger.info("%d wait or run since an earlier start", len(queue))
    if ids:
        array = ids[0].partition("_")[0]
        logger.info("%d submitted: job %s, logs in %s", len(ids), array, folder / "submitit")


def _watch(
    tasks: Sequence[Task], folder: Path, config: SlurmConfig, report: Callable[[Task], None]
) -> list[str]:
    left = {task.name: task for task in tasks}
    gone_since: dict[str, float] = {}
    tries: Counter[str] = Counter()
    failures = []
    pause = POLL_S
    with progress_bar("runs", len(left)) as advance:
        while left:
            time.sleep(pause)
            pause = min(pause * SLOWER, POLL_AT_MOST_S)
            queue = in_queue(folder, list(left))
            if queue is None:  # a controller that is restarted is back soon
                continue
            lost = []
            for task in _ended(left, queue, gone_since):
                if _is_lost(task, folder, tries[task.name], config.max_retries):
                    lost.append(task)
                    continue
                if task.is_done():
                    report(task)
                else:
                    failures.append(f"{task.name}: {task.reason()}; {task.log()}")
                    logger.warning("%s", failures[-1])
                del left[task.name]
                pause = POLL_S
                advance()
            if lost:
                tries.update(task.name for task in lost)
                logger.info("lost, submitted again: %s", ", ".join(task.name for task in lost))
                submit_missing(lost, folder, config)
                pause = POLL_S
    return failures


def _ended(
    tasks: dict[str, Task], queue: Container[str], gone_since: dict[str, float]
) -> list[Task]:
    """Those that are done, or have not been in the queue for long enough."""
    now, ended = time.monotonic(), []
    for name, task in tasks.items():
        if name in queue:
            gone_since.pop(name, None)
        elif task.is_done() or now - gone_since.setdefault(name, now) > LOST_AFTER_S:
            ended.append(task)
    return ended


def _is_lost(task: Task, folder: Path, tries: int, at_most: int) -> bool:
    """Whether it is to be submitted again. What is lost and is not, is noted as failed."""
    if task.is_done() or task.error.exists():
        return False
    place = last_submissions(folder)[task.name]
    state = state_of(place.id) if place.id else ""
    if tries < at_most and not state.startswith(FINAL):
        return True
    times = f" {tries + 1} times" if tries else ""
    how = "CANCELLED" if state.startswith("CANCELLED") else state  # without what it had waited for
    why = f"its job ended{times} without a result: {how or 'killed or lost'}"
    task.fail(why, place.log, from_outside=not state.startswith(OUT_OF_MEMORY))
    return False
