"""Operating points: a threshold fitted on validation, frozen, and applied to the test set.

In: labels and probabilities. Out: small dicts for JSON (`best/operating_point.json` holds one per
label, by the label's name). A point says where it was fitted, and `apply_operating_point` refuses
one that was not fitted on validation: a threshold chosen on the test set flatters.
"""

# N records

import numpy as np
from sklearn.metrics import roc_curve

from hpc_ecg.evaluation.metrics import FloatArray, check_probabilities, check_scorable, present


def fit_operating_point(
    labels_N: FloatArray, probabilities_N: FloatArray, name: str = "label"
) -> dict:
    """The threshold with the highest sensitivity + specificity (Youden's J) on validation data;
    a record is positive at `probability >= threshold`. Missing labels (NaN) are left out."""
    keep_N = present(labels_N)
    labels, probabilities = labels_N[keep_N], probabilities_N[keep_N].astype(np.float64)
    check_scorable(labels, probabilities, name)
    check_probabilities(probabilities, name)
    false_rate, true_rate, thresholds = roc_curve(labels, probabilities)
    # the first point is "nobody is positive", at an infinite threshold
    best = 1 + int(np.argmax((true_rate - false_rate)[1:]))
    return {
        "threshold": float(thresholds[best]),
        "sensitivity": float(true_rate[best]),
        "specificity": float(1 - false_rate[best]),
        "method": "youden",
        "fitted_on": "valid",
        "n": len(labels),
        "n_positive": int(labels.sum()),
    }


def apply_operating_point(
    labels_N: FloatArray, probabilities_N: FloatArray, point: dict, name: str = "label"
) -> dict:
    """Sensitivity, specificity, PPV and NPV at a frozen threshold, with the counts behind them; a
    share of nobody is None. Raises `ValueError` for a point that was not fitted on validation."""
    check_operating_point(point, name)
    keep_N = present(labels_N)
    positive = labels_N[keep_N] == 1
    flagged = probabilities_N[keep_N].astype(np.float64) >= point["threshold"]
    tp, fp = int(np.sum(positive & flagged)), int(np.sum(~positive & flagged))
    fn, tn = int(np.sum(positive & ~flagged)), int(np.sum(~positive & ~flagged))
    return {
        "threshold": point["threshold"],
        "fitted_on": point["fitted_on"],
        "method": point.get("method"),
        "sensitivity": _share(tp, tp + fn),
        "specificity": _share(tn, tn + fp),
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
        "counts": {"tp": tp, "fp": fp, "fn": fn, "tn": tn},
    }


def check_operating_point(point: dict, name: str) -> None:
    if "threshold" not in point:
        raise ValueError(
            f"{name}: operating point has no threshold, got {sorted(point)}; "
            "fit it with fit_operating_point"
        )
    if point.get("fitted_on") != "valid":
        raise ValueError(
            f"{name}: operating point was fitted on {point.get('fitted_on')!r}; "
            "only 'valid' is allowed: a threshold chosen on the test set flatters"
        )


def _share(count: int, total: int) -> float | None:
    return count / total if total else None
