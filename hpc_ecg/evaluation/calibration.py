"""Calibration of logits on validation data: p = sigmoid(slope * logit + offset), or a table.

`temperature` fits one factor (Guo et al. 2017), `platt` a factor and an offset (Platt 1999, with
his smoothed targets, so that classes which are apart do not drive the slope to infinity). Both keep
the order of records, hence AUROC, and can be folded into a head. `isotonic` (Zadrozny & Elkan 2002)
is a rising function of the logit, a table that no head can hold: it applies to predictions.
"""

# N records

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from hpc_ecg.evaluation.metrics import FloatArray, Weights, check_scorable, has_label


def fit_calibration(
    labels_N: FloatArray, logits_N: FloatArray, kind: str, name: str = "label", w_N: Weights = None
) -> dict[str, float | int | str]:
    """`slope` and `offset` (0 for temperature), and what they were fitted on. Missing labels (NaN)
    are left out. ValueError: fewer than two classes, or logits that rank the wrong way round."""
    keep_N = has_label(labels_N)
    labels, logits = labels_N[keep_N], logits_N[keep_N].astype(np.float64)
    check_scorable(labels, logits, name)
    weight = 1.0 if w_N is None else w_N[keep_N] / w_N[keep_N].mean()
    positives, negatives = float(labels.sum()), float((1 - labels).sum())
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = float(logits.std()) or 1.0  # the search works on logits of unit spread

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        x = free[0] * logits / spread + (free[1] if kind == "platt" else 0.0)
        value = weight * (np.logaddexp(0, x) - target * x)
        residual = weight * (1 / (1 + np.exp(-np.clip(x, -700, 700))) - target)
        gradient = np.array([(residual * logits / spread).mean(), residual.mean()])
        return float(value.mean()), gradient[: len(free)]

    start = np.array([spread, 0.0] if kind == "platt" else [spread])
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    slope, offset = float(best[0] / spread), float(best[1]) if kind == "platt" else 0.0
    if slope <= 0:
        reason = "these logits rank patients the wrong way round, which no calibration mends"
        if kind == "temperature":
            reason = "one factor cannot make up for another prevalence; try platt"
        raise ValueError(
            f"{name}: {kind} calibration has slope {slope:.3g} on validation: {reason}"
        )
    return {"kind": kind, "slope": slope, "offset": offset, "n": len(labels), "fitted_on": "valid"}


def fit_isotonic(
    labels_N: FloatArray, logits_N: FloatArray, name: str = "label", w_N: Weights = None
) -> dict:
    """The function's corners as lists `logit` and `probability`, to be joined by straight lines.

    Probabilities stay 1 / (n + 2) away from 0 and 1, from which n records cannot tell them. Missing
    labels are left out."""
    keep_N = has_label(labels_N)
    labels, logits = labels_N[keep_N], logits_N[keep_N].astype(np.float64)
    check_scorable(labels, logits, name)
    least = 1 / (len(labels) + 2)
    fit = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fit.fit(logits, labels, None if w_N is None else w_N[keep_N])
    table = {"logit": fit.X_thresholds_.tolist(), "probability": fit.y_thresholds_.tolist()}
    return {"kind": "isotonic", **table, "n": len(labels), "fitted_on": "valid"}


def apply_calibration(logits_N: FloatArray, fit: dict) -> FloatArray:
    """Probabilities from logits, by a fit of any kind."""
    if fit["kind"] == "isotonic":
        return np.interp(logits_N, fit["logit"], fit["probability"])
    return np.asarray(expit(fit["slope"] * logits_N + fit["offset"]))
