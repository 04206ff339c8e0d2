"""The tasks of a sweep on this machine: some at a time, each a process with its own GPU."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.local_jobs import job_log, run_locally
from hpc_ecg.log import logger
from hpc_ecg.sweep.live_runs import live_runs
from hpc_ecg.sweep.task import Task, run_task
from hpc_ecg.training.settings import FinetuneConfig

IMPORTED_LATE = ("hpc_ecg.sweep.soups", "numba", "pyarrow.dataset", "torch._dynamo")
"""Modules that take long to import and that a run imports while it works."""


def run_tasks_locally(
    tasks: Sequence[Task],
    folder: Path,
    at_once: int,
    timeout_min: int,
    gpus: list[int],
    must_stop: Callable[[], bool],
    on_done: Callable[[Task], None],
) -> list[str]:
    """Run the tasks that are not done; returns a line for each that failed."""
    todo = {task.name: task for task in tasks if not task.is_done()}
    failures = []
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # a mistake would only be repeated
        failed = [name for name, task in todo.items() if task.has_failed()]
        failures = [todo.pop(name).failure() for name in failed]
    for task in todo.values():
        task.error.unlink(missing_ok=True)
    logs = folder / "submitit"
    jobs = [Job(name=n, function=_run_task, arguments=(task, logs)) for n, task in todo.items()]
    with live_runs(folder, [*todo], at_once) as runs:
        for outcome in run_locally(
            jobs, logs, at_once, timeout_min, gpus, must_stop, IMPORTED_LATE, runs.start
        ):
            task = todo[outcome.name]
            runs.end(outcome.name)
            if outcome.error is None:
                on_done(task)
            elif must_stop():  # if it was a failure, the next start will show it
                logger.info("%s: %s", task.name, outcome.error.strip().splitlines()[-1])
            else:
                if not task.error.exists():  # it was killed, or out of time
                    task.fail(outcome.error, outcome.log, from_outside=True)
                failures.append(task.failure())
                logger.warning("failed: %s", failures[-1])
    return failures


def _run_task(task: Task, logs: Path) -> None:
    run_task(task, job_log(logs, task.name, os.getpid()))


def share_cores(run: FinetuneConfig, at_once: int, gpus: list[int]) -> FinetuneConfig:
    """Divide the cores among runs side by side on CPUs, each of which would take all of them."""
    if gpus or run.engine.cpu_threads:
        return run
    threads = max(len(os.sched_getaffinity(0)) // at_once, 1)
    return replace(run, engine=replace(run.engine, cpu_threads=threads))


def visible_gpus() -> list[int]:
    """Numbers of the GPUs that this process may use. ValueError if they are named otherwise."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(torch.cuda.device_count()))
    parts = [part.strip() for part in visible.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={visible}: a sweep deals GPUs by number; give numbers, as in 0,1"
        )
    return [int(part) for part in parts]
