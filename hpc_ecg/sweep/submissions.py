"""Which job has which task: a note per submission, written before sbatch is called.

A note (`SWEEP/jobs/<name>.json`) holds the names of its tasks in the order of the array; the job
bears the note's name. So whoever is killed between two lines, the queue still says who has what,
and nothing is submitted twice.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from hpc_ecg.atomic_io import read_json, write_json
from hpc_ecg.jobs.slurm import PYTHON, InQueue, SlurmConfig, ask_queue, settings_win
from hpc_ecg.jobs.submit import submit_to_slurm
from hpc_ecg.sweep.task import SlurmTask, Task

LOCK_PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Where a task was submitted last."""

    note: str
    index: int
    id: str
    """Of the job; "" where whoever submitted it was killed too early."""
    log: Path


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """One process at a time looks who has what and submits the rest; held for seconds only."""
    jobs = folder / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(jobs / "lock", timeout=LOCK_PATIENCE_S):
            yield
    except Timeout:
        raise ValueError(f"{jobs / 'lock'} is held by another process; try again") from None


def last_submissions(folder: Path) -> dict[str, Submission]:
    """Of every task that was ever submitted, by its name."""
    found: dict[str, Submission] = {}
    for path in sorted((folder / "jobs").glob("*.json")):
        note = read_json(path)
        for index, name in enumerate(note["tasks"]):
            id = note["ids"][index] if note["ids"] else ""
            log = folder / "submitit" / f"{id}_0_log.err"
            found[name] = Submission(note=path.stem, index=index, id=id, log=log)
    return found


def in_queue(folder: Path, names: Sequence[str]) -> dict[str, InQueue] | None:
    """Of these tasks, those that wait or run; None if no Slurm answers."""
    known = {name: place for name, place in last_submissions(folder).items() if name in names}
    queue = ask_queue(sorted({place.note for place in known.values()}))
    if queue is None:
        return None
    return {
        name: queue[place.note, place.index]
        for name, place in known.items()
        if (place.note, place.index) in queue
    }


def submit(tasks: Sequence[Task], folder: Path, config: SlurmConfig) -> list[str]:
    """As one array; returns the ids. What is known of earlier failures is forgotten."""
    number = len(list((folder / "jobs").glob("*.json")))
    name = f"hpc_ecg-{number:04d}-{uuid.uuid4().hex[:8]}"
    path, note = folder / "jobs" / f"{name}.json", {"tasks": [task.name for task in tasks]}
    for task in tasks:
        task.error.unlink(missing_ok=True)
    write_json(path, note | {"ids": []})
    try:
        with settings_win(config):
            jobs = submit_to_slurm(
                [SlurmTask(task=task) for task in tasks],
                folder / "submitit",
                config.parameters(name),
                max_num_timeout=config.max_timeouts,
                python=PYTHON,
            )
    except ValueError:
        path.unlink()
        raise
    ids = [job.job_id for job in jobs]
    write_json(path, note | {"ids": ids})
    return ids
