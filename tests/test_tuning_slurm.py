"""Tuning and soups on a real Slurm: a trial that is cancelled or killed chooses nothing, and the
sweep ends as if undisturbed."""

import os
import re
from pathlib import Path
from signal import SIGKILL

import pandas as pd
import pytest
from slurm_jobs import wait_until
from test_finetune import same_tensors
from test_sweep_slurm import Launcher, Undisturbed, words_of

from hpc_ecg.cli import main
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep.grid import Sweep, load_sweep
from hpc_ecg.sweep.soups import soup_tasks
from hpc_ecg.sweep.status import read_status
from hpc_ecg.sweep.submissions import last_submissions
from hpc_ecg.sweep.task import TaskRunner, task_of_run
from hpc_ecg.sweep.tuning import read_tuned, tune

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
CELLS = [f"ssl_new_head/seed-{seed}" for seed in (0, 1)]
SOUP = "ssl_new_head/soup"


def test_a_choice_waits_for_every_trial_and_the_results_are_as_if_undisturbed(
    slurm, shards, tmp_path, capfd
):
    folder = tmp_path / "sweep"
    killed, cancelled = (f"tuning/ssl_new_head/lr={lr}" for lr in ("0.002", "0.0002"))
    settings = (
        "strategies=[ssl_new_head]",
        "seeds=[0,1]",
        "tune.optim.lr=[0.002,0.0002]",
        "soup=true",
    )
    words = words_of(shards, folder, *settings, "run.train.max_epochs=2")
    launcher = Launcher(folder, *words, "slurm.array_parallelism=1")
    calm = Undisturbed(run_undisturbed, words, tmp_path)
    wait_until(lambda: launcher.processes_of(killed), launcher)
    os.kill(launcher.processes_of(killed)[0], SIGKILL)
    assert main(["sweep", "cancel", str(folder), cancelled]) == 0
    assert launcher.end() == 1, launcher.log
    assert re.search(rf"lost, submitted again(, not to node\d)?: {killed}", launcher.log)
    assert f"failed: {cancelled}: its job ended without a result: CANCELLED" in launcher.log
    assert kinds(folder) == {cancelled: "failed", killed: "done"} | dict.fromkeys(CELLS, "waiting")
    assert not (folder / "tuning.json").exists(), "chosen without a trial that was cancelled"

    assert main(["sweep", *words, "--no-wait"]) == 0
    assert "tuning is not done yet: start the sweep again when" in capfd.readouterr().err
    assert kinds(folder)[cancelled] in ("queued", "running")
    wait_until(lambda: kinds(folder)[cancelled] == "done", launcher)
    assert main(["sweep", *words, "--no-wait"]) == 0
    assert "soups are made once their seeds are done" in capfd.readouterr().err
    again = Launcher(folder, *words)
    assert again.end() == 0, again.log
    assert kinds(folder) == dict.fromkeys((killed, cancelled, *CELLS, SOUP), "done")
    assert {submission.job_name[:12] for submission in last_submissions(folder).values()} == {
        f"hpc_ecg-000{n}" for n in (1, 2, 4, 5)
    }, "the first submission was undone; the fourth trained what the fifth predicts the test of"
    assert_same(folder, calm.result())


def kinds(folder: Path) -> dict[str, str]:
    return {state.name: state.kind for state in read_status(folder)}


def run_undisturbed(words: list[str], folder: Path) -> None:
    """The same sweep in this process, without a Slurm."""
    sweep = load_sweep([], [*words, f"sweep_dir={folder}"])
    assert tune(sweep, TaskRunner(run_all=_do_all)) == (True, [])
    sweep = _with_choice(sweep)
    _do_all([task_of_run(cell.name, cell.run) for cell in sweep.cells])
    _do_all(soup_tasks(sweep, TaskRunner(run_all=_do_all)))


def _with_choice(sweep: Sweep) -> Sweep:
    return sweep.with_cells(read_tuned(sweep))


def _do_all(tasks) -> list[str]:
    for task in tasks:
        task.function(*task.arguments)
    return []


def assert_same(folder: Path, undisturbed: Path) -> None:
    """The choice, the predictions and the weights, bitwise."""
    assert read_json(folder / "tuning.json") == read_json(undisturbed / "tuning.json")
    predicted = [f"{cell}/predictions/{split}" for cell in CELLS for split in ("valid", "test")]
    for name in (*predicted, f"{SOUP}/predictions"):
        tables = [pd.read_parquet(f"{where}/{name}.parquet") for where in (folder, undisturbed)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name in (*(f"{cell}/best" for cell in CELLS), SOUP):
        weights = f"{name}/model.safetensors"
        assert same_tensors(folder / weights, undisturbed / weights), name
    assert read_json(folder / SOUP / "soup.json")["seeds"] == [0, 1]
