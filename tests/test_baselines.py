"""Baselines predict the records of a run, from the same data, and separate AF from the rest."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for, words_for
from sklearn.metrics import brier_score_loss, r2_score, roc_auc_score

from hpc_ecg.cohort.table import Columns
from hpc_ecg.comparison import baselines
from hpc_ecg.comparison.baselines import combine_with_age_sex, write_baselines
from hpc_ecg.comparison.heartbeat import FEATURES
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = pytest.mark.slow
MEASURED = ["age_sex", "rr_irregularity", "ecg_measurements"]


@pytest.fixture(scope="module")
def config(shards, tmp_path_factory) -> FinetuneConfig:
    return load_config(FinetuneConfig, [], words_for(shards, tmp_path_factory.mktemp("b") / "run"))


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines") / "all"
    assert write_baselines(config, folder) == ["prevalence", *MEASURED]
    return folder


@pytest.fixture
def no_detector(monkeypatch):
    """Random features instead of what is measured."""
    draw = np.random.default_rng(0).normal

    def measure(splits, folder, minutes):
        rows = {split: np.arange(len(dataset)) for split, dataset in splits.items()}
        return rows, {split: draw(size=(len(n), len(FEATURES))) for split, n in rows.items()}

    monkeypatch.setattr(baselines, "measure_splits", measure)


def as_regression(config):
    return replace(config.data, task="regression")


def note_of(folder):
    return json.loads((folder / "baselines.json").read_text())


@pytest.mark.parametrize("name", ["prevalence", *MEASURED])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_baseline_predicts_the_records_of_a_run(made, config, name, split):
    opened, labels = open_shards(config.data)
    dataset = open_split(opened, split, labels)
    predictions = read_predictions(made / name / f"{split}.parquet")
    assert predictions.record_N.tolist() == dataset.records
    assert predictions.patient_N.tolist() == dataset.patients
    np.testing.assert_array_equal(predictions.label_NK, dataset.labels_NK)
    expected_NK = 1 / (1 + np.exp(-predictions.logit_NK))
    np.testing.assert_allclose(predictions.probability_NK, expected_NK)


def test_the_prevalence_is_that_of_training_and_has_no_auroc(made, config):
    opened, labels = open_shards(config.data)
    train_NK = open_split(opened, "train", labels).labels_NK
    predictions = read_predictions(made / "prevalence" / "test.parquet")
    np.testing.assert_allclose(predictions.probability_NK, np.nanmean(train_NK), rtol=1e-6)
    details = note_of(made)["details"]["prevalence"]
    assert details["auroc"] == "0.5 by definition: a constant ranks nobody"
    known = ~np.isnan(predictions.label_NK[:, 0])
    score = brier_score_loss(predictions.label_NK[known, 0], predictions.probability_NK[known, 0])
    brier = details["af"]["brier"]
    assert brier["value"] == pytest.approx(score)
    assert brier["low"] < brier["value"] < brier["high"]


def test_baselines_of_the_same_data_are_kept_and_others_are_made_again(
    made, config, shards, tmp_path, no_detector
):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    write_baselines(config, made)
    part = replace(config.data, label_fraction=0.3, label_seed=1)  # of fewer labels, too
    write_baselines(replace(config, data=part), made)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before
    folder = made.parent / "other"
    assert (
        write_baselines(replace(config, data=as_regression(config)), folder)[0] == "training_mean"
    )
    assert note_of(folder)["made"] != note_of(made)["made"]
    assert write_baselines(config, folder) == note_of(made)["made"] == note_of(folder)["made"]


def test_a_baseline_that_cannot_be_made_is_left_out_with_the_reason(cohort, tmp_path, no_detector):
    table = pd.read_csv(cohort).drop(columns=["age", "sex"])
    table.to_csv(cohort.parent / "bare.csv", index=False)
    shard_ecgs(plan_for(cohort.parent / "bare.csv", tmp_path / "shards"))
    words = words_for(tmp_path / "shards", tmp_path / "run")
    names = write_baselines(load_config(FinetuneConfig, [], words), tmp_path / "made")
    assert names == ["prevalence", "rr_irregularity", "ecg_measurements"]
    reason = "the shards' index has neither age nor sex"
    assert note_of(tmp_path / "made")["left_out"] == {"age_sex": reason}
    (cohort.parent / "bare.csv").unlink()


def test_a_regression_has_linear_baselines_in_the_unit_of_its_label(
    cohort, tmp_path, no_detector, rng
):
    table = pd.read_csv(cohort)
    table["lvef"] = 70 - 0.2 * table["age"].clip(upper=90) + rng.normal(0, 0.5, len(table))
    table.to_csv(cohort.parent / "lvef.csv", index=False)
    columns = Columns(labels=["lvef", "age"], patient="patient_id")
    shard_ecgs(plan_for(cohort.parent / "lvef.csv", tmp_path / "shards", columns=columns))
    (cohort.parent / "lvef.csv").unlink()
    words = words_for(tmp_path / "shards", tmp_path / "run", "data.task=regression")
    words += ["data.labels=[lvef]", "train.calibration=none"]
    config = load_config(FinetuneConfig, [], words)
    made = write_baselines(config, tmp_path / "made")
    assert made == ["training_mean", *MEASURED]
    test, age_sex = (read_predictions(tmp_path / f"made/{n}/test.parquet") for n in made[:2])
    assert age_sex.probability_NK is None
    assert r2_score(age_sex.label_NK, age_sex.logit_NK) > 0.8
    shards, labels = open_shards(config.data)
    mean = open_split(shards, "train", labels).labels_NK.mean()
    np.testing.assert_allclose(test.logit_NK, mean, rtol=1e-6)
    of_age = load_config(FinetuneConfig, [], [*words, "data.labels=[age]"])
    write_baselines(of_age, tmp_path / "of_age")
    assert note_of(tmp_path / "of_age")["left_out"] == {"age_sex": "age is what is to be predicted"}


def test_missing_age_and_sex_are_filled_and_marked():
    groups = {"age": np.array([40, 60, 80, np.nan]), "sex": np.array(["F", "F", "M", ""], object)}
    design = baselines._design_of(groups)
    age, square, no_age, man, no_sex = design(groups).T
    assert age[3] == age[1] == 0  # the median, which is the mean here
    np.testing.assert_allclose(square, age**2)
    assert (no_age.tolist(), man.tolist()) == ([0, 0, 0, 1], [0, 0, 1, 0])
    assert no_sex.tolist() == [0, 0, 0, 1]
    over_89 = design({"age": np.array([300.0, 90.0]), "sex": np.array(["M", "other"], object)})
    assert over_89[0, 0] == over_89[1, 0]
    assert over_89[1, 4] == 1


def predictions_of(label_N, logit_N, split):
    return Predictions(
        record_N=np.array([f"{split}{i}" for i in range(len(label_N))], dtype=object),
        patient_N=np.arange(len(label_N)).astype(str).astype(object),
        labels=["af"],
        label_NK=label_N[:, None],
        logit_NK=logit_N[:, None],
        probability_NK=1 / (1 + np.exp(-logit_N[:, None])),
    )


def test_the_combination_with_age_and_sex_is_fitted_on_validation(rng):
    both = []
    for split in ("valid", "test"):
        first, second = rng.normal(size=(2, 3000))
        label = (rng.random(3000) < 1 / (1 + np.exp(1 - first - 2 * second))).astype(float)
        both.append([predictions_of(label, scores, split) for scores in (first, 5 * second)])
    (valid_age, valid), (test_age, test) = both
    joined = combine_with_age_sex(valid, test, valid_age, test_age, 0)
    label = test.label_NK[:, 0]
    alone = max(roc_auc_score(label, p.logit_NK[:, 0]) for p in (test, test_age))
    best = roc_auc_score(label, test_age.logit_NK[:, 0] + 2 * test.logit_NK[:, 0] / 5)
    assert roc_auc_score(label, joined) > alone + 0.02
    assert roc_auc_score(label, joined) == pytest.approx(best, abs=0.003)
    with pytest.raises(ValueError, match="other records"):
        combine_with_age_sex(valid, test, valid_age, valid_age, 0)
