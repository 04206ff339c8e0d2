"""Functions as an array of Slurm jobs, through submitit, which writes the script that sbatch gets.

What a site needs comes from the shell that submits (the SBATCH_… variables of slurm/site.sh) and,
inside the job, from that file again, as for slurm/finetune.sh.
"""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, pickle_load
from submitit.slurm.slurm import _make_sbatch_string

from hpc_ecg.atomic_io import wait_until_seen
from hpc_ecg.jobs.job import Job, JobOutcome
from hpc_ecg.jobs.job_log import last_words
from hpc_ecg.jobs.queue import read_queue
from hpc_ecg.jobs.settings import SlurmConfig, SlurmJobs

POLL_S = 2.0
RESULT_PATIENCE_S = 15.0
SITE_FILE = Path("slurm/site.sh")
PYTHON = f'"${{HPC_ECG_PYTHON[@]:-{sys.executable}}}"'
DEFAULT_TIME_MIN = 720
SAME_NAMES = ["partition", "account", "qos", "constraint", "nodes", "cpus_per_task"]
SAME_NAMES += ["gpus_per_node", "mem", "signal_delay_s", "array_parallelism"]
"""Settings that submitit's executor calls the same."""
VARIABLES_OF_SETTING = {
    "partition": ["PARTITION"],
    "account": ["ACCOUNT"],
    "qos": ["QOS"],
    "constraint": ["CONSTRAINT"],
    "gpus_per_node": ["GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GRES"],
    "mem": ["MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"],
}
"""SBATCH_… variables that say the same as a setting; to sbatch they count more than the script."""
SCRIPT_VARIABLES = ["TIMELIMIT", "JOB_NAME", "ARRAY_INX", "SIGNAL", "OUTPUT", "ERROR", "OPEN_MODE"]
SCRIPT_VARIABLES += ["REQUEUE", "NO_REQUEUE"]
"""The same for what every script sets."""


def run_on_slurm(jobs: Sequence[Job], folder: Path, config: SlurmJobs) -> Iterator[JobOutcome]:
    """Submit the jobs as one Slurm array and yield each as it ends; `folder` must be on a disk that
    all nodes share. When the caller stops early, the jobs are cancelled.

    A job has ended when its result is there or it has left the queue: on a cluster without
    accounting, `sacct` and so submitit would never notice that a job was killed.
    """
    functions = [partial(job.function, *job.arguments) for job in jobs]
    handles = submit_to_slurm(functions, folder, config.parameters)
    array_id = handles[0].job_id.partition("_")[0]
    running = list(zip(jobs, handles, strict=True))
    try:
        while running:
            queued = {job.id for job in read_queue(f"--jobs={array_id}")}
            for job, handle in list(running):
                if handle.paths.result_pickle.exists() or handle.job_id not in queued:
                    running.remove((job, handle))
                    yield _outcome_of(job, handle)
            time.sleep(POLL_S)
    finally:
        for _, handle in running:
            handle.cancel(check=False)


def submit_to_slurm(
    functions: Sequence[Callable[[], Any]],
    folder: Path,
    parameters: dict[str, Any],
    **executor_options: Any,
) -> list[submitit.Job[Any]]:
    """Submit one array; returns a job for each function. ValueError if Slurm refuses it."""
    try:
        executor = submitit.SlurmExecutor(folder=folder, **executor_options)
        executor.update_parameters(**parameters)
        return executor.submit_array(functions)
    except (FailedJobError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"Slurm takes no job: {' '.join(str(error).split())}") from None
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


def sbatch_parameters(config: SlurmConfig, job_name: str) -> dict[str, Any]:
    """What submitit's executor takes, for a job of these settings."""
    time_limit = os.environ.get("SBATCH_TIMELIMIT", str(DEFAULT_TIME_MIN))
    flags = {key: value == "true" or value for key, value in config.options.items()}
    return {name: getattr(config, name) for name in SAME_NAMES} | {
        "job_name": job_name,
        "time": config.time or parse_minutes(time_limit),
        "ntasks_per_node": config.tasks_per_node or config.gpus_per_node or 1,
        "wckey": None,
        "setup": [*_site_lines(), *config.setup],
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **flags},
    }


def sbatch_script(config: SlurmConfig, folder: Path, job_name: str, num_jobs: int) -> str:
    """The script that sbatch would get for `num_jobs` runs."""
    folder = folder.absolute()
    return _make_sbatch_string(
        f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder,
        map_count=num_jobs if num_jobs > 1 else None,
        **sbatch_parameters(config, job_name),
    )


@contextlib.contextmanager
def without_sbatch_variables(config: SlurmConfig) -> Iterator[None]:
    """Unset the shell's SBATCH_… variables that would override a setting or the script's lines."""
    settings = [key for key in VARIABLES_OF_SETTING if getattr(config, key) is not None]
    names = [name for key in settings for name in VARIABLES_OF_SETTING[key]]
    variables = [f"SBATCH_{name}" for name in names + SCRIPT_VARIABLES]
    saved = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def parse_minutes(text: str) -> int:
    """Read a time as Slurm writes it: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"SBATCH_TIMELIMIT={text}: no time; write minutes, or as 1-12:00:00")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        return max(parts[0], 1)
    hours, minutes, *_ = [*parts, 0]
    return max((24 * int(days or 0) + hours) * 60 + minutes, 1)


def _site_lines() -> list[str]:
    """Begin as slurm/job.sh does: modules and environment, CPUs for srun (which does not inherit
    them since Slurm 22.05), and all GPUs of the node for each process."""
    source = [f"source {shlex.quote(str(SITE_FILE.absolute()))}"] if SITE_FILE.exists() else []
    return [
        *source,
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        "unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK",
    ]
