"""The tasks of a sweep on Slurm: submitted as one array, watched, submitted again if they are lost.

The jobs do not need the process that started them: a later start waits for the jobs of an earlier
one and does not submit them twice. A task is lost when its job has left the queue and its folder
holds neither the results nor an error.
"""

import time
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hpc_ecg.atomic_io import write_json
from hpc_ecg.jobs.job_log import killed_on, last_words
from hpc_ecg.jobs.queue import (
    QueuedJob,
    SlurmUnavailable,
    allow_nodes,
    describe_queue,
    parse_job_state,
    parse_single_node,
    show_job,
)
from hpc_ecg.jobs.sbatch_environment import job_settings
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.jobs.slurm_jobs import SubmissionLimit, submit_in_pieces, submit_to_slurm
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.reporting.numbers import join_names
from hpc_ecg.sweep.slurm_task import SlurmTask
from hpc_ecg.sweep.submissions import (
    Tries,
    describe_changes,
    last_submissions,
    let_jobs_end,
    link_log,
    queued_jobs,
    submission_lock,
)
from hpc_ecg.sweep.task import Task

POLL_S, MAX_POLL_S, POLL_GROWTH = 2.0, 30.0, 1.2
LOST_AFTER_S = 10.0
"""Shared disks cache: a job's results may show later than its end in the queue."""
OUT_OF_MEMORY, CANCELLED = "OUT_OF_MEMORY", "CANCELLED"
"""States of a job that another try would not change."""
FAULTS_OF_NODES = ("FAILED", "NODE_FAIL", "BOOT_FAIL")
"""States that may be the node's fault: a run that fails by itself leaves error.txt."""
RETRY_AFTER_S = (15, 60, 240, 960)
"""Pauses before a lost run starts again."""


def run_tasks_on_slurm(
    tasks: Sequence[Task],
    folder: Path,
    config: SlurmConfig,
    wait: bool,
    on_done: Callable[[Task], None],
) -> list[str]:
    """Submit the tasks that are not done; with `wait`, returns a line for each that failed."""
    waiting = todo = [task for task in tasks if not task.is_done()]
    let_jobs_end(folder, [task.name for task in todo])
    try:
        waiting = submit_missing(todo, folder, config)
    except SubmissionLimit as error:
        if not wait or not last_submissions(folder):
            raise
        logger.warning("%s", error)  # a sweep that has begun waits
    when = "as others end" if wait else "by the next start of the sweep"
    if waiting:
        logger.info("%d more are submitted %s", len(waiting), when)
    return _watch(todo, folder, config, on_done, waiting) if wait else []


def submit_missing(
    tasks: Sequence[Task], folder: Path, config: SlurmConfig, room: int | None = None
) -> list[Task]:
    """Submit the tasks that are not done and have no job in the queue; returns those for which
    there is no place yet. `room`: try no more than this of what is left of an earlier call."""
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
        are = "job is" if len(earlier) == 1 else "jobs are"
        logger.info("%d %s queued or running since an earlier start", len(earlier), are)
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
    for task, job_id in zip(tasks, ids, strict=True):
        link_log(folder, task.name, job_id)
    return ids


def _watch(
    tasks: Sequence[Task],
    folder: Path,
    config: SlurmConfig,
    on_done: Callable[[Task], None],
    waiting: list[Task],
) -> list[str]:
    left = {task.name: task for task in tasks}
    tries = {name: Tries() for name in left}
    failures, pause, refusal = [], POLL_S, ""
    with progress_bar("runs", len(left)) as advance:
        while left:
            time.sleep(pause)
            pause = min(pause * POLL_GROWTH, MAX_POLL_S)
            queue = queued_jobs(folder, left)
            if queue is None:  # the controller may be restarting
                continue
            advance(0, describe_queue(queue.values(), len(waiting), refusal))
            _allow_excluded_nodes(queue, tries, config)
            lost = []
            submitted = {name: task for name, task in left.items() if task not in waiting}
            ended = _ended(submitted, queue, tries)
            for task in ended:
                pause = POLL_S
                if _should_retry(task, folder, tries[task.name], config.max_retries):
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
                waiting += _submit_again(lost, tries, folder, config)
            try:
                waiting = submit_missing(waiting, folder, config, max(len(ended) - len(lost), 1))
                refusal = ""
            except (SubmissionLimit, SlurmUnavailable) as error:  # other jobs of the user fill it
                refusal = str(error)
    return failures


