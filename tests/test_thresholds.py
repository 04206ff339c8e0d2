"""Operating points: each method's target on validation, and the rates on the test set."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn import metrics as sk
from test_metrics import make_predictions

from hpc_ecg.evaluation.events import rate_in_new_patients
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.scores import evaluate_predictions, fit_operating_points
from hpc_ecg.evaluation.thresholds import confusion_counts, fit_thresholds, rates


def sample(tied: bool):
    rng = np.random.default_rng(5)
    labels = (rng.random(300) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-1.5 * labels - rng.normal(size=300)))
    return labels, np.round(scores, 1) if tied else scores


def confusion(labels, flagged):
    tn, fp, fn, tp = sk.confusion_matrix(labels, flagged).ravel()
    return tp / (tp + fn), tn / (tn + fp)


@pytest.mark.parametrize("tied", [False, True])
def test_no_other_threshold_meets_a_methods_target_better(tied):
    labels, scores = sample(tied)
    points = fit_thresholds(labels, scores, targets=(("sensitivity", 0.9), ("specificity", 0.75)))
    every = {t: confusion(labels, scores >= t) for t in np.unique(scores)}
    youden = points["youden"]
    assert sum(every[youden["threshold"]]) == pytest.approx(max(map(sum, every.values())))
    sensitive, specific = points["sensitivity_90"], points["specificity_75"]
    enough = {t: pair for t, pair in every.items() if pair[0] >= 0.9}
    assert sensitive["threshold"] == max(enough)
    enough = {t: pair for t, pair in every.items() if pair[1] >= 0.75}
    assert specific["threshold"] == min(enough)
    for point in points.values():
        seen = every[point["threshold"]]
        assert (point["sensitivity"], point["specificity"]) == pytest.approx(seen)


def test_a_target_that_is_reached_exactly_counts_as_reached():
    labels, scores = np.repeat([0.0, 1.0], 100), np.r_[np.arange(100), np.arange(50, 150)] / 200
    points = fit_thresholds(labels, scores, targets=(("specificity", 0.93), ("sensitivity", 0.93)))
    assert 1 - 7 / 100 < 0.93  # in floating point
    assert points["specificity_93"]["specificity"] == pytest.approx(0.93)
    assert points["sensitivity_93"]["sensitivity"] == pytest.approx(0.93)


def test_a_specificity_that_needs_every_record_negative_is_left_out():
    labels, scores = np.array([0.0] * 5 + [1.0] * 5), np.array([0.9] * 4 + [0.1] + [0.9] * 5)
    assert set(fit_thresholds(labels, scores)) == {"youden", "sensitivity_90"}


def test_rates_at_a_threshold_are_those_of_scikit_learn():
    valid, test = make_predictions(seed=1), make_predictions(seed=2, missing=11)
    points = fit_operating_points(valid)
    result = evaluate_predictions(test, "binary", points, replicates=50)
    label_N = test.label_NK[11:, 0]
    for method, point in points["afib"].items():
        at = result["labels"]["afib"]["at_threshold"][method]
        flagged = test.probability_NK[11:, 0] >= point["threshold"]
        tn, fp, fn, tp = sk.confusion_matrix(label_N, flagged).ravel()
        assert at["counts"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
        assert at["sensitivity"]["value"] == pytest.approx(sk.recall_score(label_N, flagged))
        known = sk.recall_score(label_N, flagged, pos_label=0)
        assert at["specificity"]["value"] == pytest.approx(known)
        assert at["ppv"]["value"] == pytest.approx(sk.precision_score(label_N, flagged))
        known = sk.precision_score(label_N, flagged, pos_label=0)
        assert at["npv"]["value"] == pytest.approx(known)
        assert at["f1"]["value"] == pytest.approx(sk.f1_score(label_N, flagged))
        assert at["nns"]["value"] == pytest.approx(1 / at["ppv"]["value"])
        assert at["nns"]["low"] == pytest.approx(1 / at["ppv"]["high"])
        for rate in ("sensitivity", "specificity", "ppv", "npv", "f1", "nns"):
            assert at[rate]["low"] < at[rate]["value"] < at[rate]["high"], (method, rate)
    assert json.loads(json.dumps(result)) == result


def test_replicates_of_a_rate_are_the_rates_of_the_resamples():
    predictions = make_predictions(num=120)
    resamples = draw_resamples(predictions.patient_N, 20, 0)
    _, counts_R4 = confusion_counts(LabelSample.from_predictions(predictions, 0, resamples), 0.5)
    found = rates(counts_R4)
    for draw_P, f1, ppv in zip(resamples.multiplicity_RP, found["f1"], found["ppv"], strict=True):
        rows = np.repeat(np.arange(120), draw_P[resamples.patient_N])
        label_n, flagged = predictions.label_NK[rows, 0], predictions.probability_NK[rows, 0] >= 0.5
        assert f1 == pytest.approx(sk.f1_score(label_n, flagged))
        assert ppv == pytest.approx(sk.precision_score(label_n, flagged))


def test_a_rate_of_no_records_has_no_value():
    predictions = make_predictions()
    points = {"afib": {"youden": {"threshold": 1.0, "fitted_on": "valid"}}}
    result = evaluate_predictions(predictions, "binary", points, replicates=50)
    at = result["labels"]["afib"]["at_threshold"]["youden"]
    nothing = {"value": None, "low": None, "high": None}
    assert at["ppv"] == at["nns"] == nothing
    assert at["sensitivity"]["value"] == 0


def test_points_in_the_format_of_older_runs_are_read():
    predictions = make_predictions()
    point = {"threshold": 0.4, "fitted_on": "valid", "method": "youden", "sensitivity": 0.5}
    for points in ({"afib": point}, point):
        result = evaluate_predictions(predictions, "binary", points, replicates=50)
        at = result["labels"]["afib"]["at_threshold"]
        assert list(at) == ["youden"] and at["youden"]["threshold"] == 0.4


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"threshold": 0.5, "fitted_on": "test"}, "fitted on 'test'; only 'valid' is allowed"),
        ({"cut": 0.5}, r"afib: operating point has no threshold, got {'cut': 0.5}"),
        (0.5, "afib: operating point has no threshold, got 0.5"),
        *(
            ({"threshold": wrong, "fitted_on": "valid"}, "operating_point.json damaged?")
            for wrong in (None, "0.5", True, 1.5, -0.1, float("nan"), [0.5])
        ),
    ],
)
def test_a_point_without_threshold_or_fitted_on_test_is_refused(point, message):
    points = {"afib": {"youden": point}}
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(make_predictions(), "binary", points, replicates=50)


def test_averages_over_labels_are_those_of_scikit_learn():
    predictions = make_predictions(labels=("a", "b", "c"))
    predictions.label_NK[:, 2] *= predictions.label_NK[:, 0]  # another prevalence
    result = evaluate_predictions(
        predictions, "multilabel", fit_operating_points(predictions), replicates=50
    )
    labels, scores = predictions.label_NK, predictions.probability_NK
    for kind in ("macro", "micro"):
        average = result[kind]
        known = sk.roc_auc_score(labels, predictions.logit_NK, average=kind)
        assert average["auroc"]["value"] == pytest.approx(known)
        known = sk.average_precision_score(labels, predictions.logit_NK, average=kind)
        assert average["auprc"]["value"] == pytest.approx(known)
        cut = [r["at_threshold"]["youden"]["threshold"] for r in result["labels"].values()]
        at = average["at_threshold"]["youden"]
        assert at["f1"]["value"] == pytest.approx(sk.f1_score(labels, scores >= cut, average=kind))
        known = sk.precision_score(labels, scores >= cut, average=kind)
        assert at["ppv"]["value"] == pytest.approx(known)
        known = sk.log_loss(labels.ravel(), scores.ravel())  # all labels have as many records
        assert average["log_loss"]["value"] == pytest.approx(known)
        for metric in ("auroc", "auprc", "brier", "log_loss"):
            assert average[metric]["low"] < average[metric]["value"] < average[metric]["high"]


@pytest.mark.parametrize("rate", ["sensitivity", "specificity"])
def test_a_mean_rate_of_1_has_the_limits_of_the_few_patients_behind_it(rate):
    """The bootstrap sees no error there; Wilson's lower limit of n of n is n / (n + t²)."""
    few, patients = 12, 60
    label_NK = np.zeros((patients, 2))
    label_NK[:few, 0] = label_NK[few : 2 * few, 1] = 1
    if rate == "specificity":
        label_NK = 1 - label_NK
    logit_NK = np.where(label_NK == 1, 2.0, -2.0) + np.linspace(0, 0.1, patients)[:, None]
    names = np.arange(patients).astype(str)
    predictions = Predictions(
        record_N=names,
        patient_N=names,
        labels=["a", "b"],
        label_NK=label_NK,
        logit_NK=logit_NK,
        probability_NK=expit(logit_NK),
    )
    points = {name: {"t": {"threshold": 0.5, "fitted_on": "valid"}} for name in "ab"}
    result = evaluate_predictions(predictions, "multilabel", points, replicates=50)
    behind = {"macro": 1 + 2 * (few - 1), "micro": 2 * few}
    for kind, num in behind.items():
        found = result[kind]["at_threshold"]["t"][rate]
        low = num / (num + stats.t.ppf(0.975, num - 1) ** 2)
        assert (found["value"], found["high"]) == (1, 1)
        assert found["low"] == pytest.approx(low)


