"""Operating points: thresholds fitted on validation, frozen, and applied to the test set.

In: labels and probabilities. Out: small dicts for JSON (`best/operating_point.json` holds those of
each label, by the method that fitted them). A point says where it was fitted, and one that was not
fitted on validation is refused: a threshold chosen on the test set flatters.
"""

# N records, R replicates; 4 columns of counts: true and false positives, false and true negatives

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hpc_ecg.evaluation.events import count_events, rate_in_new_patients, warn_of_few_events
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.metrics import FloatArray, check_probabilities, check_scorable, has_label

YOUDEN = "youden"
TARGETS = (("sensitivity", 0.9), ("specificity", 0.9))
COUNTS = ("tp", "fp", "fn", "tn")


def fit_thresholds(
    labels_N: FloatArray,
    probabilities_N: FloatArray,
    name: str = "label",
    targets: tuple[tuple[str, float], ...] = TARGETS,
    patient_N: NDArray | None = None,
    w_N: FloatArray | None = None,
) -> dict[str, dict]:
    """Operating points by method, on validation data; a record is positive at `probability >=
    threshold`.

    `youden` has the highest sensitivity + specificity (Youden's J); `sensitivity_90` the highest
    specificity of those with sensitivity >= 0.90, `specificity_90` the other way round (left out
    where only a threshold above all records would reach it). Missing labels (NaN) are left out.

    `in_new_patients` is what such a threshold promises: the 95 % range of its true sensitivity and
    specificity, given how many patients it was fitted on (without `patient_N`, each record is one).
    With fewer than `FEW_EVENTS` patients of an outcome there is a `warning`.
    """
    keep_N = has_label(labels_N)
    labels, probabilities = labels_N[keep_N], probabilities_N[keep_N].astype(np.float64)
    check_scorable(labels, probabilities, name)
    check_probabilities(probabilities, name)
    weight = None if w_N is None else w_N[keep_N]
    curve = roc_curve(labels, probabilities, sample_weight=weight, drop_intermediate=False)
    # the first point flags no record, at an infinite threshold
    false_rate, sensitivity, thresholds = (values[1:] for values in curve)
    specificity = 1 - false_rate
    chosen = {YOUDEN: int(np.argmax(sensitivity - false_rate))}
    for kind, level in targets:
        if kind == "sensitivity":
            reached = np.flatnonzero(sensitivity >= level - 1e-12)[:1]
        else:
            reached = np.flatnonzero(specificity >= level - 1e-12)[-1:]
        chosen |= {f"{kind}_{100 * level:g}": int(best) for best in reached}
    counts = count_events(labels, None if patient_N is None else patient_N[keep_N])
    positive, negative = counts["n_positive_patients"], counts["n_negative_patients"]
    few = warn_of_few_events(counts, "the threshold")
    return {
        method: {
            "threshold": float(thresholds[best]),
            "sensitivity": float(sensitivity[best]),
            "specificity": float(specificity[best]),
            "method": method,
            "fitted_on": "valid",
            "in_new_patients": {
                "sensitivity": rate_in_new_patients(sensitivity[best], positive),
                "specificity": rate_in_new_patients(specificity[best], negative),
            },
            **counts,
            **few,
        }
        for method, best in chosen.items()
    }


def points_by_method(points: dict | None, name: str, labels: list[str]) -> dict[str, dict]:
    """A label's points by method. Also accepted: one point per label, as older runs wrote it, and a
    bare point where there is one label. ValueError: a point that was not fitted on validation."""
    if points is None:
        return {}
    by_method = points if "threshold" in points and len(labels) == 1 else points.get(name, {})
    if not isinstance(by_method, dict):
        raise ValueError(f"{name}: operating_point.json cannot hold {str(by_method)[:40]!r}")
    if "threshold" in by_method:
        by_method = {by_method.get("method", YOUDEN): by_method}
    for point in by_method.values():
        _check_operating_point(point, name)
    return by_method


def confusion_counts(sample: LabelSample, threshold: float) -> tuple[FloatArray, FloatArray]:
    """The four (weighted) counts at a threshold, and those in every replicate [R, 4]."""
    positive_N, flagged_N = sample.labels_N == 1, sample.probabilities_N >= threshold
    flagged = positive_N & flagged_N, ~positive_N & flagged_N
    passed = positive_N & ~flagged_N, ~positive_N & ~flagged_N
    cell_N4 = np.stack([*flagged, *passed], axis=1).astype(np.float64)
    return sample.weights_N @ cell_N4, sample.sum_replicates(cell_N4)


def rates(counts_X4: FloatArray) -> dict[str, FloatArray]:
    """Sensitivity, specificity, PPV, NPV and F1 from counts in the last axis; NaN where the
    denominator is 0."""
    tp, fp, fn, tn = np.moveaxis(counts_X4, -1, 0)
    with np.errstate(invalid="ignore"):
        return {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def patients_behind(sample: LabelSample, threshold: float) -> dict[str, float]:
    """The effective number of patients in the denominator of each rate."""
    positive_N, flagged_N = sample.labels_N == 1, sample.probabilities_N >= threshold
    denominators = {"sensitivity": positive_N, "specificity": ~positive_N, "ppv": flagged_N}
    denominators |= {"npv": ~flagged_N, "f1": positive_N | flagged_N}
    return {rate: sample.effective_patients(n) for rate, n in denominators.items()}


def rate_intervals(
    values: dict[str, FloatArray],
    values_R: dict[str, FloatArray],
    num_patients: dict[str, float] | None = None,
) -> dict[str, dict]:
    """Each rate with its interval, and the number needed to screen (`nns`): how many flagged
    records hold one true positive, 1 / PPV."""
    result = {
        rate: bootstrap_interval(float(value), values_R[rate], rate, (num_patients or {}).get(rate))
        for rate, value in values.items()
    }
    ppv = result["ppv"]
    inverse = {"value": ppv["value"], "low": ppv["high"], "high": ppv["low"]}
    return result | {"nns": {end: 1 / rate if rate else None for end, rate in inverse.items()}}


def apply_operating_point(sample: LabelSample, point: dict) -> dict:
    """Rates at a frozen threshold (from `points_by_method`), with intervals, and the counts behind
    them."""
    counts_4, counts_R4 = confusion_counts(sample, point["threshold"])
    num_patients = patients_behind(sample, point["threshold"])
    more = ("n_positive", "n_positive_patients", "in_new_patients", "warning")
    return (
        {key: point.get(key) for key in ("threshold", "fitted_on", "method")}
        | {f"validation_{key}": point[key] for key in more if key in point}
        | rate_intervals(rates(counts_4), rates(counts_R4), num_patients)
        | {"counts": dict(zip(COUNTS, map(round, counts_4.tolist()), strict=True))}
    )


def _check_operating_point(point: dict, name: str) -> None:
    threshold = point.get("threshold") if isinstance(point, dict) else None
    is_number = isinstance(threshold, int | float) and threshold is not True
    if not is_number or not 0 <= float(threshold or 0) <= 1:
        raise ValueError(
            f"{name}: operating point has no threshold, got {str(point)[:60]}; is "
            "operating_point.json damaged? fit_thresholds fits one"
        )
    if point.get("fitted_on") != "valid":
        raise ValueError(
            f"{name}: operating point was fitted on {point.get('fitted_on')!r}; "
            "only 'valid' is allowed: a threshold chosen on the test set flatters"
        )
