"""`hpc-ecg evaluate`: the numbers are those of the predictions, and of the right data."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for, words_for
from ranks import run_on_ranks
from sklearn.metrics import average_precision_score, roc_auc_score
from synthetic import Population, write_cohort

from hpc_ecg.cli import main
from hpc_ecg.cohort.table import Columns
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import DataConfig, open_shards, open_split
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.evaluation.calibration import fit_calibration
from hpc_ecg.safe_reading import read_json
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.evaluate import describe_evaluation, evaluate, evaluate_weights
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.open_run import load_run, load_run_for
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

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


def test_the_command_prints_a_table_that_fits_a_terminal(finished, capsys):
    assert main(["evaluate", str(finished.path)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:-1])) <= 80
    scores = read_json(finished.evaluation)["labels"]["af"]
    for metric, text in (("auroc", "AUROC"), ("brier", "Brier score")):
        low, high = scores[metric]["low"], scores[metric]["high"]
        shown = f"{scores[metric]['value']:.3f} ({low:.3f}–{high:.3f})"
        assert any(line.split() == [*text.split(), *shown.split()] for line in said.splitlines())
    assert "sensitivity ≥ 90 %" in said and "specificity ≥ 90 %" in said


@pytest.fixture(scope="module")
def other_hospital(tmp_path_factory):
    """A table of other patients, whose label has another name."""
    folder = tmp_path_factory.mktemp("other_hospital")
    population = Population(af_prevalence=0.4)
    path = write_cohort(folder, num_patients=24, seed=11, population=population)
    table = pd.read_csv(path).rename(columns={"af": "fibrillation"})
    table["old"] = (table["age"] > table["age"].median()).astype(int)
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def elsewhere(other_hospital):
    shards = other_hospital.parent / "elsewhere"
    shard_ecgs(plan_for(other_hospital, shards, columns=COLUMNS))
    return shards


COLUMNS = Columns(labels=["fibrillation", "old"], patient="patient_id")
RENAMED = "data.labels=[fibrillation]"


def test_several_labels_are_one_line_of_their_mean():
    own = {"value": 0.8, "low": 0.7, "high": 0.9}
    result = {"n": 9, "n_patients": 5, "labels": {"a": {"n": 9, "auroc": own}, "b": {}}}
    line = describe_evaluation(result | {"macro": {"auroc": own}})
    assert line == "2 labels: 9 ECGs of 5 patients, macro AUROC 0.800 (0.700–0.900)"


def test_another_cohort_is_scored_with_the_runs_own_thresholds(finished, elsewhere, capsys):
    words = ["--shards", str(elsewhere), "--split", "all", RENAMED]
    assert main(["evaluate", str(finished.path), *words]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[1:-1])) <= 80
    out = finished.path / "evaluations" / "elsewhere-all"
    result, table = read_json(out / "evaluation.json"), pd.read_parquet(out / "predictions.parquet")
    opened, _ = open_shards(DataConfig(shards=str(elsewhere), labels=["fibrillation"]))
    assert sorted(table["record"]) == sorted(opened.index["record"])  # of all splits
    known = opened.index.set_index("record").loc[table["record"], "label.fibrillation"]
    np.testing.assert_array_equal(table["af.label"], known)
    scores = result["labels"]["af"]
    there = table["af.label"].notna()
    auroc = roc_auc_score(table["af.label"][there], table["af.logit"][there])
    assert scores["auroc"]["value"] == pytest.approx(auroc)
    for method, point in read_json(finished.best / "operating_point.json")["af"].items():
        assert scores["at_threshold"][method]["threshold"] == point["threshold"]
    fitted = scores["recalibrated"]["isotonic"]
    if "reason" in fitted:  # the run's validation split is small
        assert "isotonic calibration needs 10" in fitted["reason"]
    else:
        fit = fit_calibration(*valid_of(finished), "isotonic")
        assert fitted["fit"]["probability"] == fit["probability"]
    assert result["data_index_sha256"] == opened.index_sha256
    assert "no signal is one that the run was trained on" in result["note"]
    assert "patients can be compared only if" in result["note"]


def valid_of(run):
    valid = pd.read_parquet(run.predictions / "valid.parquet")
    return valid["af.label"].to_numpy(), valid["af.logit"].to_numpy()


def test_more_thresholds_are_fitted_on_validation(finished, tmp_path):
    words = ["--out", str(tmp_path), "--sensitivity", "0.75", "--specificity", "0.8"]
    assert main(["evaluate", *words, str(finished.path)]) == 0
    at = read_json(tmp_path / "evaluation.json")["labels"]["af"]["at_threshold"]
    assert set(at) == {
        *("youden", "sensitivity_90", "specificity_90", "sensitivity_75", "specificity_80")
    }
    label, logit = valid_of(finished)
    flagged = 1 / (1 + np.exp(-logit)) >= at["sensitivity_75"]["threshold"]
    assert flagged[label == 1].mean() >= 0.75


def test_what_does_not_fit_the_run_is_refused(finished, elsewhere, other_hospital, tmp_path):
    def scored(*words, split="all", shards=elsewhere):
        config = load_run_for(str(finished.path), str(shards), list(words))
        return evaluate_weights(config, finished.best, tmp_path / "out", split)

    with pytest.raises(ValueError, match=r"data\.labels: af not in .*, which has fib"):
        scored()
    config = load_run_for(str(finished.path), str(elsewhere), [])
    data = replace(config.data, labels=["fibrillation", "old"], task="multilabel")
    with pytest.raises(ValueError, match=r"'old'\] are 2, .*best predicts 1 \(af\); give the"):
        evaluate_weights(replace(config, data=data), finished.best, tmp_path / "out")
    with pytest.raises(ValueError, match="belongs to another configuration"):
        scored(RENAMED, "seed=7")
    with pytest.raises(ValueError, match="--split must be one of test, valid, all"):
        scored(RENAMED, split="train")
    slower = tmp_path / "slower"
    signals = {"signal": SignalSpec(sample_rate_hz=125, num_samples=1250)}
    shard_ecgs(plan_for(other_hospital, slower, columns=COLUMNS, **signals))
    with pytest.raises(ValueError, match="do not mean the same: sample_rate_hz"):
        scored(RENAMED, shards=slower)
    assert not (tmp_path / "out").exists()


def test_nobody_is_scored_whom_the_run_was_trained_on(finished, shards, cohort, tmp_path):
    config = load_run_for(str(finished.path), str(shards), [])
    with pytest.raises(ValueError, match=r"is what .* was trained on; evaluate its split"):
        evaluate_weights(config, finished.best, tmp_path, split="all")
    resplit = tmp_path / "resplit"
    shard_ecgs(plan_for(cohort, resplit, seed=9))
    config = load_run_for(str(finished.path), str(resplit), [])
    with pytest.raises(ValueError, match=r"\d+ of \d+ signals of .* are among those"):
        evaluate_weights(config, finished.best, tmp_path)


def test_validation_of_the_run_gives_what_the_run_wrote(finished, tmp_path):
    assert main(["evaluate", str(finished.path), "--split", "valid", "--out", str(tmp_path)]) == 0
    ours = pd.read_parquet(tmp_path / "predictions.parquet")
    theirs = pd.read_parquet(finished.predictions / "valid.parquet")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)
    assert "where thresholds were fitted" in read_json(tmp_path / "evaluation.json")["note"]


def test_two_processes_score_each_record_once_as_one_does(finished, elsewhere, tmp_path):
    config = load_run_for(str(finished.path), str(elsewhere), [RENAMED])
    evaluate_weights(config, finished.best, tmp_path / "one", split="all")
    words = ["--shards", str(elsewhere), "--split", "all", RENAMED, "--out", str(tmp_path / "two")]
    outputs = run_on_ranks(2, ["evaluate", str(finished.path), *words])
    assert "AUROC" in outputs[0] and "AUROC" not in outputs[1]
    one, two = (pd.read_parquet(tmp_path / n / "predictions.parquet") for n in ("one", "two"))
    assert not two["record"].duplicated().any()
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    result = [read_json(tmp_path / n / "evaluation.json")["labels"]["af"] for n in ("one", "two")]
    assert result[0]["auroc"] == pytest.approx(result[1]["auroc"])


def test_a_run_is_not_scored_on_another_fold_than_its_own(cohort, tmp_path):
    shards = tmp_path / "shards"
    shard_ecgs(plan_for(cohort, shards, folds=3, stratify=True))
    words = words_for(shards, tmp_path / "run", "data.fold=1", "train.max_epochs=1")
    folder = finetune(load_config(FinetuneConfig, [], words))
    assert evaluate(load_run(folder.path, []))
    with pytest.raises(ValueError, match=r"data\.fold: 1 there, 2 now"):
        evaluate(load_run(folder.path, ["data.fold=2"]))
