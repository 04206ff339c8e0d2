"""Functions as jobs, through submitit: on this machine, so many at a time, each with its own GPU
and log; or as an array of Slurm.

submitit's local executor has no "n at a time", a time limit of two minutes unless told, and hides
the GPUs; all three are set here.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import submitit

from hpc_ecg.atomic_io import wait_until_seen
from hpc_ecg.distributed.ranks import without_ranks

POLL_SECONDS = 0.2
STOP_SECONDS = 1.0
SLURM_POLL_SECONDS = 2.0
RESULT_PATIENCE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; `error` is None for a success, else the text of what went wrong."""

    name: str
    error: str | None
    log: Path
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class SlurmJobs:
    """How an array of jobs is submitted."""

    jobs: int = 8
    parameters: dict[str, Any] = field(default_factory=dict)
    """sbatch's options by their long names: partition, account, time (minutes), mem …"""


def run_locally(
    jobs: Sequence[Job],
    folder: Path,
    at_once: int,
    timeout_min: int,
    gpus: Sequence[int],
    must_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Run the jobs as processes of this machine, `at_once` at a time; yields each as it ends.

    A job gets one of `gpus` while it runs. Once `must_stop` says so, no other starts, and those
    that run get SIGTERM until they end. When the caller stops early, they are stopped at once.
    """
    assert not gpus or len(gpus) >= at_once
    waiting, free = list(jobs), list(range(at_once))
    running: dict[int, tuple[Job, submitit.Job[Any]]] = {}
    try:
        while running or (waiting and not must_stop()):
            stopping = must_stop()
            while waiting and free and not stopping:
                slot, job = free.pop(0), waiting.pop(0)
                gpu = [gpus[slot]] if gpus else []
                running[slot] = job, _submit(job, folder, timeout_min, gpu)
            for slot, (job, handle) in list(running.items()):
                if handle.done():
                    del running[slot]
                    free.append(slot)
                    yield Outcome(name=job.name, error=_error_of(handle), log=handle.paths.stderr)
                elif stopping:  # again and again: a job that only starts does not listen yet
                    os.kill(int(handle.job_id), signal.SIGTERM)
            time.sleep(STOP_SECONDS if stopping else POLL_SECONDS)
    finally:
        for _, handle in running.values():
            handle.cancel(check=False)


def run_on_slurm(jobs: Sequence[Job], folder: Path, how: SlurmJobs) -> Iterator[Outcome]:
    """Submit the jobs as one Slurm array and yield each as it ends; `folder` must be on a disk that
    all nodes share. When the caller stops early, the jobs are cancelled.

    A job has ended when its result is there, or when the queue does not know it any more: where
    nobody keeps accounts, `sacct` and so submitit would never say that a job was killed.
    """
    functions = [partial(job.function, *job.arguments) for job in jobs]
    handles = submit_to_slurm(functions, folder, how.parameters)
    running = list(zip(jobs, handles, strict=True))
    try:
        while running:
            queued = _queue_of(handles[0].job_id.partition("_")[0])
            for job, handle in list(running):
                if handle.paths.result_pickle.exists() or handle.job_id not in queued:
                    running.remove((job, handle))
                    yield _outcome_of(job, handle)
            time.sleep(SLURM_POLL_SECONDS)
    finally:
        for _, handle in running:
            handle.cancel(check=False)


def submit_to_slurm(
    functions: Sequence[Callable[[], Any]], folder: Path, parameters: dict[str, Any], **more: Any
) -> list[Any]:
    """submitit's jobs of one array. `more`: of its executor. ValueError if Slurm takes no job."""
    try:
        executor = submitit.SlurmExecutor(folder=folder, **more)
        executor.update_parameters(**parameters)
        return executor.submit_array(functions)
    except (submitit.core.utils.FailedJobError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"Slurm takes no job: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _queue_of(array: str) -> set[str]:
    """The tasks of an array that wait or run, as 17_0, 17_1 …"""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and "Invalid job id" not in found.stderr:
        raise ValueError(f"squeue does not answer: {found.stderr.strip()}")
    return set(found.stdout.split())


def _outcome_of(job: Job, handle: Any) -> Outcome:
    with contextlib.suppress(ValueError):  # a slow disk may show the result later than the queue
        wait_until_seen(handle.paths.result_pickle, RESULT_PATIENCE_S)
    log = handle.paths.stderr
    if not handle.paths.result_pickle.exists():
        error = "it ended without a result: killed, cancelled, or out of time or memory"
        return Outcome(name=job.name, error=error, log=log)
    failure = _error_of(handle)
    value = None if failure else handle.result()
    return Outcome(name=job.name, error=failure, log=log, value=value)


def _submit(job: Job, folder: Path, timeout_min: int, gpus: list[int]) -> Any:
    executor = submitit.LocalExecutor(folder=folder / job.name.replace("/", "-"))
    executor.update_parameters(
        timeout_min=timeout_min, gpus_per_node=len(gpus), visible_gpus=tuple(gpus)
    )
    inherited, terminal = dict(os.environ), os.dup(2)
    # submitit stops a job by SIGINT, which a process in the background (nohup, &) ignores, and so
    # would its children
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    # Slurm may send these to every process of a job, and submitit's watcher of the job would die
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        before[number] = signal.signal(number, signal.SIG_IGN)
    try:  # a job is a run of its own, not a rank of the process that submits it
        os.environ.clear()
        os.environ.update(without_ranks(inherited))
        # Ctrl-C reaches submitit's watcher of the job too, whose traceback is not for the user
        with folder.with_suffix(".log").open("ab") as log:
            os.dup2(log.fileno(), 2)
        return executor.submit(job.function, *job.arguments)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(inherited)


def _error_of(handle: Any) -> str | None:
    try:
        error = handle.exception()
    except Exception as failure:  # submitit raises what it could not read
        error = failure
    if error is None:
        return None
    # submitit puts the job's own traceback between two rules, and advice behind them
    parts = str(error).split("\n----------------------\n")
    return (parts[1] if len(parts) > 2 else parts[0]).strip()
