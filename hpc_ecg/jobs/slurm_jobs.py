"""Functions as an array of Slurm jobs, through submitit, which writes the script that sbatch gets.

What a site needs comes from the shell that submits (the SBATCH_… variables of slurm/site.sh) and,
inside the job, from that file again, as for slurm/finetune.sh.
"""

import contextlib
import io
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError, pickle_load
from submitit.slurm.slurm import _make_sbatch_string

from hpc_ecg.atomic_io import wait_until_seen
from hpc_ecg.jobs.job import Job, JobOutcome
from hpc_ecg.jobs.job_log import last_words
from hpc_ecg.jobs.queue import SlurmUnavailable, ask_scontrol, describe_queue, read_queue
from hpc_ecg.jobs.sbatch_environment import check_log_folder, job_settings, sbatch_environment
from hpc_ecg.jobs.settings import SlurmConfig, SlurmJobs, time_limit_min
from hpc_ecg.log import logger

Item = TypeVar("Item")
POLL_S, MAX_POLL_S = 2.0, 30.0
RESULT_PATIENCE_S = 15.0
SITE_FILE = Path("slurm/site.sh")
PYTHON = f'"${{HPC_ECG_PYTHON[@]:-{sys.executable}}}"'
SAME_NAMES = ["partition", "account", "qos", "constraint", "nodes", "cpus_per_task", "mem"]
SAME_NAMES += ["signal_delay_s", "array_parallelism"]
"""Settings that submitit's executor calls the same."""
FULL = re.compile("SubmitJob|Invalid job array spec|temporarily un")
"""What sbatch says when fewer jobs, or the same ones later, would be accepted."""
STOPPED_EARLY = [
    'code=$?; [ "$code" -gt 128 ] || exit "$code"',
    'state=$(scontrol --oneliner show job "$SLURM_JOB_ID")',
    f'decision=$({PYTHON} -m hpc_ecg.jobs.requeue "$code" 0 0 "$state")',
    'case $decision in requeue:*) echo "$decision" >&2; scontrol requeue "$SLURM_JOB_ID";; esac',
    'exit "$code"',
]
"""After srun: a signal that came before Python handled it ended the run, and nobody else knows."""


class SubmissionLimit(ValueError):  # noqa: N818
    """Slurm has as many jobs as it takes of this user, or takes no array of this size."""


def run_on_slurm(
    jobs: Sequence[Job],
    folder: Path,
    slurm: SlurmJobs,
    what: str = "shards",
    each_poll: Callable[[str], object] = lambda _: None,
) -> Iterator[JobOutcome]:
    """Submit the jobs as Slurm arrays and yield each as it ends; `folder` must be on a disk that
    all nodes share. When the caller stops early, the jobs are cancelled. `what` is in their name;
    `each_poll` takes what runs and what waits for what, in words.

    A job has ended when its result is there or it has left the queue: on a cluster without
    accounting, `sacct` and so submitit would never notice that a job was killed.
    """
    config, name = slurm.config(), f"hpc_ecg-{what}-{uuid.uuid4().hex[:8]}"
    running: list[tuple[Job, submitit.Job[Any]]] = []

    def submit(piece: Sequence[Job]) -> None:
        functions = [partial(job.function, *job.arguments) for job in piece]
        running.extend(zip(piece, submit_to_slurm(functions, folder, config, name), strict=True))

    waiting, pause, room = list(jobs), POLL_S, None
    try:
        while waiting or running:
            try:
                del waiting[: submit_in_pieces(waiting, submit, config, len(running), room)]
            except SubmissionLimit as error:  # the user's other jobs fill it
                if len(waiting) == len(jobs):
                    raise
                logger.warning("%s; trying again in %.0f s", error, MAX_POLL_S)
                time.sleep(MAX_POLL_S)
            time.sleep(pause)
            try:
                queue = read_queue(f"--name={name}")
            except SlurmUnavailable as error:  # which says nothing of the jobs
                pause = min(2 * pause, MAX_POLL_S)
                logger.warning("%s; asking again in %.0f s", error, pause)
                continue
            each_poll(describe_queue(queue, len(waiting)))
            queued = {job.id for job in queue}
            pause, num_running = POLL_S, len(running)
            for job, handle in list(running):
                if handle.paths.result_pickle.exists() or handle.job_id not in queued:
                    running.remove((job, handle))
                    yield _outcome_of(job, handle)
            room = max(num_running - len(running), 1)
    finally:
        for _, handle in running:
            handle.cancel(check=False)


