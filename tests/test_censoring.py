"""Weights against censoring: Kaplan–Meier by hand, cohorts whose truth is known, and the way from
the cohort's table to loss, metrics, report and card."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import plan_for, words_for
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from test_compare import edit_evaluation, make_sweep, make_test_set

from hpc_ecg.cli import main
from hpc_ecg.cohort.censoring import (
    WeightPlan,
    censoring_curve,
    probability_before,
    read_censoring,
    weigh,
)
from hpc_ecg.cohort.table import Columns, read_cohort
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.flow import read_flow
from hpc_ecg.data.views import replace_labels
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.predictions import Predictions, read_predictions, write_predictions
from hpc_ecg.evaluation.resampling import draw_multiplicities, draw_resamples, ranking_replicates
from hpc_ecg.evaluation.scores import evaluate_predictions, fit_operating_points
from hpc_ecg.model.losses import loss_sum, normalizer
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.open_run import load_run

HORIZON = 5.0


def test_the_curve_of_censoring_is_the_one_by_hand():
    # exits 1 2 2 3 4 5 5, censored at 2, 3 and 4; the event at 2 leaves before the censoring at 2
    time_N = np.array([1, 2, 2, 3, 4, 5, 5.0])
    is_censored_N = np.array([0, 0, 1, 1, 1, 0, 0], bool)
    time_J, curve_J = censoring_curve(time_N, is_censored_N)
    assert time_J.tolist() == [2, 3, 4]
    np.testing.assert_allclose(curve_J, [4 / 5, 4 / 5 * 3 / 4, 4 / 5 * 3 / 4 * 2 / 3])
    before = probability_before(np.array([1, 2, 2.5, 3, 5]), time_J, curve_J)
    np.testing.assert_allclose(before, [1, 1, 0.8, 0.8, 0.4])


def cohort_of(rng, num, censoring):
    """ECGs with a covariate, a calibrated risk, and the time and kind of their exit."""
    age_N = rng.normal(size=num)
    risk_N = expit(-1.5 + 1.2 * age_N)
    event_N = rng.exponential(size=num) * HORIZON / -np.log1p(-risk_N)
    lost_N = rng.exponential(size=num) / censoring(age_N)
    exit_N = np.minimum(np.minimum(event_N, lost_N), HORIZON)
    label_N = np.where(event_N <= HORIZON, 1.0, 0.0)
    known_N = np.where(lost_N < np.minimum(event_N, HORIZON), np.nan, label_N)
    labelled = pd.DataFrame({"label": known_N, "exit_days": exit_N})
    return age_N, risk_N, label_N, labelled


def scored(label_N, risk_N, weight_N=None):
    groups = {} if weight_N is None else {"ipcw.af": weight_N}
    predictions = Predictions(
        record_N=np.arange(len(label_N)).astype(str).astype(object),
        patient_N=np.arange(len(label_N)).astype(str).astype(object),
        labels=["af"],
        label_NK=label_N[:, None],
        logit_NK=np.log(risk_N / (1 - risk_N))[:, None],
        probability_NK=risk_N[:, None],
        groups=groups,
    )
    points = fit_operating_points(predictions)
    return evaluate_predictions(predictions, "binary", points, replicates=50)["labels"]["af"]


@pytest.mark.parametrize("by_risk", [0.0, -0.5])
def test_weights_give_the_truth_that_censoring_hides(rng, by_risk):
    """A calibrated model; without weights its O/E is far above 1."""
    age_N, risk_N, truth_N, labelled = cohort_of(
        rng, 20_000, lambda age: 0.15 * np.exp(by_risk * age)
    )
    given = pd.DataFrame({"age": age_N.astype(str), "sex": "f"})
    given.loc[::50, "age"] = ""
    plan = WeightPlan(censoring_model="age,sex" if by_risk else "")
    patients = pd.Series(np.arange(len(given)).astype(str))
    weight_N, about = weigh(labelled, given, patients, plan, "ecgs.csv")
    label_N = labelled["label"].to_numpy()
    is_known_N = ~np.isnan(label_N)
    assert (weight_N[~is_known_N] == 0).all() and (weight_N[is_known_N] > 0).all()
    assert 0.5 < weight_N[is_known_N].mean() < 2 and about["divided_by"] > 1
    truth, plain = scored(truth_N, risk_N), scored(label_N, risk_N)
    weighted = scored(label_N, risk_N, weight_N)
    assert plain["calibration"]["o_e"]["value"] > 1.15
    assert weighted["calibration"]["o_e"]["value"] == pytest.approx(1, abs=0.05)
    assert weighted["calibration"]["slope"]["value"] == pytest.approx(1, abs=0.1)
    assert weighted["calibration"]["intercept"]["value"] == pytest.approx(0, abs=0.1)
    for metric, tolerance in (("auroc", 0.01), ("auprc", 0.03), ("brier", 0.01)):
        value = weighted[metric]["value"]
        assert value == pytest.approx(truth[metric]["value"], abs=tolerance)
        assert weighted[metric]["low"] < value < weighted[metric]["high"]
    assert weighted["prevalence"] == pytest.approx(truth["prevalence"], abs=0.015)
    t = truth["at_threshold"]["youden"]["threshold"]
    at = weighted["at_threshold"]["youden"]
    is_high_N = risk_N >= at["threshold"]
    assert at["ppv"]["value"] == pytest.approx(truth_N[is_high_N].mean(), abs=0.03)
    sensitivity = (is_high_N & (truth_N == 1)).sum() / truth_N.sum()
    assert at["sensitivity"]["value"] == pytest.approx(sensitivity, abs=0.03)
    assert 0 < t < 1
    benefits = [x["decision_curve"]["net_benefit"][19] for x in (truth, weighted, plain)]
    assert benefits[1] == pytest.approx(benefits[0], abs=0.01)
    assert abs(benefits[2] - benefits[0]) > 0.02


def test_test_patients_do_not_change_the_weights_of_others(rng):
    age_N, _, _, labelled = cohort_of(rng, 500, lambda age: 0.3 + 0 * age)
    given = pd.DataFrame({"age": age_N.astype(str), "split": ["train"] * 400 + ["test"] * 100})
    patients = pd.Series(np.arange(500).astype(str))
    changed = labelled.copy()
    changed.loc[400:, "label"], changed.loc[400:, "exit_days"] = np.nan, 0.1
    for model in ("", "age"):
        plan = WeightPlan(censoring_model=model, split="split")
        before, _ = weigh(labelled, given, patients, plan, "ecgs.csv")
        after, about = weigh(changed, given, patients, plan, "ecgs.csv")
        np.testing.assert_allclose(before[:400], after[:400])
        assert about["split"] == {"column": "split"} and about["training_ecgs"] == 400


def test_weighted_replicates_are_those_of_scikit_learn(rng):
    label_N = rng.integers(0, 2, 60).astype(float)
    score_N = rng.integers(0, 12, 60).astype(float)
    patient_N, weight_N = rng.integers(0, 25, 60), rng.uniform(0.05, 3, 60)
    draws_RP = draw_multiplicities(25, 40, 0)
    found = ranking_replicates(label_N, score_N, patient_N, draws_RP, weight_N)
    for r, draw_P in enumerate(draws_RP):
        w_N = draw_P[patient_N] * weight_N
        assert found["auroc"][r] == pytest.approx(
            roc_auc_score(label_N, score_N, sample_weight=w_N), abs=1e-12
        )


@pytest.mark.parametrize("name", ["bce", "as", "bf", "mlsml"])
@pytest.mark.parametrize("reduction", ["mean", "positives"])
def test_the_weighted_loss_of_parts_is_that_of_the_batch_and_of_whole_copies(name, reduction):
    """A weight of 2 is the record twice; parts add up; missing labels count nothing."""
    torch.manual_seed(0)
    config = LossConfig(name=name, reduction=reduction, ipcw=True)
    logits, targets = torch.randn(6, 2), torch.randint(0, 2, (6, 2)).float()
    targets[1, 0] = targets[4, 1] = torch.nan
    weights = torch.tensor([1.0, 2, 1, 3, 1, 2])[:, None].expand(6, 2).contiguous()
    whole = loss_sum(logits, targets, config, weights)
    parts = sum(
        loss_sum(logits[s], targets[s], config, weights[s]) for s in ([0, 1], [2], [3, 4, 5])
    )
    torch.testing.assert_close(whole, parts)
    copies = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5, 5])
    plain = LossConfig(name=name, reduction=reduction)
    torch.testing.assert_close(whole, loss_sum(logits[copies], targets[copies], plain))
    assert normalizer(targets, config, weights) == normalizer(targets[copies], plain)
    small = normalizer(targets, config, weights / 100)
    assert small == pytest.approx(normalizer(targets, config, weights) / 100)
    ignored = loss_sum(logits, targets, plain, weights)
    torch.testing.assert_close(ignored, loss_sum(logits, targets, plain))


def test_weights_go_with_predictions_to_disk_and_into_samples(tmp_path, rng):
    label_N = np.array([1.0, 0, 1, 0, np.nan])
    predictions = Predictions(
        record_N=np.array(list("abcde"), object),
        patient_N=np.array(list("abcde"), object),
        labels=["af"],
        label_NK=label_N[:, None],
        logit_NK=rng.normal(size=(5, 1)),
        probability_NK=np.full((5, 1), 0.5),
        groups={"ipcw.af": np.array([1.0, 2, 3, 4, 0])},
    )
    write_predictions(tmp_path / "p.parquet", predictions)
    found = read_predictions(tmp_path / "p.parquet")
    assert found.weights(0).tolist() == [1, 2, 3, 4, 0]

    sample = LabelSample.from_predictions(found, 0, draw_resamples(found.patient_N, 10, 0))
    assert sample.weights_N.tolist() == [1, 2, 3, 4]
    assert sample.take(np.array([0, 3])).weights_N.tolist() == [1, 4]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """ECGs of 2010, events and the end of follow-up of 60 patients, most of them lost early."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(3)
    start = pd.Timestamp("2010-01-01")
    ends = start + pd.to_timedelta(rng.integers(100, 3000, 60), "D")
    events = start + pd.to_timedelta(rng.integers(10, 4000, 60), "D")
    names = [f"p{n}" for n in range(60)]
    ecgs = pd.DataFrame({"record": [f"e{n}" for n in range(60)], "patient": names})
    ecgs["time"], ecgs["end"] = "2010-01-01", ends.strftime("%Y-%m-%d")
    ecgs["age"] = rng.integers(30, 80, 60)
    ecgs["own"] = np.array(["train", "valid", "test"])[rng.integers(0, 3, 60)]
    ecgs.to_csv(folder / "ecgs.csv", index=False)
    seen = pd.DataFrame({"patient": names, "time": events.strftime("%Y-%m-%d"), "code": "I48"})
    seen[events <= ends].to_csv(folder / "events.csv", index=False)
    return folder


