"""One task of a sweep, in the process (or processes) of its job: a run, a trial or a soup.

The truth is the task's own folder: it is done when its results are there, and has failed when
error.txt is, which also says whether the task itself failed or was ended from outside (killed,
cancelled, out of time). A task that saved because Slurm told it to, or lost its other processes,
leaves neither: it goes on when somebody starts it again.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from hpc_ecg.atomic_io import write_text
from hpc_ecg.distributed.process_group import PeerLost
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE, Preempted
from hpc_ecg.jobs.slurm import state_of
from hpc_ecg.log import logger, start_logging
from hpc_ecg.preflight.doctor import doctor_before_training
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

UNTIL_ENDED_S = 600
LOG, LOG_OF_ENDED = "log: ", "ended from outside, log: "
"""How error.txt begins, before the file to read."""


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    """Of its folder, below the sweep's."""
    folder: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    results: tuple[Path, ...]
    """Files that are there when it is done."""

    def is_done(self) -> bool:
        return all(path.exists() for path in self.results)

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    def fail(self, text: str, log: Path | str, *, from_outside: bool = False) -> None:
        """Note for all to see what went wrong: its last line is the reason."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = LOG_OF_ENDED if from_outside else LOG
        write_text(self.error, f"{head}{log}\n{text.strip()}\n")

    def has_failed(self) -> bool:
        """Of itself: with these settings it would again."""
        return self.error.exists() and self.error.read_text().startswith(LOG)

    def reason(self) -> str:
        """Of its failure, in one line."""
        lines = [line.strip() for line in self.error.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "failed"

    def log(self) -> str:
        """The file to read about its failure."""
        return log_of(self.error.read_text())


def log_of(error: str) -> str:
    """The file to read, of what error.txt says."""
    return error.partition("\n")[0].partition(LOG)[2]


def task_of_run(name: str, config: FinetuneConfig, *, tests: bool = True) -> Task:
    """`tests`: whether the test split is predicted; a trial must not see it."""
    folder = RunFolder(config.run_dir)
    results = (folder.finished, folder.evaluation) if tests else (folder.finished,)
    return Task(
        name=name,
        folder=folder.path,
        function=run_cell if tests else finetune_only,
        arguments=(config,),
        results=results,
    )


def run_cell(config: FinetuneConfig) -> None:
    finetune(config, doctor_before_training(config))
    evaluate(config)


def finetune_only(config: FinetuneConfig) -> None:
    finetune(config, doctor_before_training(config))


def attempt(task: Task) -> None:
    """Do it, or note why not; all processes of the job call this."""
    rank = read_ranks(os.environ).rank
    start_logging(rank)
    log = submitit.JobEnvironment().paths.stderr
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


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """What submitit calls in a job, and asks for what is to be called after a requeue."""

    task: Task

    def __call__(self) -> None:
        # Slurm's signal is the run's while it trains: it saves, and then submitit has the word
        requeue = signal.getsignal(signal.SIGUSR2)
        try:
            attempt(self.task)
        except Preempted as stopped:
            if stopped.code == EXIT_REQUEUE:
                assert callable(requeue)
                self._go_on(str(stopped), requeue)
            raise

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)

    def _go_on(self, saved: str, requeue: Callable[..., Any]) -> None:
        """Have submitit requeue the job, which ends all of its processes, unless somebody
        cancelled it or it is on its way back into the queue already."""
        if read_ranks(os.environ).rank > 0:  # the first to leave would take the first with it
            time.sleep(UNTIL_ENDED_S)
            return
        state = state_of(submitit.JobEnvironment().job_id)
        logger.info("%s (the job: %s)", saved, state)
        if not state.startswith("RUNNING") and "TimeLimit" not in state:
            return
        try:
            requeue(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            why = f"saved, but {error}: start the sweep again to go on (slurm.max_timeouts)"
            log = submitit.JobEnvironment().paths.stderr
            self.task.fail(why, log, from_outside=True)
            raise
