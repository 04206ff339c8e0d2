"""Why a job ended, from logs as Slurm, shells and Python write them."""

import pytest

from hpc_ecg.jobs.job_log import killed_on, last_words

STARTED = "submitit INFO (2026-11-30 04:11:45) - Starting with JobEnvironment(job_id=4)\n"
TRAINS = f"{STARTED}2026-11-30 04:11:50 weights: 47 tensors from base.pt\n"
ENDED = "srun: launch/slurm: _step_signal: Terminating StepId=4.0\n"
NO_PYTHON = "slurmstepd: error: execve(): /no/python: No such file or directory"
NO_SRUN = "/var/spool/slurmd/job00003/slurm_script: line 12: srun: command not found"
MEMORY = "slurmstepd: error: Exceeded memory limit at some point. Job may have been killed"
TIME = (
    "slurmstepd: error: *** JOB 4 ON node1 CANCELLED AT 2026-11-30T04:11:45 DUE TO TIME LIMIT ***"
)
STOPPED = "hpc_ecg.distributed.stop_signals.Preempted: saved and stopped by SIGTERM"
IMPORT = "ModuleNotFoundError: No module named 'submitit'"
TRACEBACK = f'Traceback (most recent call last):\n  File "x.py", line 3, in fail\n{IMPORT}\n'


def left(code: str, node: str = "node1", task: int = 0) -> str:
    return f"srun: error: {node}: task {task}: {code}\n"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (left("Exited with exit code 2") + ENDED + NO_PYTHON, NO_PYTHON),
        (NO_PYTHON + "\n" + left("Exited with exit code 2") + ENDED, NO_PYTHON),
        (NO_SRUN, NO_SRUN),
        (TRAINS + MEMORY + "\n" + left("Killed"), MEMORY),
        (TRAINS + TIME, TIME),
        (TRAINS + left("Killed"), "a process on node1 ended: Killed, often out of memory"),
        (
            TRAINS
            + left("Killed", "node2", 1)
            + ENDED
            + "slurmstepd-node1: error: *** STEP 4.0 ON node1 CANCELLED AT 2026-11-30 ***\n"
            + left("Terminated"),
            "a process on node2 ended: Killed, often out of memory",
        ),
        (
            TRAINS + left("Segmentation fault (core dumped)"),
            "a process on node1 ended: Segmentation fault (core dumped)",
        ),
        (TRACEBACK + left("Exited with exit code 1"), IMPORT),
        (f'Traceback:\n  File "x.py", line 3\n    raise error\n{STOPPED}\n', STOPPED),
        (
            TRAINS + "terminate called without an active exception",
            "terminate called without an active exception",
        ),
        (TRAINS, ""),
        (TRAINS + left("Exited with exit code 1") + ENDED, ""),
        ("", ""),
    ],
)
def test_the_line_that_says_why_a_job_ended_is_found(tmp_path, log, reason):
    file = tmp_path / "log"
    file.write_text(log)
    assert last_words(file) == reason


def test_a_log_that_is_missing_or_large_is_no_obstacle(tmp_path):
    assert last_words(tmp_path / "none") == "" == killed_on(tmp_path / "none")
    file = tmp_path / "log"
    file.write_bytes(b"\xff\xfe" * 100_000 + f"\n{TRAINS}{NO_PYTHON}\n".encode())
    assert last_words(file) == NO_PYTHON


def test_the_node_of_the_first_process_that_was_killed_is_named(tmp_path):
    file = tmp_path / "log"
    file.write_text(TRAINS + left("Killed", "gpu-07", 1) + left("Terminated", "gpu-06"))
    assert killed_on(file) == "gpu-07"
    file.write_text(TRAINS + left("Exited with exit code 1", "gpu-06"))
    assert killed_on(file) == "", "a program that ends by itself is not its node's fault"
    said = "2026-11-30 15:00:00 step 6 was computed twice. Suspect: {0}; keep it out with {1}={0}\n"
    planted = "2026-11-30 14:00:00 left out: Suspect: gpu-01; keep it out.csv\n"
    file.write_text(planted + said.format("gpu-05", "--exclude") + planted)
    assert killed_on(file) == "gpu-05", "the name of a recording is no node"
    file.write_text(planted + TRAINS + left("Killed", "gpu-07", 1))
    assert killed_on(file) == "gpu-07"
