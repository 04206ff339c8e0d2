"""A predictions table in, `evaluation.json` out: values, intervals, counts, operating points.

Per label: counts, AUROC and AUPRC with patient intervals, Brier score, log loss, and what happens
at the threshold that was fitted on validation. With several labels also the mean over labels, its
interval from the same draws of patients. For regression: MAE, RMSE, R², Pearson's r.
"""

# N records, P patients, K labels, R replicates

import numpy as np

from hpc_ecg.evaluation.intervals import few_patients_warning, percentile_interval
from hpc_ecg.evaluation.metrics import (
    FloatArray,
    check_finite,
    check_regression,
    present,
    regression_metrics,
    score_label,
    why_not_scorable,
)
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import (
    Resamples,
    draw_resamples,
    ranked_replicates,
    regression_replicates,
)
from hpc_ecg.evaluation.thresholds import apply_operating_point, fit_operating_point

RANKED = ("auroc", "auprc")
REGRESSION = ("mae", "rmse", "r2", "pearson")


def evaluate_predictions(
    predictions: Predictions,
    task: str,
    operating_point: dict | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> dict:
    """`operating_point` is what `fit_operating_points` gave on validation (label name → point).

    Raises `ValueError` for NaN or constant predictions, and for a single label of one class. Among
    several labels, one of one class is listed under `not_scored`, and the macro mean leaves it out.
    """
    resamples = draw_resamples(predictions.patient_N, replicates, seed)
    not_scored = labels_not_scored(predictions, task)
    labels, replicate = {}, {}
    for k, name in enumerate(predictions.labels):
        if name in not_scored:
            continue
        values_R = replicates_of(predictions, k, task, resamples)
        point = _point_of(operating_point, name, predictions.labels)
        labels[name] = _label_result(predictions, k, task, values_R, point)
        replicate[name] = values_R
    result = {"task": task, "n": len(predictions), "n_patients": resamples.num_patients}
    result |= {"interval": "95 %, percentile, patients resampled", "replicates": replicates}
    result |= {"seed": seed, "labels": labels, "not_scored": not_scored}
    if len(predictions.labels) > 1:
        result["macro"] = {"n_labels": len(labels)} | _macro(labels, replicate)
    return result


def fit_operating_points(predictions: Predictions) -> dict[str, dict]:
    """Youden points by label from *validation* predictions; labels of one class have none."""
    skip = labels_not_scored(predictions, "classification")
    if predictions.probability_NK is None:
        raise ValueError("operating points need probabilities; a regression has none")
    label_KN, probability_KN = predictions.label_NK.T, predictions.probability_NK.T
    return {
        name: fit_operating_point(label_KN[k], probability_KN[k], name)
        for k, name in enumerate(predictions.labels)
        if name not in skip
    }


def labels_not_scored(predictions: Predictions, task: str) -> dict[str, str]:
    """The labels without both classes, with the reason. Raises when none is left to be scored."""
    if task == "regression":
        return {}
    reasons = {}
    for k, name in enumerate(predictions.labels):
        label_N = predictions.label_NK[:, k]
        reason = why_not_scorable(label_N[present(label_N)])
        if reason is not None:
            reasons[name] = reason
    if len(reasons) == len(predictions.labels):
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{name}: {reason}; check the split and the label column")
    return reasons


def replicates_of(
    predictions: Predictions, k: int, task: str, resamples: Resamples
) -> dict[str, FloatArray]:
    """All bootstrap values of label k, by metric; the patients are those of the whole table."""
    check_finite(predictions.logit_NK[:, k], predictions.labels[k])
    keep_N = present(predictions.label_NK[:, k])
    compute = regression_replicates if task == "regression" else ranked_replicates
    label_N, logit_N = predictions.label_NK[keep_N, k], predictions.logit_NK[keep_N, k]
    return compute(label_N, logit_N, resamples.patient_N[keep_N], resamples.multiplicity_RP)


def point_values(predictions: Predictions, k: int, task: str) -> dict:
    """Counts and point values of label k, without intervals."""
    name = predictions.labels[k]
    label_N, logit_N = predictions.label_NK[:, k], predictions.logit_NK[:, k]
    if task != "regression":
        probability_NK = predictions.probability_NK
        probability_N = None if probability_NK is None else probability_NK[:, k]
        return score_label(label_N, logit_N, predictions.patient_N, probability_N, name=name)
    check_finite(logit_N, name)
    keep_N = present(label_N)
    check_regression(label_N[keep_N], logit_N[keep_N], name)
    counts = {"n": int(keep_N.sum()), "n_missing": int((~keep_N).sum())}
    counts["n_patients"] = len(np.unique(predictions.patient_N[keep_N]))
    return counts | regression_metrics(label_N[keep_N], logit_N[keep_N])


def _label_result(
    predictions: Predictions, k: int, task: str, values_R: dict, point: dict | None
) -> dict:
    result = point_values(predictions, k, task)
    regression = task == "regression"
    warning = None if regression else few_patients_warning(result)
    for metric in REGRESSION if regression else RANKED:
        result[metric] = percentile_interval(result[metric], values_R[metric], warning)
    if point is not None and predictions.probability_NK is not None:
        label_N, probability_N = predictions.label_NK[:, k], predictions.probability_NK[:, k]
        result["at_threshold"] = apply_operating_point(
            label_N, probability_N, point, predictions.labels[k]
        )
    return result


def _macro(labels: dict[str, dict], replicate: dict[str, dict]) -> dict:
    """Means over labels. A replicate that lacks a class of some label averages over the others."""
    result = {}
    for metric in next(iter(replicate.values())):
        value = float(np.mean([label[metric]["value"] for label in labels.values()]))
        value_LR = np.stack([values[metric] for values in replicate.values()])
        result[metric] = percentile_interval(value, mean_over_labels(value_LR))
        incomplete = int(np.isnan(value_LR).any(axis=0).sum())
        if incomplete:
            text = f"{incomplete} replicates lacked a class of some label: mean over the others"
            result[metric]["warning"] = text
    return result


def mean_over_labels(value_LR: FloatArray) -> FloatArray:
    """Mean over the labels that have a value in the replicate; NaN where none has."""
    count_R = np.isfinite(value_LR).sum(axis=0)
    return np.where(count_R > 0, np.nansum(value_LR, axis=0) / np.maximum(count_R, 1), np.nan)


def _point_of(points: dict | None, name: str, labels: list[str]) -> dict | None:
    """A point by label name; a bare point is accepted where there is one label."""
    if points is None:
        return None
    if "threshold" in points and len(labels) == 1:
        return points
    return points.get(name)
