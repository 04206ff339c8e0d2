"""`hpc-ecg evaluate`: the numbers are those of the predictions, and of the right data."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for, words_for
from sklearn.metrics import average_precision_score, roc_auc_score

from hpc_ecg.cli import main
from hpc_ecg.config import load_config
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.evaluate import evaluate, load_run
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.writing import read_json

pytestmark = pytest.mark.slow  # each runs a training


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory) -> RunFolder:
    words = words_for(shards, tmp_path_factory.mktemp("evaluate") / "run")
    return finetune(load_config(FinetuneConfig, [], words))


def test_the_numbers_are_those_of_the_predictions(finished, shards):
    result = evaluate(load_run(str(finished.path), []))
    assert result == read_json(finished.evaluation)
    table = pd.read_parquet(finished.predictions / "test.parquet")
    known = table[table["af.label"].notna()]
    scores = result["labels"]["af"]
    truth, logit = known["af.label"], known["af.logit"]
    assert scores["auroc"]["value"] == pytest.approx(roc_auc_score(truth, logit), abs=1e-12)
    assert scores["auprc"]["value"] == pytest.approx(average_precision_score(truth, logit))
    assert scores["auroc"]["low"] < scores["auroc"]["value"] < scores["auroc"]["high"]
    assert (scores["n"], scores["n_missing"]) == (len(known), len(table) - len(known))


def test_every_test_record_is_predicted_once(finished, shards):
    evaluate(load_run(str(finished.path), []))
    table = pd.read_parquet(finished.predictions / "test.parquet")
    opened, names = open_shards(DataConfig(shards=str(shards)))
    test = open_split(opened, "test", names)
    assert table["record"].tolist() == test.records
    np.testing.assert_array_equal(table["af.label"], test.labels_NK[:, 0])


def test_the_threshold_comes_from_validation(finished):
    result = evaluate(load_run(str(finished.path), []))
    points = read_json(finished.best / "operating_point.json")["af"]
    at = result["labels"]["af"]["at_threshold"]
    assert list(at) == ["youden", "sensitivity_90", "specificity_90"]
    for method, point in points.items():
        assert at[method]["threshold"] == point["threshold"]
        assert at[method]["fitted_on"] == "valid"


def test_a_second_evaluation_gives_the_same(finished):
    config = load_run(str(finished.path), [])
    assert evaluate(config) == evaluate(config)


def test_shards_that_moved_are_taken_and_other_shards_refused(finished, shards, cohort, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    assert evaluate(load_run(str(finished.path), [f"data.shards={moved}"]))["split"] == "test"
    other = tmp_path / "other"
    shard_ecgs(plan_for(cohort, other, seed=9))
    with pytest.raises(ValueError, match=r"or data\.label_table, is not what"):
        evaluate(load_run(str(finished.path), [f"data.shards={other}"]))


@pytest.mark.parametrize("word", ["data.labels=[male]", "seed=7", "data.batch_size=5"])
def test_other_settings_than_the_runs_are_refused(finished, word):
    before = finished.evaluation.read_bytes()
    with pytest.raises(ValueError, match="belongs to another configuration"):
        evaluate(load_run(str(finished.path), [word]))
    assert finished.evaluation.read_bytes() == before


def test_a_run_that_is_not_finished_is_named(finished, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(finished.path, half)
    (half / "finished.json").unlink()
    with pytest.raises(ValueError, match="is not finished: start it again"):
        evaluate(load_run(str(half), []))


def test_the_command_prints_the_interval(finished, capsys):
    assert main(["evaluate", str(finished.path)]) == 0
    assert "AUROC 0." in capsys.readouterr().out


def test_a_run_is_not_scored_on_another_fold_than_its_own(cohort, tmp_path):
    shards = tmp_path / "shards"
    shard_ecgs(plan_for(cohort, shards, folds=3, stratify=True))
    words = words_for(shards, tmp_path / "run", "data.fold=1", "train.max_epochs=1")
    folder = finetune(load_config(FinetuneConfig, [], words))
    assert evaluate(load_run(folder.path, []))
    with pytest.raises(ValueError, match=r"data\.fold: 1 there, 2 now"):
        evaluate(load_run(folder.path, ["data.fold=2"]))
