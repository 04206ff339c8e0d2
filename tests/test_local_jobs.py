"""Jobs on this machine: limited in number, failures reported, no process left running."""

import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from hpc_ecg.jobs import local_jobs
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.local_jobs import run_locally

pytestmark = pytest.mark.slow


def record(folder, name, seconds):
    """Write start and end, and what the job sees of ranks and GPUs."""
    names = ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "CUDA_VISIBLE_DEVICES", "KEPT")
    seen = " ".join(f"{n}={os.environ.get(n)}" for n in names)
    start = time.time()
    time.sleep(seconds)
    (Path(folder) / name).write_text(f"{start} {time.time()} {seen}")


def save_on_signal(folder, number):
    """As a run: remember a signal, and save at the next step."""
    received = []
    signal.signal(number, lambda number, _: received.append(number))
    (Path(folder) / "ready").touch()
    while not received:
        time.sleep(0.05)
    time.sleep(1.5)
    (Path(folder) / "saved").touch()


def fail(text):
    sys.stdout.write("about to fail\n")
    raise ValueError(text)


def kill_itself(number):
    os.kill(os.getpid(), number)


def leave_with_code(code):
    os._exit(code)


def run(jobs, tmp_path, at_once, gpus=()):
    return list(run_locally(jobs, tmp_path / "jobs", at_once, timeout_min=5, gpus=gpus))


def job(tmp_path, name, seconds=0.5):
    return Job(name=name, function=record, arguments=(str(tmp_path), name, seconds))


def times_of(tmp_path, names):
    return sorted(tuple(map(float, (tmp_path / n).read_text().split()[:2])) for n in names)


def test_no_more_jobs_run_at_once_than_asked_each_with_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("KEPT", "yes")
    before = dict(os.environ)
    names = ["a", "b", "c"]
    outcomes = run([job(tmp_path, name, 1.0) for name in names], tmp_path, 2, gpus=[5, 7])
    assert sorted(o.name for o in outcomes) == names
    assert {o.error for o in outcomes} == {None}
    assert dict(os.environ) == before, "the caller's environment is as it was"

    (_, end_a), (start_b, end_b), (start_c, _) = times_of(tmp_path, names)
    assert start_b < end_a, "two at a time"
    assert start_c > min(end_a, end_b), "and no third"

    seen = {name: (tmp_path / name).read_text().split()[2:] for name in names}
    for words in seen.values():  # a run of its own, not a rank of this process
        assert words[:3] == ["RANK=None", "WORLD_SIZE=None", "SLURM_STEP_NUM_TASKS=None"]
        assert words[4] == "KEPT=yes"
    gpus = [seen[name][3] for name in names]
    assert set(gpus) == {"CUDA_VISIBLE_DEVICES=5", "CUDA_VISIBLE_DEVICES=7"}
    assert gpus[0] != gpus[1]


def test_one_at_a_time_runs_in_order_and_a_failure_does_not_stop_the_others(tmp_path):
    jobs = [
        Job(name="x/bad", function=fail, arguments=("no such tensor",)),
        Job(name="x/dead", function=kill_itself, arguments=(9,)),
        Job(name="x/hung", function=leave_with_code, arguments=(76,)),
        job(tmp_path, "good", 0),
    ]
    outcomes = run(jobs, tmp_path, 1)
    assert [o.name for o in outcomes] == ["x/bad", "x/dead", "x/hung", "good"]
    bad, dead, hung, good = outcomes
    assert bad.error.startswith("Traceback") and bad.error.endswith("ValueError: no such tensor")
    assert bad.log.parent == tmp_path / "jobs" / "x-bad"
    assert "no such tensor" in bad.log.read_text()
    assert bad.log.with_suffix(".out").read_text() == "about to fail\n"
    assert dead.error == "killed by signal 9 (SIGKILL), often out of memory"
    assert dead.log.read_text().splitlines()[-1] == dead.error
    assert hung.error == "ended with exit code 76: no reason is logged"
    assert good.error is None and good.log.is_file()
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir()) == [
        *("good", "x-bad", "x-dead", "x-hung")
    ]
    assert {path.name.partition("_")[2] for path in (tmp_path / "jobs").glob("*/*")} == {
        *("0_log.err", "0_log.out")
    }


def test_outcomes_come_as_jobs_end_and_those_that_still_run_are_stopped_with_the_caller(tmp_path):
    running = run_locally(
        [job(tmp_path, "long", 60), job(tmp_path, "short", 0), job(tmp_path, "never", 0)],
        tmp_path / "jobs",
        at_once=2,
        timeout_min=5,
        gpus=[],
    )
    assert next(running).name == "short"
    pids, deadline = [], time.monotonic() + 30
    while not pids and time.monotonic() < deadline:  # a busy machine may not have started it yet
        logs = (tmp_path / "jobs/long").glob("long-*_0_log.err")
        pids = [int(path.name.removeprefix("long-").split("_")[0]) for path in logs]
    running.close()
    assert len(pids) == 1 and not Path(f"/proc/{pids[0]}").exists()
    assert not (tmp_path / "jobs/never").exists()


def test_jobs_that_must_stop_get_the_signal_until_they_have_saved_and_no_other_starts(tmp_path):
    ready = tmp_path / "ready"
    jobs = [
        Job(name="saving", function=save_on_signal, arguments=(str(tmp_path), signal.SIGTERM)),
        job(tmp_path, "never", 0),
    ]
    outcomes = list(run_locally(jobs, tmp_path / "jobs", 1, 5, [], ready.exists))
    assert [(o.name, o.error) for o in outcomes] == [("saving", None)]
    assert (tmp_path / "saved").exists() and not (tmp_path / "never").exists()


def test_signals_to_all_processes_of_a_job_end_neither_the_server_nor_a_job_that_starts(tmp_path):
    forkserver._forkserver._stop()  # another test's may have started with other signals
    running = run_locally([job(tmp_path, n, 1) for n in "ab"], tmp_path / "jobs", 1, 5, [])

    def outcomes():
        for outcome in running:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
                os.kill(forkserver._forkserver._forkserver_pid, number)
            yield outcome

    server = None
    for outcome in outcomes():
        assert outcome.error is None
        assert server in (None, forkserver._forkserver._forkserver_pid), "it was started again"
        server = forkserver._forkserver._forkserver_pid


def test_before_its_time_limit_a_job_may_save_and_at_the_limit_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(local_jobs, "SAVE_S", 3.5)
    jobs = [
        Job(name="saving", function=save_on_signal, arguments=(str(tmp_path), signal.SIGUSR2)),
        job(tmp_path, "hanging", 60),
    ]
    saving, hanging = run_locally(jobs, tmp_path / "jobs", 1, 0.07, [])
    assert saving.error is None and (tmp_path / "saved").exists()
    assert hanging.error == "out of time: it did not end within 0.07 minutes"
    assert "in record" in hanging.log.read_text(), "the stacks of its threads"


def test_a_job_goes_on_when_its_parent_is_killed(tmp_path):
    parent = os.fork()
    if parent == 0:
        forkserver._forkserver._forkserver_pid = None  # this process's own server
        forkserver._forkserver._forkserver_alive_fd = None
        list(run_locally([job(tmp_path, "a", 2)], tmp_path / "jobs", 1, 5, []))
        sys.exit(0)
    logs = tmp_path / "jobs" / "a"
    while not list(logs.glob("*.err")):
        time.sleep(0.05)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 20
    while not (tmp_path / "a").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
