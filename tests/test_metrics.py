"""Point values against scikit-learn, and refusals."""

import numpy as np
import pytest
from sklearn import metrics as sk

from hpc_ecg.evaluation.metrics import auprc, auroc, check_scorable, regression_metrics
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.scores import evaluate_predictions, point_values


def make_predictions(num=400, labels=("afib",), seed=0, missing=0, probability=True):
    rng = np.random.default_rng(seed)
    label_NK = (rng.random((num, len(labels))) < 0.25).astype(float)
    logit_NK = 1.2 * label_NK + rng.normal(size=label_NK.shape)
    label_NK[:missing] = np.nan
    return Predictions(
        record_N=np.array([f"r{i:05d}" for i in range(num)], dtype=object),
        patient_N=np.array([f"p{i // 2:04d}" for i in range(num)], dtype=object),
        labels=list(labels),
        label_NK=label_NK,
        logit_NK=logit_NK,
        probability_NK=1 / (1 + np.exp(-logit_NK)) if probability else None,
    )


def test_values_are_those_of_scikit_learn_also_with_ties():
    rng = np.random.default_rng(3)
    labels, scores = (rng.random(300) < 0.2).astype(float), rng.integers(0, 9, 300) / 9
    predictions = Predictions(
        record_N=np.arange(300),
        patient_N=np.arange(300),
        labels=["afib"],
        label_NK=labels[:, None],
        logit_NK=scores[:, None],
        probability_NK=scores[:, None],
    )
    result = point_values(predictions, 0, "binary")
    assert result["auroc"] == auroc(labels, scores) == sk.roc_auc_score(labels, scores)
    assert result["auprc"] == auprc(labels, scores) == sk.average_precision_score(labels, scores)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-14)
    assert result["log_loss"] == pytest.approx(sk.log_loss(labels, scores), abs=1e-14)


def test_the_area_of_a_perfect_ranking_is_exactly_1():
    labels = np.repeat([0.0, 1.0], [64, 29])  # scikit-learn's sum of steps: 0.9999999999999998
    assert auprc(labels, labels + np.linspace(0, 0.5, 93)) == 1


def test_regression_values_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    y, x = rng.normal(60, 12, 200), rng.normal(60, 12, 200)
    x = 0.5 * (x + y)
    result = regression_metrics(y, x)
    assert result["mae"] == pytest.approx(sk.mean_absolute_error(y, x))
    assert result["rmse"] == pytest.approx(sk.root_mean_squared_error(y, x))
    assert result["r2"] == pytest.approx(sk.r2_score(y, x))
    assert result["pearson"] == pytest.approx(np.corrcoef(y, x)[0, 1])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [0.1, np.nan, 0.3], "afib: 1 of 3 predictions are NaN or infinite"),
        ([0, 1, 1], [0.1, np.inf, 0.3], "afib: 1 of 3 predictions are NaN or infinite"),
        ([0, 1, 1], [0.5, 0.5, 0.5], "afib: all 3 predictions are 0.5"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "afib: all 3 labels are 1; two classes are needed"),
        ([0, 2, 1], [0.1, 0.2, 0.3], "afib: labels must be 0 or 1, got 0, 1, 2"),
        ([0, 1], [0.1, 0.2, 0.3], r"afib: labels \(2,\) and scores \(3,\)"),
        ([0, np.nan, 1], [0.1, 0.2, 0.3], "afib: 1 label is missing"),
    ],
)
def test_meaningless_labels_and_scores_are_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        check_scorable(np.array(labels, dtype=float), np.array(scores), "afib")


def test_missing_labels_are_left_out_and_counted():
    predictions = make_predictions(missing=40)
    result = evaluate_predictions(predictions, "binary", None, replicates=50)["labels"]["afib"]
    keep = slice(40, None)
    label_N, logit_N = predictions.label_NK[keep, 0], predictions.logit_NK[keep, 0]
    assert (result["n"], result["n_missing"], result["n_patients"]) == (360, 40, 180)
    assert result["auroc"]["value"] == sk.roc_auc_score(label_N, logit_N)
    assert result["prevalence"] == label_N.mean()


def test_a_nan_prediction_of_an_unlabelled_record_still_fails():
    predictions = make_predictions(missing=40)
    predictions.logit_NK[0, 0] = np.nan
    with pytest.raises(ValueError, match="afib: 1 of 400 predictions are NaN"):
        evaluate_predictions(predictions, "binary", None, replicates=50)


def test_a_label_of_one_class_is_listed_among_several_and_fatal_alone():
    several = make_predictions(labels=("afib", "flutter"))
    several.label_NK[:, 1] = 0
    result = evaluate_predictions(several, "multilabel", None, replicates=50)
    assert result["not_scored"] == {"flutter": "all 400 labels are 0; two classes are needed"}
    assert result["macro"]["n_labels"] == 1
    alone = make_predictions()
    alone.label_NK[:] = 0
    with pytest.raises(ValueError, match="afib: all 400 labels are 0"):
        evaluate_predictions(alone, "binary", None, replicates=50)


def test_macro_is_the_mean_over_labels():
    predictions = make_predictions(labels=("a", "b", "c.5y"))
    result = evaluate_predictions(predictions, "multilabel", None, replicates=100)
    mean = np.mean([result["labels"][name]["auroc"]["value"] for name in ("a", "b", "c.5y")])
    assert result["macro"]["auroc"]["value"] == pytest.approx(mean)
    assert result["macro"]["auroc"]["low"] < mean < result["macro"]["auroc"]["high"]


def test_regression_is_evaluated_without_probabilities():
    predictions = make_predictions(labels=("lvef",), probability=False)
    predictions.label_NK[:] = 60 + 10 * predictions.logit_NK
    predictions.label_NK[:, 0] += np.random.default_rng(0).normal(0, 5, 400)
    result = evaluate_predictions(predictions, "regression", None, replicates=200)
    r2 = result["labels"]["lvef"]["r2"]
    assert r2["low"] < r2["value"] < r2["high"]
