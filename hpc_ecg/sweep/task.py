"""One task of a sweep, in the process (or processes) of its job: a run, a trial or a soup.

A task is done when its folder holds the results. It failed when the folder holds error.txt, which
also says whether the task itself failed or was ended from outside (killed, cancelled, out of time).
A task that saved on Slurm's signal, or lost its other processes, leaves neither: the next start
continues it.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import write_text
from hpc_ecg.distributed.failures import PeerLost
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE, Preempted
from hpc_ecg.log import printable, start_logging
from hpc_ecg.preflight.doctor import doctor_before_training
from hpc_ecg.sweep.folder import ENDED_LOG, LOG, parse_error
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    """Folder of the task, below the sweep's."""
    folder: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    results: tuple[Path, ...]
    """Files that exist once the task is done."""

    def is_done(self) -> bool:
        return all(path.exists() for path in self.results)

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    def fail(self, text: str, log: Path | str, *, from_outside: bool = False) -> None:
        """Write error.txt: the log's path, then `text`, whose last line is the reason."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = ENDED_LOG if from_outside else LOG
        write_text(self.error, f"{head}{log}\n{printable(text).strip()}\n")

    def has_failed(self) -> bool:
        """Whether the task itself failed, and would fail again with these settings."""
        return self.error.exists() and self.error.read_text().startswith(LOG)

    def failure(self) -> str:
        """One line about the failure, with the log to read."""
        reason, log = parse_error(self.error.read_text())
        return f"{self.name}: {reason}; {log}"


@dataclass(frozen=True, kw_only=True)
class TaskRunner:
    """Runs tasks on this machine or on Slurm."""

    run_all: Callable[[Sequence[Task]], list[str]]
    """Run the tasks that are not done; returns a line for each that failed."""
    fit_to_machine: Callable[[FinetuneConfig], FinetuneConfig] = lambda run: run
    """Change a run's settings to suit the machine."""


def task_of_run(name: str, config: FinetuneConfig, *, predict_test: bool = True) -> Task:
    """The task of fine-tuning with `config`; a trial must not predict the test split."""
    folder = RunFolder(config.run_dir)
    return Task(
        name=name,
        folder=folder.path,
        function=run_and_evaluate,
        arguments=(config, predict_test, folder.path.parents[name.count("/")]),
        results=(folder.finished, folder.evaluation) if predict_test else (folder.finished,),
    )


def run_and_evaluate(
    config: FinetuneConfig, predict_test: bool = True, sweep_dir: Path | None = None
) -> None:
    finetune(config, doctor_before_training(config), sweep_dir)
    if predict_test:
        evaluate(config)


def run_task(task: Task, log: Path) -> None:
    """Run the task, or write why it failed; all processes of the job call this."""
    rank = read_ranks(os.environ).rank
    start_logging(rank)
    try:
        task.function(*task.arguments)
    except PeerLost:
        raise
    except Preempted as stopped:
        if rank == 0 and stopped.code != EXIT_REQUEUE:
            task.fail(str(stopped), log, from_outside=True)
        raise
    except Exception:
        task.fail(traceback.format_exc(), log)
        raise
    if rank == 0:
        task.error.unlink(missing_ok=True)
