"""A sweep's task as a Slurm job: what submitit calls, and calls again after a requeue."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE, Preempted
from hpc_ecg.jobs.queue import parse_job_state, show_job
from hpc_ecg.jobs.requeue import decide_requeue
from hpc_ecg.log import logger
from hpc_ecg.sweep.task import Task, run_task

UNTIL_ENDED_S = 600


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    task: Task

    def __call__(self) -> None:
        # while it trains, the run itself takes Slurm's signal, and saves; then submitit requeues
        requeue = signal.getsignal(signal.SIGUSR2)
        log = submitit.JobEnvironment().paths.stderr
        try:
            run_task(self.task, log)
        except Preempted as stopped:
            if stopped.code == EXIT_REQUEUE:
                assert callable(requeue)
                self._requeue(str(stopped), requeue)
            raise

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)

    def _requeue(self, reason: str, requeue: Callable[..., Any]) -> None:
        """Have submitit requeue the job, if the rule allows it; that ends all processes."""
        if read_ranks(os.environ).rank > 0:  # the first to leave would take rank 0 with it
            time.sleep(UNTIL_ENDED_S)
            return
        environment = submitit.JobEnvironment()
        state = parse_job_state(show_job(environment.job_id))
        decision = decide_requeue(EXIT_REQUEUE, state)
        logger.info("%s (the job: %s; %s)", reason, state, decision.text)
        if not decision.requeue:
            return
        try:
            requeue(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            text = f"saved, but {error}: start the sweep again to go on (slurm.max_timeouts)"
            self.task.fail(text, environment.paths.stderr, from_outside=True)
            raise
