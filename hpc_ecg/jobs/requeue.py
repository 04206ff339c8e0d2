"""The one rule for which jobs Slurm should start again.

A sweep's task asks it in Python. slurm/job.sh asks it by `python -m hpc_ecg.jobs.requeue`, so this
file starts fast: it imports neither torch nor submitit. That Python may run in a container without
Slurm's commands, so the shell calls scontrol and passes its output.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE, SIGNALS
from hpc_ecg.distributed.watchdog import EXIT_CORRUPTED, EXIT_PEER_LOST
from hpc_ecg.jobs.queue import parse_job_state

MAX_RESTARTS = 5
STOPPED_EARLY = [128 + number for number in SIGNALS]
"""Exit codes after a signal that came while Python imported: later, they are handled."""


@dataclass(frozen=True, kw_only=True)
class RequeueDecision:
    requeue: bool
    text: str
    """The reason for the requeue, or a sentence on why the job is not requeued."""


def decide_requeue(
    exit_code: int, job_state: str, restarts: int = 0, max_restarts: int = MAX_RESTARTS
) -> RequeueDecision:
    """Decide whether a job whose first process ended with `exit_code` should be requeued.

    A run that saved (75) continues, however often, and so does one that a signal to save ended
    before Python was ready for it. One that lost its peers or hung (76), computed a step twice with
    two results (77), or was killed (128 + signal), is started again `max_restarts` times. Anything
    else would fail again.
    `job_state` is what `parse_job_state` returns: Slurm must still be running the job, or be ending
    it at its time limit. Otherwise it was cancelled, or is on its way back into the queue already.
    """
    if exit_code == EXIT_REQUEUE:
        reason = "saved after a signal"
    elif exit_code in STOPPED_EARLY:
        reason = "stopped on request while it started"
    elif exit_code == EXIT_PEER_LOST:
        reason = "a process lost the others, or hung"
    elif exit_code == EXIT_CORRUPTED:
        reason = "a step that was computed twice gave two results"
    elif 128 < exit_code <= 128 + 64:
        reason = f"a process was killed (exit code {exit_code})"
    else:
        text = f"ended with exit code {exit_code}, for the reason above: not started again"
        return RequeueDecision(requeue=False, text=text)
    if exit_code not in (EXIT_REQUEUE, *STOPPED_EARLY) and restarts >= max_restarts:
        obstacle = f"after {restarts} restarts it is not started again"
    elif not job_state:
        obstacle = "Slurm does not answer"
    elif re.match(r"RUNNING\b", job_state) or job_state.endswith("TimeLimit"):
        return RequeueDecision(requeue=True, text=reason)
    else:
        obstacle = "Slurm ended the job, which may be back in the queue already"
    text = f"{reason}; {obstacle}: submit again to go on"
    return RequeueDecision(requeue=False, text=text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print `requeue: REASON` or `end: SENTENCE`."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ecg.jobs.requeue", description=__doc__)
    parser.add_argument("exit_code", type=int)
    parser.add_argument("restarts", type=int)
    parser.add_argument("max_restarts", type=int)
    parser.add_argument("scontrol", help="the output of `scontrol --oneliner show job`")
    options = parser.parse_args(arguments)
    job_state = parse_job_state(options.scontrol)
    decision = decide_requeue(options.exit_code, job_state, options.restarts, options.max_restarts)
    verdict = "requeue" if decision.requeue else "end"
    print(f"{verdict}: {decision.text}")  # noqa: T201


if __name__ == "__main__":
    main()