def _ended(tasks: dict[str, Task], queue: Container[str], tries: Mapping[str, Tries]) -> list[Task]:
    """The tasks that are done, or whose job left the queue long enough ago."""
    now, ended = time.monotonic(), []
    for name, task in tasks.items():
        since = tries[name].gone_since
        tries[name].gone_since = None if name in queue else since or now
        if name not in queue and (task.is_done() or now - (since or now) > LOST_AFTER_S):
            ended.append(task)
    return ended


def _should_retry(task: Task, folder: Path, tries: Tries, max_retries: int) -> bool:
    """Whether an ended task was lost and may be submitted again. Without a retry left, it fails."""
    if task.is_done() or task.error.exists():
        return False
    submission = last_submissions(folder)[task.name]
    shown = show_job(submission.job_id) if submission.job_id else ""
    state = parse_job_state(shown)
    node = killed_on(submission.log) or parse_single_node(shown)
    if node and node not in tries.nodes and state.startswith(FAULTS_OF_NODES):
        tries.nodes.append(node)
    if tries.retries < max_retries and not state.startswith((CANCELLED, OUT_OF_MEMORY)):
        return True
    if state.startswith(CANCELLED):  # without the reason for which it was pending
        state = CANCELLED
    times = f" {tries.retries + 1} times" if tries.retries else ""
    place = f" on {join_names(tries.nodes)}" if tries.nodes else ""
    why = last_words(submission.log)
    reason = f"{why} ({state.split()[0]})" if why and state else why or state
    text = f"its job ended{times} without a result{place}: {reason or 'killed or lost'}"
    task.fail(text, submission.log, from_outside=not state.startswith(OUT_OF_MEMORY))
    return False


def _submit_again(
    lost: Sequence[Task], tries: Mapping[str, Tries], folder: Path, config: SlurmConfig
) -> list[Task]:
    """Submit lost tasks to start after a pause, on other nodes; returns those without a place."""
    mine = [tries[task.name] for task in lost]
    pause_s = max(RETRY_AFTER_S[min(t.retries, len(RETRY_AFTER_S) - 1)] for t in mine)
    nodes = sorted({node for known in mine for node in known.nodes})
    for known in mine:
        known.retries, known.gone_since, known.excludes = known.retries + 1, None, bool(nodes)
    options = config.options | {"begin": f"now+{pause_s}"}
    exclude = ",".join([*filter(None, [options.get("exclude")]), *nodes])
    choices = [options | {"exclude": exclude}] * bool(nodes) + [options]
    names, refusal = ", ".join(task.name for task in lost), ""
    for choice in choices:  # with the exclusion, no node may have what the runs ask for
        try:
            waiting = submit_missing(lost, folder, replace(config, options=choice))
        except ValueError as error:
            refusal = str(error)
            continue
        avoided = f", not to {join_names(nodes)}" if choice != options else ""
        logger.info("lost, submitted again%s: %s", avoided, names)
        return waiting
    logger.warning("lost, and refused when submitted again: %s: %s", names, refusal)
    return []


def _allow_excluded_nodes(
    queue: Mapping[str, QueuedJob], tries: Mapping[str, Tries], config: SlurmConfig
) -> None:
    """Let jobs that no other node can run return to the nodes on which they were lost."""
    for name, job in queue.items():
        if tries[name].excludes and job.lacks_nodes:
            tries[name].excludes = False
            allow_nodes(job.id, config.options.get("exclude", ""))
            where = f"{join_names(tries[name].nodes)} again: no other node is available"
            logger.info("%s may run on %s", name, where)
