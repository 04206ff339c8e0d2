"""The one rule for which jobs Slurm should start again."""

import subprocess
import sys

import pytest

from hpc_ecg.jobs.queue import parse_job_state
from hpc_ecg.jobs.requeue import decide_requeue, main


@pytest.mark.parametrize(
    ("code", "state", "restarts", "requeue", "text"),
    [
        (75, "RUNNING", 99, True, "saved after a signal"),
        (75, "COMPLETING TimeLimit", 0, True, "saved after a signal"),
        (75, "COMPLETING", 0, False, "saved after a signal; Slurm ended the job"),
        (75, "CANCELLED", 0, False, "submit again to go on"),
        (75, "", 0, False, "Slurm does not answer: submit again to go on"),
        (76, "RUNNING", 4, True, "lost the others, or hung"),
        (76, "RUNNING", 5, False, "after 5 restarts it is not started again: submit again"),
        (137, "RUNNING", 4, True, "a process was killed (exit code 137)"),
        (137, "RUNNING", 5, False, "after 5 restarts"),
        (77, "RUNNING", 4, True, "computed twice gave two results"),
        (77, "RUNNING", 5, False, "after 5 restarts"),
        (1, "RUNNING", 0, False, "exit code 1, for the reason above: not started again"),
        (2, "RUNNING", 0, False, "exit code 2, for the reason above: not started again"),
        (128, "RUNNING", 0, False, "not started again"),
        (0, "RUNNING", 0, False, "not started again"),
    ],
)
def test_exit_code_restarts_and_state_decide(code, state, restarts, requeue, text):
    decision = decide_requeue(code, state, restarts)
    assert decision.requeue == requeue and text in decision.text


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("JobId=7 JobState=RUNNING Reason=None Dependency=(null)", "RUNNING"),
        ("JobId=7 JobState=COMPLETING Reason=TimeLimit Dependency=(null)", "COMPLETING TimeLimit"),
        ("slurm_load_jobs error: Invalid job id specified", ""),
    ],
)
def test_a_jobs_state_is_read_from_scontrols_line(line, state):
    assert parse_job_state(line) == state


def test_the_shell_gets_one_line(capsys):
    main(["75", "0", "5", "JobState=RUNNING Reason=None"])
    main(["2", "0", "5", "JobState=RUNNING Reason=None"])
    requeued, ended = capsys.readouterr().out.splitlines()
    assert requeued == "requeue: saved after a signal" and ended.startswith("end: ended with exit")


@pytest.mark.parametrize("module", ["jobs.requeue", "jobs.settings", "jobs.local_jobs"])
def test_what_must_start_fast_imports_neither_torch_nor_submitit(module):
    command = f"import sys, hpc_ecg.{module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert f"hpc_ecg.{module}" in result.stdout
    assert not {"torch", "submitit"} & set(result.stdout.split())
