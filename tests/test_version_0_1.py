"""Folders that version 0.1 wrote open, go on and come to what 0.1 came to.

They lie in `tests/fixtures/v0_1/`. Only commands and files are used here, so that nothing of this
changes with the modules inside of the package. That a run of one version goes on to the same bits
is held in test_finetune, that a sharding does in test_sharding.
"""

import json

import numpy as np
import pandas as pd
import pytest
from recorded import V0_1, WORDS, copy_of_0_1, differences, hpc_ecg

pytestmark = pytest.mark.slow

FINISHED, MIDDLE = "runs/finished", "runs/middle"
ENDED = ("steps", "metric", "best_step", "skipped", "stopped", "epochs", "processes")


@pytest.fixture
def old(tmp_path):
    return copy_of_0_1(tmp_path)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The run in the middle, gone on with to its end and evaluated."""
    folder = copy_of_0_1(tmp_path_factory.mktemp("resumed"))
    assert hpc_ecg(folder, "finetune", *WORDS["run"], f"run_dir={MIDDLE}") == 0
    assert hpc_ecg(folder, "evaluate", MIDDLE) == 0
    return folder / MIDDLE


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The sweep in the middle, gone on with: a cell was done, one had stopped."""
    folder = copy_of_0_1(tmp_path_factory.mktemp("swept"))
    words = ["sweep", *WORDS["sweep"], "sweep_dir=sweeps/middle", "seeds=[0]"]
    assert hpc_ecg(folder, *words) == 0
    return folder


def events(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def same_predictions(ours, theirs):
    ours, theirs = pd.read_parquet(ours), pd.read_parquet(theirs)
    assert list(ours.columns) == list(theirs.columns)
    for name in ours:
        if name.endswith((".logit", ".probability")):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)
        else:
            pd.testing.assert_series_equal(ours[name], theirs[name])


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_in_the_middle_goes_on_from_its_checkpoint_and_ends_as_the_finished_one(resumed):
    assert [line["step"] for line in events(resumed, "resumed")] == [10]
    ours, theirs = events(resumed, "step"), events(V0_1 / FINISHED, "step")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss", "lr", "grad_norm"):
        np.testing.assert_allclose(*([x[key] for x in y] for y in (ours, theirs)), rtol=1e-4)
    ours, theirs = (
        json.loads((f / "finished.json").read_text()) for f in (resumed, V0_1 / FINISHED)
    )
    assert {key: ours[key] for key in ENDED} == {key: theirs[key] for key in ENDED}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_run_in_the_middle_comes_to_the_predictions_of_the_finished_one(resumed, split):
    path = f"predictions/{split}.parquet"
    same_predictions(resumed / path, V0_1 / FINISHED / path)


def test_a_run_from_the_beginning_comes_to_what_it_came_to_then(old):
    words = [*WORDS["run"], "init.checkpoint=random"]  # 0.1 took them without being asked
    assert hpc_ecg(old, "finetune", *words, "run_dir=again") == 0
    path = "predictions/valid.parquet"
    same_predictions(old / "again" / path, V0_1 / FINISHED / path)


def test_a_finished_run_says_that_nothing_is_to_do_and_stays_as_it_is(old, capsys):
    before = contents(old)
    assert hpc_ecg(old, "finetune", *WORDS["run"], f"run_dir={FINISHED}") == 0
    assert "runs/finished is finished: nothing to do" in capsys.readouterr().err
    assert contents(old) == before


@pytest.mark.parametrize("run", [FINISHED, MIDDLE])
def test_other_settings_than_the_runs_are_refused_and_nothing_is_changed(old, capsys, run):
    before = contents(old)
    words = ["finetune", *WORDS["run"], "optim.lr=0.003", "data.batch_size=5", f"run_dir={run}"]
    assert hpc_ecg(old, *words) == 2
    said = capsys.readouterr().err
    assert f"{run} belongs to another configuration" in said
    assert "optim.lr: 0.001 there, 0.003 now" in said and "data.batch_size: 6 there, 5 now" in said
    assert contents(old) == before


def test_settings_that_do_not_change_the_result_may_be_others(old):
    words = ["data.shards=elsewhere", "train.save_every=3", "engine.micro_batch_size=2"]
    assert hpc_ecg(old, "finetune", *WORDS["run"], *words, f"run_dir={FINISHED}") == 0


@pytest.mark.parametrize("run", [FINISHED, "multilabel/slow/seed-0", "regression/fast/seed-0"])
def test_a_finished_run_is_evaluated_to_the_same_numbers(old, run):
    results = ("evaluation.json", "predictions/test.parquet")
    for name in results:
        (old / run / name).unlink()
    assert hpc_ecg(old, "evaluate", run) == 0
    same_predictions(old / run / results[1], V0_1 / run / results[1])
    ours, theirs = (json.loads((f / run / results[0]).read_text()) for f in (old, V0_1))
    for key in ("digests", "sha256"):  # 0.1 wrote none
        assert key not in theirs and ours.pop(key)
    assert not differences(without_limits(theirs), without_limits(ours), rtol=1e-3)


