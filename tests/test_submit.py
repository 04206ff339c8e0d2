"""Jobs through submitit's local executor: so many at a time, errors told, nothing left running."""

import os
import signal
import time
from pathlib import Path

import pytest
import submitit

from hpc_ecg.jobs.submit import Job, run_locally

pytestmark = pytest.mark.slow  # each job is a process that takes most of a second


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Jobs are other processes, which import their function by its module's name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def succeed(folder, name, seconds):
    """Note start and end, and what the job sees of ranks and GPUs."""
    names = ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "CUDA_VISIBLE_DEVICES", "KEPT")
    seen = " ".join(f"{n}={os.environ.get(n)}" for n in names)
    start = time.time()
    time.sleep(seconds)
    (Path(folder) / name).write_text(f"{start} {time.time()} {seen}")


def save_when_told(folder):
    """As a run: note a signal, and save at the next step."""
    told = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    (Path(folder) / "ready").touch()
    while not told:
        time.sleep(0.05)
    time.sleep(1.5)
    (Path(folder) / "saved").touch()


def fail(text):
    raise ValueError(text)


def die():
    os.kill(os.getpid(), 9)


def run(jobs, tmp_path, at_once, gpus=()):
    return list(run_locally(jobs, tmp_path / "jobs", at_once, timeout_min=5, gpus=gpus))


def job(tmp_path, name, seconds=0.5):
    return Job(name=name, function=succeed, arguments=(str(tmp_path), name, seconds))


def times_of(tmp_path, names):
    return sorted(tuple(map(float, (tmp_path / n).read_text().split()[:2])) for n in names)


def test_no_more_jobs_run_at_once_than_asked_each_with_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("KEPT", "yes")
    before = dict(os.environ)
    names = ["a", "b", "c"]
    outcomes = run([job(tmp_path, name, 2.0) for name in names], tmp_path, 2, gpus=[5, 7])
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


def test_one_at_a_time_runs_in_order_and_a_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 1)  # for what the dead one left
    jobs = [
        Job(name="x/bad", function=fail, arguments=("no such tensor",)),
        Job(name="x/dead", function=die, arguments=()),
        job(tmp_path, "good", 0),
    ]
    outcomes = run(jobs, tmp_path, 1)
    assert [o.name for o in outcomes] == ["x/bad", "x/dead", "good"]
    bad, dead, good = outcomes
    assert "ValueError: no such tensor" in bad.error
    assert "no such tensor" in bad.log.read_text()
    assert "has not produced any output" in dead.error
    assert good.error is None and good.log.is_file()
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir()) == ["good", "x-bad", "x-dead"]


def test_outcomes_come_as_jobs_end_and_those_that_still_run_are_stopped_with_the_caller(tmp_path):
    running = run_locally(
        [job(tmp_path, "long", 60), job(tmp_path, "short", 0), job(tmp_path, "never", 0)],
        tmp_path / "jobs",
        at_once=2,
        timeout_min=5,
        gpus=[],
    )
    assert next(running).name == "short"
    pids = [
        int(path.name.split("_")[0]) for path in (tmp_path / "jobs/long").glob("*_submitted.pkl")
    ]
    running.close()
    deadline = time.time() + 10
    while any(is_alive(pid) for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    assert len(pids) == 1 and not is_alive(pids[0])
    assert not (tmp_path / "jobs/never").exists()


def test_jobs_that_must_stop_are_told_until_they_have_saved_and_no_other_starts(tmp_path):
    ready = tmp_path / "ready"
    jobs = [
        Job(name="saving", function=save_when_told, arguments=(str(tmp_path),)),
        job(tmp_path, "never", 0),
    ]
    asked = []

    def must_stop():
        if ready.exists() and not asked:  # as Slurm does, to submitit's watcher as well
            (pid,) = [int(path.name.split("_")[0]) for path in tmp_path.glob("jobs/*/*.pkl")]
            os.kill(pid, signal.SIGUSR2)
            asked.append(pid)
        return bool(asked)

    outcomes = list(run_locally(jobs, tmp_path / "jobs", 1, 5, [], must_stop))
    assert [(o.name, o.error) for o in outcomes] == [("saving", None)]
    assert (tmp_path / "saved").exists() and not (tmp_path / "never").exists()


def is_alive(pid):
    """Not gone and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
