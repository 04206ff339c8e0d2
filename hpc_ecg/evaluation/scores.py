"""A predictions table in, `evaluation.json` out: values, intervals, counts, operating points.

Per label: counts, AUROC, AUPRC, Brier score and log loss, what happens at the thresholds that were
fitted on validation, calibration, decision curve, subgroups, and one ECG per patient. With several
labels also their mean (macro) and all of them pooled (micro). For regression: MAE, RMSE, R²,
Pearson's r. All intervals come from the same draws of patients.
"""

# N records, P patients, K labels, R replicates

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np

from hpc_ecg.evaluation.averages import averages_at_thresholds, macro, micro
from hpc_ecg.evaluation.calibration import apply_calibration, fit_calibration, fit_isotonic
from hpc_ecg.evaluation.decision import decision_curve
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import (
    FloatArray,
    brier,
    check_finite,
    check_regression,
    has_label,
    log_loss,
    regression_metrics,
    score_label,
    why_not_scorable,
)
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

MOST_THREADS = 4  # labels side by side, each with some 300 MB for 130,000 records
REGRESSION = ("mae", "rmse", "r2", "pearson")


def evaluate_predictions(
    predictions: Predictions,
    task: str,
    operating_points: dict | None = None,
    replicates: int = 2000,
    seed: int = 0,
    calibrators: dict | None = None,
) -> dict:
    """`operating_points` and `calibrators` are what `fit_operating_points` and `fit_calibrators`
    gave on validation.

    Raises `ValueError` for NaN or constant predictions, and for a single label of one class. Among
    several labels, one of one class is listed under `not_scored`, and the averages leave it out.
    """
    resamples = draw_resamples(predictions.patient_N, replicates, seed)
    not_scored = labels_not_scored(predictions, task)
    scored = {name: k for k, name in enumerate(predictions.labels) if name not in not_scored}
    result = {"task": task, "n": len(predictions), "n_patients": resamples.num_patients}
    result |= {"interval": "95 %, patients resampled", "replicates": replicates, "seed": seed}
    values = {name: point_values(predictions, k, task) for name, k in scored.items()}
    if task == "regression":
        values_R = {
            name: metric_replicates(predictions, k, task, resamples) for name, k in scored.items()
        }
        labels = {name: _regression(values[name], values_R[name]) for name in scored}
        more = {"macro": macro(labels, values_R)} if len(predictions.labels) > 1 else {}
        return result | {"labels": labels, "not_scored": not_scored} | more
    samples = {
        name: LabelSample.from_predictions(predictions, k, resamples) for name, k in scored.items()
    }
    points = {name: points_by_method(operating_points, name, predictions.labels) for name in scored}
    fits = calibrators or {}
    with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
        drawn = pool.map(LabelSample.replicates, samples.values())
        values_R = dict(zip(samples, drawn, strict=True))
        results = pool.map(
            lambda name: _classification(
                values[name], values_R[name], samples[name], points[name], fits.get(name, {})
            ),
            samples,
        )
        labels = dict(zip(samples, results, strict=True))
    result |= {"labels": labels, "not_scored": not_scored}
    if len(predictions.labels) > 1:
        at = averages_at_thresholds(samples, points)
        result["macro"] = macro(labels, values_R) | {"at_threshold": at["macro"]}
        result["micro"] = micro(samples) | {"at_threshold": at["micro"]}
    return result


def fit_operating_points(
    predictions: Predictions, targets: tuple[tuple[str, float], ...] = TARGETS
) -> dict[str, dict]:
    """By label and method, from *validation* predictions; labels of one class have none."""
    skip = labels_not_scored(predictions, "classification")
    if predictions.probability_NK is None:
        raise ValueError("operating points need probabilities; a regression has none")
    label_KN, probability_KN = predictions.label_NK.T, predictions.probability_NK.T
    return {
        name: fit_thresholds(label_KN[k], probability_KN[k], name, targets)
        for k, name in enumerate(predictions.labels)
        if name not in skip
    }


def fit_calibrators(predictions: Predictions) -> dict[str, dict[str, dict]]:
    """By label and kind, from *validation* predictions; what cannot be fitted is left out."""
    skip = labels_not_scored(predictions, "classification")
    fits: dict[str, dict[str, dict]] = {}
    for k, name in enumerate(predictions.labels):
        if name in skip:
            continue
        label_N, logit_N = predictions.label_NK[:, k], predictions.logit_NK[:, k]
        fits[name] = {"isotonic": fit_isotonic(label_N, logit_N, name)}
        for kind in ("temperature", "platt"):
            with suppress(ValueError):  # it ranks the wrong way round, which the AUROC tells
                fits[name][kind] = fit_calibration(label_N, logit_N, kind, name)
    return fits


def labels_not_scored(predictions: Predictions, task: str) -> dict[str, str]:
    """The labels without both classes, with the reason. Raises when none is left to be scored."""
    if task == "regression":
        return {}
    reasons = {}
    for k, name in enumerate(predictions.labels):
        label_N = predictions.label_NK[:, k]
        reason = why_not_scorable(label_N[has_label(label_N)])
        if reason is not None:
            reasons[name] = reason
    if len(reasons) == len(predictions.labels):
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{name}: {reason}; check the split and the label column")
    return reasons


def metric_replicates(
    predictions: Predictions, k: int, task: str, resamples: Resamples
) -> dict[str, FloatArray]:
    """All bootstrap values of label k, by metric; the patients are those of the whole table."""
    check_finite(predictions.logit_NK[:, k], predictions.labels[k])
    keep_N = has_label(predictions.label_NK[:, k])
    compute = regression_replicates if task == "regression" else ranking_replicates
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
    keep_N = has_label(label_N)
    check_regression(label_N[keep_N], logit_N[keep_N], name)
    counts = {"n": int(keep_N.sum()), "n_missing": int((~keep_N).sum())}
    counts["n_patients"] = len(np.unique(predictions.patient_N[keep_N]))
    return counts | regression_metrics(label_N[keep_N], logit_N[keep_N])


def _regression(values: dict, values_R: dict[str, FloatArray]) -> dict:
    intervals = {m: bootstrap_interval(values[m], values_R[m], metric=m) for m in REGRESSION}
    return values | intervals


def _classification(
    values: dict,
    values_R: dict[str, FloatArray],
    sample: LabelSample,
    points: dict[str, dict],
    fits: dict[str, dict],
) -> dict:
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
    return result


def _recalibrated(sample: LabelSample, fit: dict) -> dict:
    """What this fit would make of Brier score, log loss and ECE."""
    new = replace(sample, probabilities_N=apply_calibration(sample.logits_N, fit))
    y_N, p_N = new.labels_N, new.probabilities_N
    values = {"brier": brier(y_N, p_N), "log_loss": log_loss(y_N, p_N)}
    calibration = assess_calibration(new)
    curve = {part: calibration[part] for part in ("ece", "curve")}
    return metric_intervals(values, new.loss_replicates(), new) | curve | {"fit": fit}
