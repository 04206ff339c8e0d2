"""A predictions table in, `evaluation.json` out: values, intervals, counts, operating points.

Per label: counts, AUROC, AUPRC, Brier score and log loss, rates at the thresholds that were fitted
on validation, calibration, decision curve, subgroups, and one ECG per patient. Several labels also
get their mean (macro) and all of them pooled (micro). Regression: MAE, RMSE, R², Pearson's r. All
intervals come from the same draws of patients.
"""

# N records, P patients, K labels, R replicates

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from hpc_ecg.evaluation import metrics
from hpc_ecg.evaluation.averages import averages_at_thresholds, macro, micro
from hpc_ecg.evaluation.calibration import KINDS, apply_calibration, fit_calibration
from hpc_ecg.evaluation.decision import decision_curve
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.reliability import assess_calibration
from hpc_ecg.evaluation.resampling import (
    Resamples,
    draw_resamples,
    ranking_replicates,
    regression_replicates,
)
from hpc_ecg.evaluation.subgroups import one_ecg_per_patient, score_subgroups
from hpc_ecg.evaluation.thresholds import (
    TARGETS,
    apply_operating_point,
    fit_thresholds,
    points_by_method,
)
from hpc_ecg.log import tracked

MAX_THREADS = 4  # labels side by side, each with some 300 MB for 130,000 records


def evaluate_predictions(
    predictions: Predictions,
    task: str,
    operating_points: dict | None = None,
    replicates: int = 2000,
    seed: int = 0,
    calibrators: dict | None = None,
) -> dict:
    """All numbers of a test set, with intervals. `operating_points` and `calibrators` are what
    `fit_operating_points` and `fit_calibrators` gave on validation.

    Raises `ValueError` for NaN or constant predictions, and for a single label of one class. Among
    several labels, one of one class is listed under `not_scored`, and the averages leave it out.
    """
    resamples = draw_resamples(predictions.patient_N, replicates, seed)
    not_scored = labels_not_scored(predictions, task)
    scored = {name: k for k, name in enumerate(predictions.labels) if name not in not_scored}
    if task == "regression":
        labels, averages = _evaluate_regression(predictions, scored, resamples)
    else:
        labels, averages = _evaluate_classification(
            predictions, scored, resamples, operating_points, calibrators or {}
        )
    return {
        "task": task,
        "n": len(predictions),
        "n_patients": resamples.num_patients,
        "interval": "95 %, patients resampled",
        "replicates": replicates,
        "seed": seed,
        "labels": labels,
        "not_scored": not_scored,
    } | averages


def fit_operating_points(
    predictions: Predictions, targets: tuple[tuple[str, float], ...] = TARGETS
) -> dict[str, dict]:
    """Thresholds by label and method, from *validation* predictions; labels of one class have
    none."""
    skip = labels_not_scored(predictions, "classification")
    if predictions.probability_NK is None:
        raise ValueError("operating points need probabilities; a regression has none")
    p, label_KN, probability_KN = predictions, predictions.label_NK.T, predictions.probability_NK.T
    return {
        name: fit_thresholds(
            label_KN[k], probability_KN[k], name, targets, p.patient_N, p.weights(k)
        )
        for k, name in enumerate(predictions.labels)
        if name not in skip
    }


def fit_calibrators(predictions: Predictions) -> dict[str, dict[str, dict]]:
    """Calibrations by label and kind, from *validation* predictions; a `reason` if not fitted."""
    skip = labels_not_scored(predictions, "classification")
    fits: dict[str, dict[str, dict]] = {}
    for k, name in enumerate(predictions.labels):
        if name in skip:
            continue
        data = predictions.label_NK[:, k], predictions.logit_NK[:, k]
        about = predictions.patient_N, predictions.weights(k)
        fits[name] = {}
        for kind in KINDS:
            try:
                fit = fit_calibration(*data, kind, name, *about)
            except ValueError as error:
                fit = {"reason": str(error)}
            fits[name][kind] = fit
    return fits


def labels_not_scored(predictions: Predictions, task: str) -> dict[str, str]:
    """The labels without both classes, with the reason. ValueError: no label can be scored."""
    if task == "regression":
        return {}
    reasons = {}
    for name, label_N in zip(predictions.labels, predictions.label_NK.T, strict=True):
        if reason := metrics.why_not_scorable(label_N[has_label(label_N)]):
            reasons[name] = reason
    if len(reasons) == len(predictions.labels):
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{name}: {reason}; check the split and the label column")
    return reasons


def metric_replicates(
    predictions: Predictions, k: int, task: str, resamples: Resamples
) -> dict[str, FloatArray]:
    """Replicates of label k by metric; the patients are those of the whole table."""
    keep_N = has_label(predictions.label_NK[:, k])
    label_N, logit_N = predictions.label_NK[keep_N, k], predictions.logit_NK[keep_N, k]
    data = label_N, logit_N, resamples.patient_N[keep_N], resamples.multiplicity_RP
    if task == "regression":
        return regression_replicates(*data)
    return ranking_replicates(*data, predictions.weights(k)[keep_N])


