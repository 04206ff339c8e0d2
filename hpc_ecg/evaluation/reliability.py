"""How well calibrated probabilities are on a test set: slope and intercept, ECE, the curve.

Slope: logistic recalibration, log-odds of the outcome = a + slope * logit (Cox 1958); below 1 the
predictions are too extreme. Intercept: calibration in the large, log-odds = intercept + logit;
above 0 there are more cases than predicted. Bins hold equally many records, and equal predictions
share one.

Replicates of slope and intercept are one Newton step from the whole sample's fit, which differs
from fitting each replicate by less than its own error (a test holds this).
"""

# N records, B bins, R replicates

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from hpc_ecg.evaluation.intervals import LEVEL, bootstrap_interval, quantile_and_growth
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.metrics import FloatArray, Weights

NUM_BINS = 10


def assess_calibration(sample: LabelSample) -> dict:
    """Slope, intercept and ECE with intervals, and the curve: a point for each bin."""
    bin_N = quantile_bins(sample.probabilities_N)
    member_NB = (bin_N[:, None] == np.arange(bin_N.max() + 1)).astype(np.float64)
    columns = (np.ones(len(sample)), sample.labels_N, sample.probabilities_N)
    values_NV = np.concatenate([member_NB * column[:, None] for column in columns], axis=1)
    count_B, positive_B, predicted_B = np.split(sample.weights_N @ values_NV, 3)
    count_RB, positive_RB, predicted_RB = np.split(sample.sum_replicates(values_NV), 3, axis=1)
    with np.errstate(invalid="ignore"):
        observed_RB = positive_RB / count_RB
    curve = []
    for b, count in enumerate(count_B):
        patients = sample.effective_patients(bin_N == b)
        observed = bootstrap_interval(
            positive_B[b] / count, observed_RB[:, b], "observed", patients
        )
        point = {"predicted": float(predicted_B[b] / count), "observed": observed["value"]}
        num = int((bin_N == b).sum())
        curve.append(point | {"low": observed["low"], "high": observed["high"], "n": num})
    gap_B = (positive_B - predicted_B) / count_B.sum()
    gap_RB = (positive_RB - predicted_RB) / count_RB.sum(axis=1, keepdims=True)
    ratio_R = positive_RB.sum(axis=1) / predicted_RB.sum(axis=1)
    few = sample.patients_in_smaller_class()
    ratio = bootstrap_interval(positive_B.sum() / predicted_B.sum(), ratio_R, "o_e", few)
    more = {"o_e": ratio, "ece": _ece(gap_B, gap_RB, few), "curve": curve}
    return _slope_and_intercept(sample) | more


def quantile_bins(probabilities_N: FloatArray) -> NDArray[np.intp]:
    """Each record's bin, counted from 0, by rising probability; ties leave fewer bins."""
    inner = np.quantile(probabilities_N, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    bin_N = np.searchsorted(inner, probabilities_N)
    return np.unique(bin_N, return_inverse=True)[1]


def fit_slope(y_N: FloatArray, logits_N: FloatArray, w_N: Weights = None) -> tuple[float, float]:
    """Offset and slope of logistic recalibration."""
    scale = float(logits_N.std())
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    fit.fit(logits_N[:, None] / scale, y_N, w_N)
    return float(fit.intercept_[0]), float(fit.coef_[0, 0] / scale)


def fit_intercept(labels_N: FloatArray, logits_N: FloatArray, w_N: Weights = None) -> float:
    """The shift of all logits that predicts as many cases as there are."""
    wide = float(np.abs(logits_N).max() + np.log(len(labels_N)) + 1)
    weight = 1.0 if w_N is None else w_N
    excess = lambda a: (weight * (expit(logits_N + a) - labels_N)).sum()  # noqa: E731
    return float(brentq(excess, -wide, wide))


def recalibration(sample: LabelSample) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """Slope (not where the classes are apart) and intercept, and their replicates [R]."""
    labels_N, x_N = sample.labels_N, sample.logits_N
    intercept = fit_intercept(labels_N, x_N, sample.weights_N)
    shifted_N = expit(x_N + intercept)
    columns = [labels_N - shifted_N, shifted_N * (1 - shifted_N)]
    positive, negative = x_N[labels_N == 1], x_N[labels_N == 0]
    has_slope = positive.min() < negative.max() and positive.max() > negative.min()
    if has_slope:
        offset, slope_value = fit_slope(labels_N, x_N, sample.weights_N)
        fitted_N = expit(offset + slope_value * x_N)
        residual_N, weight_N = labels_N - fitted_N, fitted_N * (1 - fitted_N)
        columns += [residual_N, residual_N * x_N, weight_N, weight_N * x_N, weight_N * x_N**2]
    sums_RV = sample.sum_replicates(np.stack(columns, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = {"intercept": intercept + sums_RV[:, 0] / sums_RV[:, 1]}
        if not has_slope:
            return {"intercept": intercept}, replicates
        g0, g1, h00, h01, h11 = sums_RV[:, 2:].T
        slope_R = slope_value + (h00 * g1 - h01 * g0) / (h00 * h11 - h01**2)
    return {"slope": slope_value, "intercept": intercept}, {"slope": slope_R, **replicates}


def _slope_and_intercept(sample: LabelSample) -> dict[str, dict]:
    few, (value, value_R) = sample.patients_in_smaller_class(), recalibration(sample)
    slope: dict = {"value": None, "low": None, "high": None, "reason": "the classes are apart"}
    return {"slope": slope} | {n: bootstrap_interval(value[n], value_R[n], n, few) for n in value}


def _ece(gap_B: FloatArray, gap_RB: FloatArray, num_patients: int) -> dict:
    """ECE with limits for the patients of the smaller class. Chance makes an ECE larger than it is,
    but by no more than what it adds to all bins: the lower limit is the 95 % quantile of that sum
    below the value. The upper one is a t limit."""
    quantile, growth = quantile_and_growth(num_patients)
    value, value_R = float(np.abs(gap_B).sum()), np.abs(gap_RB).sum(axis=1)
    most = float(np.quantile(np.abs(gap_RB - gap_B).sum(axis=1), LEVEL))
    low = max(0.0, value - growth * most * quantile / quantile_and_growth(None)[0])
    high = min(value + quantile * growth * float(np.std(value_R, ddof=1)), 1.0)
    about = {"replicates": len(value_R), "method": "bounded by chance in all bins"}
    return {"value": value, "low": low, "high": high} | about