def submit_in_pieces(
    items: Sequence[Item],
    submit: Callable[[Sequence[Item]], None],
    config: SlurmConfig,
    queued: int,
    room: int | None = None,
) -> int:
    """Submit items in arrays as large as Slurm takes; returns how many it took, from the first on.

    `queued` of the caller's jobs are in the queue; `room`, for what is left of an earlier call,
    limits how many are tried. Raises SubmissionLimit if Slurm takes none, and none is queued.
    """
    size, done = _max_array_size(), 0
    most = min(len(items) if room is None else room, (config.jobs_at_once or sys.maxsize) - queued)
    while True:
        if room is not None or size < len(items):  # an array's limit does not count the others
            most = min(most, config.array_parallelism - queued)
        piece = items[done : min(done + size, max(most, 0))]
        if not piece:
            return done
        try:
            submit(piece)
            done += len(piece)
        except SubmissionLimit:
            if len(piece) == 1 and not done + queued:
                raise
            size = len(piece) // 2


def _max_array_size() -> int:
    """Jobs in one array by Slurm's configuration; without an answer, no limit is known."""
    shown = ask_scontrol("show", "config")
    limits = re.findall(r"\b(?:MaxArraySize\s*=\s*|max_array_tasks=)(\d+)", shown)
    return max(min(map(int, limits), default=sys.maxsize), 1)


def submit_to_slurm(
    functions: Sequence[Callable[[], Any]],
    folder: Path,
    config: SlurmConfig,
    job_name: str,
    max_num_timeout: int = 0,
) -> list[submitit.Job[Any]]:
    """Submit one array; returns a job for each function. ValueError if Slurm refuses it."""
    parameters = sbatch_parameters(config, folder, job_name)
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=max_num_timeout, python=PYTHON)
        executor.update_parameters(**parameters)
        # submitit repeats on standard error what sbatch says
        with sbatch_environment(config), contextlib.redirect_stderr(io.StringIO()):
            return executor.submit_array(functions)
    except (FailedJobError, ValueError, RuntimeError, OSError) as error:
        text = f"Slurm takes no job: {' '.join(str(error).split())}"
        shell = [f"{k}={v}" for k, v in job_settings(config).items() if k.startswith("SBATCH_")]
        text += f" (the shell adds {', '.join(shell)})" if shell else ""
        raise (SubmissionLimit if FULL.search(text) else ValueError)(text) from None
    finally:
        _remove_unsubmitted(folder)


def _remove_unsubmitted(folder: Path) -> None:
    """Delete what submitit wrote for jobs that Slurm did not take; it renames the others' files."""
    for path in [*folder.glob("[0-9a-f]" * 32 + ".pkl"), *folder.glob(".submission_file_*.sh")]:
        if not path.is_symlink():
            path.unlink()


def _outcome_of(job: Job, handle: submitit.Job[Any]) -> JobOutcome:
    result, log = handle.paths.result_pickle, handle.paths.stderr
    with contextlib.suppress(ValueError):  # a slow disk may show the result later than the queue
        wait_until_seen(result, RESULT_PATIENCE_S)
    if not result.exists():
        why = last_words(log) or "killed, cancelled, or out of time or memory"
        return JobOutcome(name=job.name, error=f"it ended without a result: {why}", log=log)
    ending, value = pickle_load(result)
    if ending == "error":
        return JobOutcome(name=job.name, error=value.strip(), log=log)
    return JobOutcome(name=job.name, error=None, log=log, value=value)


def sbatch_parameters(config: SlurmConfig, folder: Path, job_name: str) -> dict[str, Any]:
    """What submitit's executor takes, for a job of these settings with its logs in `folder`.

    Raises ValueError for a path that Slurm would not take literally, and for too short a time.
    """
    check_log_folder(folder)
    flags = {key: value == "true" or value for key, value in config.options.items()}
    return {name: getattr(config, name) for name in SAME_NAMES} | {
        "job_name": job_name,
        "time": time_limit_min(config),
        "gpus_per_node": config.gpus_per_node or None,
        "ntasks_per_node": config.tasks_per_node or config.num_gpus or 1,
        "wckey": None,
        "setup": [*_site_lines(), *config.setup],
        "srun_args": ["--kill-on-bad-exit=1"],
        "teardown": STOPPED_EARLY,
        "additional_parameters": {"requeue": True, **flags},
    }


def sbatch_script(config: SlurmConfig, folder: Path, job_name: str, num_jobs: int) -> str:
    """The script that sbatch would get for `num_jobs` runs."""
    folder = folder.absolute()
    return _make_sbatch_string(
        f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder,
        map_count=num_jobs if num_jobs > 1 else None,
        **sbatch_parameters(config, folder, job_name),
    )


def _site_lines() -> list[str]:
    """Begin as slurm/job.sh does: modules and environment, CPUs for srun (which does not inherit
    them since Slurm 22.05), and all GPUs of the node for each process."""
    source = [f"source {shlex.quote(str(SITE_FILE.absolute()))}"] if SITE_FILE.exists() else []
    return [
        "trap : TERM USR1 USR2  # the lines after srun must run",
        *source,
        "set +eu",
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        "unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK",
    ]