def make(tables, out, *more):
    command = ["cohort", str(tables / "ecgs.csv"), str(tables / "events.csv"), "--out", str(out)]
    command += ["--event", "I48", "--within", "5y", "--followed-until", "end", "--label", "af"]
    return main([*command, *more])


@pytest.mark.parametrize(
    "more", [(), ("--censoring-model", "age"), ("--split", "own"), ("--fractions", ".5,.2,.3")]
)
def test_the_cohort_holds_weights_and_says_how_they_were_made(tables, tmp_path, capsys, more):
    out = tmp_path / "cohort.csv"
    assert make(tables, out, "--censored", "ipcw", *more) == 0
    table = pd.read_csv(out)
    assert (table["ipcw.af"][table["af"].isna()] == 0).all()
    assert (table["ipcw.af"][table["af"].notna()] > 0).all()
    flow = json.loads(out.with_suffix(".flow.json").read_text())
    lost = int(table["af"].isna().sum())
    assert f"af: {lost} ECGs censored before the end of the window" in capsys.readouterr().out
    assert "exit_days" not in table
    policy = flow["weights"]["split"]
    assert read_censoring(out, ["af"], policy)["ecgs"] == lost
    with pytest.raises(ValueError, match="fitted on the training patients of"):
        read_censoring(out, ["af"], policy | {"seed": 7})
    cohort = read_cohort(out, Columns(labels=["af"], patient="patient"))
    assert cohort.extra["ipcw.af"].astype(float).tolist() == table["ipcw.af"].tolist()


