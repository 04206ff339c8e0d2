"""Calibration of logits on validation data: p = sigmoid(slope * logit + offset), or a table.

`temperature` fits one factor (Guo et al. 2017), `platt` a factor and an offset (Platt 1999), both
with a ridge prior: the slope on logits of unit spread has variance 1, so that few events, or
classes that are apart, do not drive it to infinity. Both keep the order of records, hence AUROC,
and can be folded into a head. `isotonic` (Zadrozny & Elkan 2002) is a rising function of the logit,
a table that no head can hold: it applies to predictions.

Excess log loss of `platt` in a large population (150 cohorts each, AUROC 0.8, 10 % positive, 1 to 5
ECGs per patient; in thousandths): 8.7, 5.8, 2.9 with 10, 15, 30 positive patients; by maximum
likelihood 9.6, 6.2, 3.0.
"""

# N records

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from hpc_ecg.evaluation.events import check_enough_events, count_events, warn_of_few_events
from hpc_ecg.evaluation.metrics import FloatArray, Weights, check_scorable, has_label

KINDS = ("isotonic", "temperature", "platt")


def fit_calibration(
    labels_N: FloatArray,
    logits_N: FloatArray,
    kind: str,
    name: str = "label",
    patient_N: NDArray | None = None,
    w_N: Weights = None,
) -> dict:
    """Fit one of `KINDS`, with the numbers behind it; without `patient_N`, a record is a patient.
    Missing labels (NaN) are left out.

    `slope` and `offset` (0 for temperature), or for isotonic the function's corners as lists
    `logit` and `probability`, to be joined by straight lines. ValueError: fewer than `MIN_EVENTS`
    patients of a class, or logits that rank the wrong way round.
    """
    keep_N = has_label(labels_N)
    labels, logits = labels_N[keep_N], logits_N[keep_N].astype(np.float64)
    check_scorable(labels, logits, name)
    counts = count_events(labels, None if patient_N is None else patient_N[keep_N])
    check_enough_events(counts, name, f"{kind} calibration")
    weight = None if w_N is None else w_N[keep_N] / w_N[keep_N].mean()
    fit: Mapping[str, object]
    if kind == "isotonic":
        fit = _isotonic(labels, logits, weight)
    else:
        fit = _line(labels, logits, kind, name, weight)
    few = warn_of_few_events(counts, f"{kind} calibration")
    return {"kind": kind, **fit} | counts | {"fitted_on": "valid"} | few


def _line(
    labels: FloatArray, logits: FloatArray, kind: str, name: str, weight: Weights
) -> dict[str, float]:
    spread = float(logits.std())
    model = LogisticRegression(fit_intercept=kind == "platt", solver="newton-cholesky", tol=1e-10)
    model.fit(logits[:, None] / spread, labels, weight)
    slope, offset = float(model.coef_[0, 0]) / spread, float(np.ravel(model.intercept_)[0])
    if slope <= 0:
        reason = "these logits rank patients the wrong way round, which no calibration mends"
        if kind == "temperature":
            reason = "one factor cannot make up for another prevalence; try platt"
        raise ValueError(
            f"{name}: {kind} calibration has slope {slope:.3g} on validation: {reason}"
        )
    return {"slope": slope, "offset": offset}


def _isotonic(labels: FloatArray, logits: FloatArray, weight: Weights) -> dict[str, list[float]]:
    """Probabilities stay 1 / (n + 2) away from 0 and 1, from which n records cannot tell them."""
    least = 1 / (len(labels) + 2)
    fit = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fit.fit(logits, labels, weight)
    return {"logit": fit.X_thresholds_.tolist(), "probability": fit.y_thresholds_.tolist()}


def apply_calibration(logits_N: FloatArray, fit: dict) -> FloatArray:
    """Probabilities from logits, by a fit of any kind."""
    if fit["kind"] == "isotonic":
        return np.interp(logits_N, fit["logit"], fit["probability"])
    return np.asarray(expit(fit["slope"] * logits_N + fit["offset"]))