def test_a_label_without_the_method_is_not_in_the_average():
    predictions = make_predictions(labels=("a", "b"))
    points = fit_operating_points(predictions)
    del points["b"]["youden"]
    result = evaluate_predictions(predictions, "multilabel", points, replicates=20)
    assert (
        result["macro"]["at_threshold"]["youden"]["f1"]["value"]
        == result["labels"]["a"]["at_threshold"]["youden"]["f1"]["value"]
    )


def test_a_regression_has_no_operating_points():
    with pytest.raises(ValueError, match="a regression has none"):
        fit_operating_points(replace(make_predictions(), probability_NK=None))


@pytest.mark.parametrize("positives", [1, 3, 8, 15, 60])
def test_a_threshold_says_what_so_few_positive_patients_can_promise(positives):
    """Two ECGs of each patient; a threshold below all positives promises what n hits of n do."""
    labels = (np.arange(400) < 2 * positives).astype(float)
    probabilities = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 400)
    points = fit_thresholds(labels, probabilities, patient_N=np.arange(400) // 2)
    point = points["youden"]
    assert (point["n_positive"], point["n_positive_patients"]) == (2 * positives, positives)
    low, high = point["in_new_patients"]["sensitivity"]
    assert low == pytest.approx(0.025 ** (1 / positives)) and low < high < 1
    word = "patient" if positives == 1 else "patients"
    known = f"the threshold rests on {positives} positive {word} in validation"
    assert point.get("warning") == (known if positives < 50 else None)


def test_the_range_of_a_threshold_holds_in_new_patients(rng):
    """The order statistic that keeps 9 of 10 has a true sensitivity with a beta distribution."""
    kept = np.sort(rng.random((4000, 10)), axis=1)[:, 1]  # the scores above it: 1 - threshold
    low, high = rate_in_new_patients(0.9, 10)
    assert np.mean((1 - kept >= low) & (1 - kept <= high)) == pytest.approx(0.95, abs=0.015)