SINCE = {"low", "high", "method", "warning", "recalibrated", "interaction_p", "interaction_p_holm"}
SINCE |= {"o_e"}


def without_limits(value):
    """Since 0.1, intervals, tests of interaction and fits to few events are others, and results
    say how many events validation has."""
    if not isinstance(value, dict):
        return [without_limits(inner) for inner in value] if isinstance(value, list) else value
    kept = {k: v for k, v in value.items() if k not in SINCE and not k.startswith("validation_")}
    return {key: without_limits(inner) for key, inner in kept.items()}


def test_a_finished_run_is_a_start_for_another(old, capsys):
    words = ["init.checkpoint=runs/finished", "init.head=keep", "train.max_steps=1", "run_dir=new"]
    assert hpc_ecg(old, "finetune", *WORDS["run"], *words) == 0
    report = json.loads((old / "new/init_report.json").read_text())
    assert report["head"]["taken"] == "keep" and report["counts"]["tensors_fresh"] == 0


def test_a_finished_sweep_is_reported_with_all_of_its_runs(old, capsys):
    assert hpc_ecg(old, "report", "sweeps/finished", "--replicates", "200") == 0
    comparison = json.loads((old / "sweeps/finished/report/comparison.json").read_text())
    assert {s["name"]: s["seeds"] for s in comparison["strategies"]} == {
        "random": [0, 1],
        "afib_keep_head": [0, 1],
    }
    assert not comparison["problems"]


def test_what_a_grid_varied_is_read_from_the_arms_own_file(old, capsys):
    arm = {"base": "random", "varied": {"optim.lr": 0.001}}  # as a grid of 0.1 wrote it
    (old / "multilabel/slow/arm.json").write_text(json.dumps(arm))
    assert hpc_ecg(old, "report", "multilabel", "--replicates", "200", "--no-baselines") == 0
    comparison = json.loads((old / "multilabel/report/comparison.json").read_text())
    found = {s["name"]: {key: s[key] for key in arm} for s in comparison["strategies"]}
    assert found == {"slow": arm, "fast": {"base": "fast", "varied": {}}}


def test_a_finished_sweep_has_nothing_to_do(old, capsys):
    words = ["sweep", *WORDS["sweep"], "sweep_dir=sweeps/finished", "seeds=[0,1]"]
    assert hpc_ecg(old, *words) == 0
    assert "4 cells, 4 done before" in capsys.readouterr().err
    assert hpc_ecg(old, *words, "run.optim.lr=0.5") == 2
    assert "sweeps/finished/random/seed-0 belongs to another config" in capsys.readouterr().err


def test_a_sweep_in_the_middle_is_seen_as_one(old, capsys):
    assert hpc_ecg(old, "sweep", "status", "sweeps/middle") == 0
    said = capsys.readouterr().out
    assert "1 done" in said and "afib_keep_head" in said
    assert hpc_ecg(old, "report", "sweeps/middle", "--replicates", "200", "--no-baselines") == 0
    comparison = json.loads((old / "sweeps/middle/report/comparison.json").read_text())
    assert [p["reason"] for p in comparison["problems"]] == ["not finished: at step 6"]


@pytest.mark.slow
def test_a_sweep_in_the_middle_goes_on_to_what_the_finished_one_has(swept):
    cell = "afib_keep_head/seed-0"
    assert events(swept / "sweeps/middle" / cell, "resumed")[0]["step"] == 6
    for split in ("valid", "test"):
        path = f"{cell}/predictions/{split}.parquet"
        same_predictions(swept / "sweeps/middle" / path, V0_1 / "sweeps/finished" / path)
    done = "sweeps/middle/random/seed-0"
    assert contents(swept / done) == contents(V0_1 / done)


@pytest.mark.slow
def test_a_sweep_that_went_on_is_reported(swept):
    assert hpc_ecg(swept, "report", "sweeps/middle", "--replicates", "200", "--no-baselines") == 0
    comparison = json.loads((swept / "sweeps/middle/report/comparison.json").read_text())
    assert comparison["cells"] == ["random/seed-0", "afib_keep_head/seed-0"]


def test_weights_of_its_runs_are_read_and_averaged(old, capsys):
    runs = [f"sweeps/finished/random/seed-{seed}" for seed in (0, 1)]
    assert hpc_ecg(old, "weights", "soup", "mean.safetensors", *runs) == 0
    assert hpc_ecg(old, "weights", "diff", runs[0], "runs/finished", "--json") == 0
    assert hpc_ecg(old, "weights", "inspect", "wcr_afib_5y.safetensors") == 0
    assert "af" in capsys.readouterr().out