@pytest.mark.parametrize("rule", ["exclude", "missing"])
def test_without_weights_text_picture_and_json_warn_with_the_number(tables, tmp_path, rule):
    out = tmp_path / "cohort.csv"
    assert make(tables, out, "--censored", rule) == 0
    done = "left out" if rule == "exclude" else "without a label"
    for end in ("txt", "json"):
        text = out.with_suffix(f".flow.{end}").read_text()
        assert done in text and "no weights make up for them" in text
    assert "because follow-up" in out.with_suffix(".flow.svg").read_text()
    assert read_censoring(out, ["af"], {})["rule"] == rule
    assert read_censoring(out, ["other"], {}) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--censored", "missing", "--censoring-model", "age"), "--censoring-model is for"),
        (("--censored", "exclude", "--split-seed", "1"), "--split-seed is for --censored ipcw"),
        (("--censored", "ipcw", "--censoring-model", "bmi"), "no column 'bmi'"),
        (("--censored", "ipcw", "--censoring-model", "record"), "group them into 20"),
        (("--censored", "ipcw", "--split", "patient"), "allowed are train, valid, test"),
        (("--censored", "ipcw", "--fractions", "1,1"), "--fractions: three numbers"),
    ],
)
def test_a_mistake_is_one_line(tables, tmp_path, capsys, more, expected):
    assert make(tables, tmp_path / "cohort.csv", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_another_table_of_labels_brings_its_own_weights_or_none(tmp_path):
    keys = [f"{n:08d}" for n in range(3)]
    index = pd.DataFrame({"key": keys, "record": list("abc"), "ipcw.af": 2.0, "label.af": 1.0})
    path = tmp_path / "t.csv"
    path.write_text("record,af\na,1\nb,0\n")
    found, names = replace_labels(index, path, [])
    assert names == ["af"] and "ipcw.af" not in found
    path.write_text("record,af,ipcw.af\na,1,1.5\nb,,\n")
    found, names = replace_labels(index, path, [])
    assert names == ["af"] and found["ipcw.af"].fillna(0).tolist() == [1.5, 0, 0]


def test_one_run_of_weighted_labels_is_compared_by_the_bootstrap_alone(tmp_path):
    test_set = make_test_set()
    make_sweep(tmp_path, {"a": 1.5, "b": 0.5}, seeds=(0, 1))
    weights = np.random.default_rng(0).uniform(0.1, 3, len(test_set[0]))
    for path in tmp_path.glob("*/seed-*/predictions/*.parquet"):
        made = read_predictions(path)
        weight_N = weights[: len(made)]
        groups = {f"ipcw.{made.labels[0]}": weight_N}
        write_predictions(path, replace(made, groups=made.groups | groups))
    for folder in tmp_path.glob("*/seed-*"):
        edit_evaluation(folder, dict)  # changes nothing, vouches for it
    comparison = compare(tmp_path, 50)
    assert comparison.delong == []
    assert any("DeLong's test takes no weights" in text for text in comparison.warnings)
    test = read_predictions(tmp_path / "a/seed-1/predictions/test.parquet").sorted()
    expected = roc_auc_score(
        test.label_NK[:, 0], test.logit_NK[:, 0], sample_weight=test.weights(0)
    )
    assert comparison.strategies[0].per_seed["auroc"][1] == pytest.approx(expected)


def test_a_label_without_a_weight_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,patient,af,ipcw.af\na.npy,1,1,1.5\nb.npy,2,0,\n")
    with pytest.raises(ValueError, match=r"column ipcw.af: each ECG with a label needs a weight"):
        read_cohort(path, Columns(labels=["af"], patient="patient"))


@pytest.fixture(scope="module")
def weighted_shards(cohort, tmp_path_factory):
    """The synthetic cohort with weights, and a flow that says how they were made."""
    table = tmp_path_factory.mktemp("weighted") / "weighted.csv"
    rows, rng = pd.read_csv(cohort, dtype=str), np.random.default_rng(0)
    rows["ipcw.af"] = rng.uniform(0.2, 3, len(rows)).round(4)
    rows.to_csv(table, index=False)
    policy = {"hash_of": "patient", "fractions": [0.5, 0.25, 0.25], "seed": 0}
    weights = {"model": "Kaplan–Meier", "split": policy, "cut": 2, "cut_at": 20.0}
    lost = {"text": "missing, censored: x", "ecgs": 7, "patients": 7}
    flow = {"rules": {"censored": "ipcw"}, "sources": {"label": "af"}, "weights": weights}
    flow |= {"table": {"file": table.name}, "flow": {"left_out": [], "labels": [lost]}}
    flow["flow"] |= {"start": lost, "labelled": lost}
    table.with_suffix(".flow.json").write_text(json.dumps(flow))
    out = table.with_name("set")
    shard_ecgs(plan_for(table, out, signals=cohort.parent))
    with pytest.raises(ValueError, match="fitted on the training patients"):
        shard_ecgs(plan_for(table, table.with_name("b"), signals=cohort.parent, seed=1))
    return out


def test_a_run_is_trained_and_scored_with_the_weights_of_its_shards(weighted_shards, tmp_path):
    """The divisor is of the global batch: micro-batches of 3 give the loss of those of 12."""
    losses = {}
    for size in (3, 12):
        words = words_for(weighted_shards, tmp_path / str(size), "train.max_epochs=1")
        more = ["loss.ipcw=true", f"engine.micro_batch_size={size}"]
        assert main(["finetune", *words, *more]) == 0
        lines = (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        losses[size] = [e["loss"] for e in events if e["event"] in ("step", "eval")]
    np.testing.assert_allclose(losses[3], losses[12], rtol=1e-4)
    valid = read_predictions(tmp_path / "12/predictions/valid.parquet")
    y_N, z_N = valid.label_NK[:, 0], valid.logit_NK[:, 0]
    bce_N, w_N = np.logaddexp(0, z_N) - y_N * z_N, valid.weights(0) * ~np.isnan(y_N)
    assert losses[12][-1] == pytest.approx(np.nansum(w_N * bce_N) / w_N.sum(), rel=1e-4)
    result = evaluate(load_run(str(tmp_path / "12"), []))["labels"]["af"]
    test = read_predictions(tmp_path / "12/predictions/test.parquet")
    keep_N = ~np.isnan(test.label_NK[:, 0])
    y_N, z_N, w_N = (x[keep_N] for x in (test.label_NK[:, 0], test.logit_NK[:, 0], test.weights(0)))
    assert 0.2 <= w_N.min() < w_N.max() <= 3
    assert result["prevalence"] == pytest.approx(np.average(y_N, weights=w_N))
    expected = roc_auc_score(y_N, z_N, sample_weight=w_N)
    assert result["auroc"]["value"] == pytest.approx(expected)
    flow = read_flow({"data.shards": str(weighted_shards)})
    assert "af: 7 ECGs censored" in flow.on_censoring and "2 cut at 20" in flow.on_censoring


def test_weights_that_are_not_there_are_not_trained_with(shards, tmp_path, capsys):
    assert main(["finetune", *words_for(shards, tmp_path / "run", "loss.ipcw=true")]) == 2
    assert "loss.ipcw=true needs a yes/no label with a column ipcw.af" in capsys.readouterr().err