def point_values(predictions: Predictions, k: int, task: str) -> dict:
    """Counts and point values of label k, without intervals. Records are ranked by logit, as
    float32 probabilities tie near 1. ValueError: labels or predictions that cannot be scored."""
    name = predictions.labels[k]
    metrics.check_finite(predictions.logit_NK[:, k], name)
    weight_N = predictions.weights(k)
    counts = metrics.count_label(predictions.label_NK[:, k], predictions.patient_N, weight_N)
    keep_N = has_label(predictions.label_NK[:, k])
    label_N, logit_N = predictions.label_NK[keep_N, k], predictions.logit_NK[keep_N, k]
    if task == "regression":
        metrics.check_regression(label_N, logit_N, name)
        counts = {key: counts[key] for key in ("n", "n_missing", "n_patients")}
        return counts | metrics.regression_metrics(label_N, logit_N)
    metrics.check_scorable(label_N, logit_N, name)
    data = label_N, logit_N, weight_N[keep_N]
    values = counts | {"auroc": metrics.auroc(*data), "auprc": metrics.auprc(*data)}
    if predictions.probability_NK is not None:
        probability_N = predictions.probability_NK[keep_N, k].astype(np.float64)
        metrics.check_probabilities(probability_N, name)
        values["brier"] = metrics.brier(label_N, probability_N, weight_N[keep_N])
        values["log_loss"] = metrics.log_loss(label_N, probability_N, weight_N[keep_N])
    return values


def _evaluate_regression(
    predictions: Predictions, scored: dict[str, int], resamples: Resamples
) -> tuple[dict[str, dict], dict[str, dict]]:
    labels, values_R = {}, {}
    for name, k in scored.items():
        values = point_values(predictions, k, "regression")
        values_R[name] = metric_replicates(predictions, k, "regression", resamples)
        labels[name] = values | {
            metric: bootstrap_interval(values[metric], value_R, metric)
            for metric, value_R in values_R[name].items()
        }
    if len(predictions.labels) == 1:
        return labels, {}
    return labels, {"macro": macro(labels, values_R, [resamples.num_patients] * len(labels))}


def _evaluate_classification(
    predictions: Predictions,
    scored: dict[str, int],
    resamples: Resamples,
    operating_points: dict | None,
    calibrators: dict,
) -> tuple[dict[str, dict], dict[str, dict]]:
    values = {name: point_values(predictions, k, "classification") for name, k in scored.items()}
    samples = {
        name: LabelSample.from_predictions(predictions, k, resamples) for name, k in scored.items()
    }
    points = {name: points_by_method(operating_points, name, predictions.labels) for name in scored}

    def score(name: str) -> tuple[dict, dict[str, FloatArray]]:
        return _score_sample(samples[name], values[name], points[name], calibrators.get(name, {}))

    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        found = tracked("labels scored", pool.map(score, scored), len(scored))
        results = dict(zip(scored, found, strict=True))
    labels = {name: label for name, (label, _) in results.items()}
    if len(predictions.labels) == 1:
        return labels, {}
    at = averages_at_thresholds(samples, points)
    values_R = {name: label_R for name, (_, label_R) in results.items()}
    means = macro(labels, values_R, [s.patients_in_smaller_class() for s in samples.values()])
    return labels, {
        "macro": means | {"at_threshold": at["macro"]},
        "micro": micro(samples) | {"at_threshold": at["micro"]},
    }


def _score_sample(
    sample: LabelSample, values: dict, points: dict[str, dict], fits: dict[str, dict]
) -> tuple[dict, dict[str, FloatArray]]:
    """A label's part of `evaluation.json`, and the replicates of its metrics."""
    values_R = sample.replicates()
    result = values | metric_intervals(values, values_R, sample)
    if points:
        result["at_threshold"] = {
            method: apply_operating_point(sample, point) for method, point in points.items()
        }
    result["calibration"] = assess_calibration(sample)
    if fits:
        result["recalibrated"] = {kind: _recalibrated(sample, fit) for kind, fit in fits.items()}
    result["decision_curve"] = decision_curve(sample)
    result["subgroups"] = score_subgroups(sample)
    result["one_ecg_per_patient"] = one_ecg_per_patient(sample)
    return result, values_R


def _recalibrated(sample: LabelSample, fit: dict) -> dict:
    """Brier score, log loss and ECE that this fit would give; if there is none, why."""
    if "reason" in fit:
        return fit
    new = replace(sample, probabilities_N=apply_calibration(sample.logits_N, fit))
    calibration = assess_calibration(new)
    curve = {part: calibration[part] for part in ("ece", "curve")}
    return metric_intervals(new.losses(), new.loss_replicates(), new) | curve | {"fit": fit}
