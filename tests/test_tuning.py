"""Tuning, soups, dry run and status of a sweep: each strategy's values come from validation, and a
later start continues."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from test_sweep import words_of_sweep

from hpc_ecg.atomic_io import write_json
from hpc_ecg.cli import main
from hpc_ecg.cli import sweep as cli_sweep
from hpc_ecg.config.load import to_yaml
from hpc_ecg.hashing import read_record
from hpc_ecg.safe_reading import read_json, sha256_of
from hpc_ecg.sweep import launch
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.launch import prepare_sweep
from hpc_ecg.sweep.tuning import distribution_of, read_tuned
from hpc_ecg.training.run_folder import RunFolder

TUNED = ["strategies=[ssl_linear_probe,afib_reset_head]", "seeds=[0,1]", "runs_at_once=2"]
TUNED += ["tune.optim.lr=[1e-6,0.01]", "soup=true"]


@pytest.fixture(scope="module", autouse=True)
def runs_are_called():
    """In this process, one after the other, without a fork server. As processes they run in
    test_sweep.py, and on Slurm in test_tuning_slurm.py."""

    def run_tasks_locally(tasks, *_):
        for task in tasks:
            if not task.is_done():
                task.function(*task.arguments)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpc_ecg.sweep.launch.run_tasks_locally", run_tasks_locally)
        yield


@pytest.fixture(scope="module")
def sweep(shards, tmp_path_factory):
    """A sweep that has run: folder and words."""
    folder = tmp_path_factory.mktemp("tuned") / "sweep"
    words = words_of_sweep(shards, folder, *TUNED)
    assert main(["sweep", *words]) == 0
    return folder, words


@pytest.mark.slow
def test_each_strategy_takes_the_value_that_is_best_on_validation(sweep):
    folder, _ = sweep
    tuning = read_json(folder / "tuning.json")
    assert set(tuning) == {"ssl_linear_probe", "afib_reset_head"}
    for strategy, found in tuning.items():
        scores = [trial["score"] for trial in found["trials"]]
        assert len(scores) == 2, "not the same budget for all"
        best = found["trials"][scores.index(max(scores))]
        assert found["chosen"] == best["values"]
        for seed in (0, 1):
            config = (folder / strategy / f"seed-{seed}" / "config.yaml").read_text()
            assert float(re.search(r"  lr: (.*)", config).group(1)) == best["values"]["optim.lr"]


@pytest.mark.slow
def test_trials_never_see_the_test_split(sweep):
    folder, _ = sweep
    runs = [path.parent for path in folder.glob("tuning/*/*/finished.json")]
    assert len(runs) == 4
    for run in runs:
        assert not (run / "evaluation.json").exists()
        assert not (run / "predictions/test.parquet").exists()


@pytest.mark.slow
def test_the_soup_is_the_mean_of_the_seeds_weights(sweep):
    folder, _ = sweep
    arm = folder / "ssl_linear_probe"
    seeds = [load_file(arm / f"seed-{seed}/best/model.safetensors") for seed in (0, 1)]
    mixed = load_file(arm / "soup/model.safetensors")
    assert mixed.keys() == seeds[0].keys()
    for name, tensor in mixed.items():
        mean = (seeds[0][name].double() + seeds[1][name].double()) / 2
        assert (tensor.double() - mean).abs().max() < 1e-6, name
    test = pd.read_parquet(arm / "seed-0/predictions/test.parquet")
    assert list(pd.read_parquet(arm / "soup/predictions.parquet")["record"]) == list(test["record"])
    note = read_record(arm / "soup/soup.json")
    digest = sha256_of(arm / "soup/model.safetensors")
    assert note == {"seeds": [0, 1], "digests": {"model.safetensors": digest}}


@pytest.mark.slow
def test_another_start_repeats_nothing(sweep):
    folder, words = sweep
    files = [*folder.rglob("finished.json"), *folder.rglob("evaluation.json")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(["sweep", *words]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_a_dry_run_lists_what_is_left_and_writes_nothing(sweep, capsys):
    folder, words = sweep
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(["sweep", *words, "seeds=[0,1,2]", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"ssl_linear_probe +done +done +to do", output)
    assert "2 of 6 runs to do" in output and "tuning" not in output
    assert re.search(r"cost: about [\d.e-]+ CPU process-hours, as 4 finished runs took", output)
    assert main(["sweep", *words, "tune.optim.lr=[1e-6,0.01,0.1]", "--dry-run"]) == 0
    assert "before them, tuning: 3 trials of each of 2 strategies" in capsys.readouterr().out
    slurm = ["slurm.partition=gpu", "slurm.gpus_per_node=1", "slurm.time=90"]
    assert main(["sweep", *words, "seeds=[0,1,2]", *slurm, "--dry-run"]) == 0
    output = capsys.readouterr().out
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=90", "--array=0-1", "--requeue"):
        assert f"#SBATCH {line}" in output, output
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_dry_run_before_the_first_run_counts_the_ecgs_at_most(sweep, capsys, tmp_path):
    folder, words = sweep
    ran = folder / "ssl_linear_probe" / "seed-0"
    finished = read_json(ran / "finished.json")
    assert finished["stopped"] == "max_epochs"
    batch_size = RunFolder(ran).read_settings()["data.batch_size"]
    fresh = [f"sweep_dir={tmp_path / 'fresh'}", "tune={}", "soup=false"]
    capsys.readouterr()
    assert main(["sweep", *words, *fresh, "--dry-run"]) == 0
    most = 4 * finished["steps"] * batch_size  # two strategies, two seeds each
    assert f"cost: at most {most:,} ECGs to train on" in capsys.readouterr().out
    assert not (tmp_path / "fresh").exists()


@pytest.mark.slow
def test_status_shows_what_is_done_failed_stopped_and_not_started(sweep, capsys):
    folder, _ = sweep
    plan = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(plan.replace("seeds:\n- 0\n- 1", "seeds: [0, 1, 2, 3, 4]"))
    failed, stopped = (folder / "ssl_linear_probe" / f"seed-{n}" for n in (2, 3))
    for path in (failed, stopped):
        path.mkdir()
    (failed / "error.txt").write_text("log: /logs/7.err\nTraceback\nValueError: too cold\n")
    event = {"event": "step", "step": 7, "epoch": 0.5, "ecg_per_s": 12.4}
    (stopped / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    (stopped / "config.yaml").write_text("train: {max_epochs: 4}\n")
    (stopped / "lock.holder").write_text("process 999999999 on elsewhere\n")
    capsys.readouterr()
    try:
        assert main(["sweep", "status", str(folder)]) == 0
        output = capsys.readouterr().out
        assert re.search(r"ssl_linear_probe/seed-0 +done +test AUROC 0\.\d+", output)
        assert "seed-2  failed  ValueError: too cold (see /logs/7.err)" in output
        assert "seed-3  running  on this machine at step 7 of 56 (12 %), 12 ECG/s" in output
        (stopped / "lock.holder").unlink()
        assert main(["sweep", "status", str(folder)]) == 0
        output = capsys.readouterr().out
        assert "seed-3  stopped  at step 7" in output and "start the sweep again" in output
        assert "seed-4  waiting  not started" in output
        assert re.search(r"tuning/ssl_linear_probe/lr=0.01 +done +validation AUROC 0\.\d+", output)
        assert re.search(r"ssl_linear_probe/soup +done +test AUROC 0\.\d+", output)
        assert "10 done, 1 failed, 1 stopped, 4 waiting" in output
    finally:
        (folder / "sweep.yaml").write_text(plan)
        for path in (failed, stopped):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "nowhere"], "nowhere is not a sweep's folder"),
        (["cancel", "nowhere"], "nowhere is not a sweep's folder"),
        (["retry", "nowhere", "a/seed-0"], "nowhere is not a sweep's folder"),
        (["status"], "SWEEP_DIR"),
        (["strategies"], "neither a setting nor status, cancel, retry"),
    ],
)
def test_a_mistake_is_reported_in_one_line(words, message, capsys):
    try:
        code = main(["sweep", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    output = capsys.readouterr().err
    assert message in output and output.count("\n") == 1


@pytest.mark.slow
def test_an_unknown_cell_cannot_be_retried_or_cancelled(sweep, capsys):
    for verb in ("retry", "cancel"):
        assert main(["sweep", verb, str(sweep[0]), "ssl_linear_probe/seed-7"]) == 2
        assert "has no cell ssl_linear_probe/seed-7; it has" in capsys.readouterr().err
    assert main(["sweep", "cancel", str(sweep[0])]) == 0
    assert "nothing is queued or running" in capsys.readouterr().out


@pytest.mark.slow
def test_optuna_proposes_the_same_values_when_a_sweep_is_continued(shards, tmp_path):
    pytest.importorskip("optuna")
    words = words_of_sweep(shards, tmp_path / "s", "strategies=[ssl_linear_probe]", "seeds=[0]")
    words += ["tune.optim.lr=[1e-5,1e-2]", "tune_trials=2"]
    assert main(["sweep", *words]) == 0
    first = read_json(tmp_path / "s/tuning.json")
    values = [t["values"]["optim.lr"] for t in first["ssl_linear_probe"]["trials"]]
    assert len(set(values)) == 2 and all(1e-5 <= value <= 1e-2 for value in values)
    (tmp_path / "s/tuning.json").unlink()
    before = sorted((tmp_path / "s/tuning").rglob("finished.json"))
    assert main(["sweep", *words]) == 0
    assert read_json(tmp_path / "s/tuning.json") == first
    assert sorted((tmp_path / "s/tuning").rglob("finished.json")) == before


def test_a_copied_sweep_is_retried_in_its_new_folder(shards, tmp_path, monkeypatch):
    words = words_of_sweep(shards, tmp_path / "first", *TUNED)
    launch._write_sweep(tmp_path / "copy", load_sweep([], words))
    begun = []
    monkeypatch.setattr(cli_sweep, "_run", lambda sweep, **_: begun.append(sweep) or 0)
    assert main(["sweep", "retry", str(tmp_path / "copy"), "ssl_linear_probe/seed-0"]) == 0
    assert begun[0].cells[0].run.run_dir.startswith(str(tmp_path / "copy"))


def test_two_numbers_are_a_range_and_anything_else_a_choice():
    assert distribution_of("k", [1e-5, 1e-2]).log and not distribution_of("k", [0.1, 0.5]).log
    assert distribution_of("k", [1, 4]).single() is False
    assert distribution_of("k", ["none", "ema"]).choices == ("none", "ema")
    assert distribution_of("k", [0.1, 0.2, 0.3]).choices == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"tune.k=\[2, 1\]: a range needs a lower"):
        distribution_of("k", [2, 1])


def test_a_past_run_that_no_choice_would_give_stops_the_tuning_before_the_first_trial(
    shards, tmp_path
):
    (tmp_path / "sweep.yaml").touch()
    words = words_of_sweep(shards, tmp_path, *TUNED)
    sweep = load_sweep([], words)
    cell = sweep.cells[1]
    folder = RunFolder(cell.run.run_dir)
    folder.path.mkdir(parents=True)
    for lr, batch_size, message in (
        (0.001, 12, "has run before this tuning, with optim.lr=0.001; give another sweep_dir"),
        (0.01, 4, "data.batch_size: 4 there, 12 now.*give another sweep_dir"),
        (0.01, 12, None),
    ):
        values = {"optim.lr": lr, "data.batch_size": batch_size}
        ran = sweep.run_of(cell.arm.base, values, cell.seed, cell.run.run_dir)
        folder.config.write_text(to_yaml(ran))
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            prepare_sweep(sweep)


@pytest.mark.slow
def test_a_choice_among_other_values_is_not_taken(shards, tmp_path):
    sweep = load_sweep([], words_of_sweep(shards, tmp_path, *TUNED))
    trials = [{"values": {"optim.lr": v}, "score": 0.5, "metric": "auroc"} for v in (1e-6, 0.01)]
    asked = {"tune": {"optim.lr": [1e-6, 0.01]}, "trials": None, "seed": 1000}
    found = {"chosen": {"optim.lr": 0.01}, "trials": trials, "asked": asked}
    write_json(Path(tmp_path) / "tuning.json", {"ssl_linear_probe": found})
    assert read_tuned(sweep) == {"ssl_linear_probe": {"optim.lr": 0.01}}
    for word in ("tune.optim.lr=[1e-6,0.1]", "tune_trials=2", "tune_seed=7"):
        other = load_sweep([], words_of_sweep(shards, tmp_path, *TUNED, word))
        assert read_tuned(other) == {}, word
