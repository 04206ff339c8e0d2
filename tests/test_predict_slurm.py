"""`predict --slurm`: an array shares the work, killed tasks start again, the table is the same."""

import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FIXTURES

from hpc_ecg.cli.command import main
from hpc_ecg.inference import on_slurm
from hpc_ecg.inference import prediction_job as predicting
from hpc_ecg.jobs import slurm_jobs
from hpc_ecg.jobs.job import JobOutcome

MODEL = FIXTURES / "tiny_wcr_afib_5y.pt"


def predict(ecgs: Path, out: Path, *more: str) -> int:
    return main(["predict", str(MODEL), str(ecgs), "--rate", "250", "--out", str(out), *more])


def write_ecgs(path: Path, count: int) -> Path:
    """Noise, but for the last ECG, which has no finite sample."""
    ecgs = np.random.default_rng(0).normal(0, 0.2, (count, 12, 2500)).astype(np.float32)
    ecgs[-1] = np.nan
    np.save(path, ecgs)
    return path


def run_here(lost: dict[str, int], errors: dict[str, str]):
    """A stand-in for Slurm: a task is lost as often as `lost` says, before it has done anything."""

    def run(jobs, folder, slurm, what, each_poll):
        folder.mkdir(exist_ok=True)
        for job in jobs:
            each_poll("")
            error = errors.get(job.name)
            if lost.get(job.name, 0) > 0:
                lost[job.name] -= 1
                error = "it ended without a result: killed"
            if error is None:
                job.function(*job.arguments)
            yield JobOutcome(name=job.name, error=error, log=folder / f"{job.name}.err")

    return run


def test_tasks_that_are_killed_start_again_and_the_table_is_that_of_one_process(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predicting, "PART", 16)
    ecgs = write_ecgs(tmp_path / "ecgs.npy", 70)
    assert predict(ecgs, tmp_path / "one.csv", "--workers", "1") == 3
    lines = capsys.readouterr().out
    lost = {"predict-0": 1, "predict-2": 2}
    monkeypatch.setattr(on_slurm, "run_on_slurm", run_here(lost, {}))
    assert predict(ecgs, tmp_path / "all.csv", "--slurm", "jobs=9") == 3
    assert (tmp_path / "all.csv").read_text() == (tmp_path / "one.csv").read_text()
    said = capsys.readouterr()
    assert said.out.endswith(lines.replace("one.csv", "all.csv"))
    assert "2 of 5 tasks were killed" in said.err and "1 of 5 tasks were killed" in said.err
    assert lost == {"predict-0": 0, "predict-2": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "ecgs.npy", "one.csv"]


@pytest.mark.parametrize(
    ("lost", "error", "message"),
    [
        (9, None, "predict-1 failed: it ended without a result: killed; see "),
        (0, "Traceback …\nValueError: shards are damaged", "predict-1 failed: ValueError: shards"),
    ],
)
def test_a_task_that_fails_again_is_one_line_and_the_others_work_is_kept(
    tmp_path, monkeypatch, capsys, lost, error, message
):
    monkeypatch.setattr(predicting, "PART", 16)
    ecgs = write_ecgs(tmp_path / "ecgs.npy", 40)
    run = run_here({"predict-1": lost}, {"predict-1": error} if error else {})
    monkeypatch.setattr(on_slurm, "run_on_slurm", run)
    out = tmp_path / "risks.csv"
    assert predict(ecgs, out, "--slurm", "jobs=3,max_retries=1") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert len(list((tmp_path / "risks.csv.parts").glob("part-*"))) == 2 and not out.exists()
    monkeypatch.setattr(on_slurm, "run_on_slurm", run_here({}, {}))
    assert predict(ecgs, out, "--slurm", "jobs=3") == 3
    assert len(pd.read_csv(out)) == 40


def test_a_wrong_option_is_said_before_anything_is_submitted(tmp_path, capsys):
    ecgs = write_ecgs(tmp_path / "ecgs.npy", 2)
    assert predict(ecgs, tmp_path / "risks.csv", "--slurm", "8") == 2
    assert "expected words like jobs=8,partition=cpu" in capsys.readouterr().err


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_of_which_one_task_is_killed_gives_the_table_of_one_process(
    slurm, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm_jobs, "RESULT_PATIENCE_S", 2.0)  # this disk shows all at once
    ecgs = write_ecgs(tmp_path / "ecgs.npy", 600)

    def kill_second_task() -> None:
        command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"]
        while not killed:
            running = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for task in [task for task in running.split() if task.endswith("_1")]:
                subprocess.run(["scancel", "--signal=KILL", "--full", task], check=True)
                killed.append(task)
            time.sleep(0.1)

    killed: list[str] = []
    killer = threading.Thread(target=kill_second_task)
    killer.start()
    options = "jobs=2,mem=900M,time=5,cpus_per_task=1"
    assert predict(ecgs, tmp_path / "all.parquet", "--slurm", options) == 3
    killer.join()
    said = capsys.readouterr()
    assert killed and "1 of 2 tasks were killed; they start again" in said.err
    assert f"599 of 600 recordings predicted: {tmp_path / 'all.parquet'}" in said.out
    assert predict(ecgs, tmp_path / "one.parquet", "--workers", "1") == 3
    tables = [pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("all", "one")]
    pd.testing.assert_frame_equal(*tables)
    assert not list(tmp_path.glob("all.parquet.*"))
