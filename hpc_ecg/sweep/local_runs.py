"""The tasks of a sweep on this machine: so many processes at a time, each with a GPU of its own."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hpc_ecg.jobs.submit import Job, run_locally
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.sweep.task import Task, attempt
from hpc_ecg.training.settings import FinetuneConfig


def run_tasks_locally(
    tasks: Sequence[Task],
    folder: Path,
    at_once: int,
    timeout_min: int,
    gpus: list[int],
    must_stop: Callable[[], bool],
    report: Callable[[Task], None],
) -> list[str]:
    """Do what is not done; returns a line for each task that failed."""
    todo = {task.name: task for task in tasks if not task.is_done()}
    for task in todo.values():
        task.error.unlink(missing_ok=True)
    jobs = [Job(name=name, function=attempt, arguments=(task,)) for name, task in todo.items()]
    failures = []
    where = folder / "submitit"
    with progress_bar("runs", len(todo)) as advance:
        for outcome in run_locally(jobs, where, at_once, timeout_min, gpus, must_stop):
            task = todo[outcome.name]
            if outcome.error is None:
                report(task)
            elif must_stop():  # if it was a failure, the next start will say so
                logger.info("%s: %s", task.name, outcome.error.strip().splitlines()[-1])
            else:
                if not task.error.exists():  # it was killed, or out of time
                    task.fail(outcome.error, outcome.log, from_outside=True)
                failures.append(f"{task.name}: {task.reason()}; {outcome.log}")
                logger.warning("%s", failures[-1])
            advance()
    return failures


def share_cores(run: FinetuneConfig, at_once: int, gpus: list[int]) -> FinetuneConfig:
    """Runs side by side on CPUs share the cores instead of each taking all of them."""
    if gpus or run.engine.cpu_threads:
        return run
    threads = max(len(os.sched_getaffinity(0)) // at_once, 1)
    return replace(run, engine=replace(run.engine, cpu_threads=threads))


def visible_gpus() -> list[int]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(range(torch.cuda.device_count()))
    parts = [part.strip() for part in named.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={named}: a sweep deals GPUs by number; give numbers, as in 0,1"
        )
    return [int(part) for part in parts]
