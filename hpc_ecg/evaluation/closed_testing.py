"""Which update of a model the patients of a new hospital support (Vergouwe et al. 2017).

Closed testing asks of each of `METHODS` in turn, at 5 %, whether it suffices against those with
more freedom, and takes the first that is not rejected; recalibration is intercept and slope.

Simpler methods: likelihood-ratio tests on one ECG of each patient, drawn at random. A new head: it
must predict better in patients that it was not fitted on (five folds; one-sided t test of the gain
in log likelihood by patient, p times the number of penalties tried). Fine-tuning must beat both in
its validation patients, of whom 10 have and 10 lack the label. Against several methods, p is the
smallest times their number (Bonferroni).

A right model (tools/coverage_tables.py update: 100 to 1,000 patients with 1 to 5 ECGs, 10 to 100 of
them positive, AUROC 0.75 and 0.9; 100 cohorts in each of 8 cells) is updated in 3.0 %, at most 5 in
a cell; by the same tests on all ECGs in 25 to 39 %.
Thresholds of a new head rest on the patients that it was fitted on.
"""

# N records, P patients, D features

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from hpc_ecg.evaluation.calibration import fit_calibration
from hpc_ecg.evaluation.comparisons import ALPHA
from hpc_ecg.evaluation.events import MIN_EVENTS, count_events, scarce
from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.evaluation.reliability import fit_intercept, fit_slope

METHODS = ("none", "intercept", "recalibration", "head", "finetune")
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Of changes of the head's weights: scikit-learn's C, for features of unit variance."""
SOLVER, FREE = "newton-cholesky", 100.0
"""So much larger than a feature, the old logit is hardly penalized."""


@dataclass(frozen=True)
class UpdateSample:
    """The new hospital's records with a label, the old model's logits and its head's input."""

    labels_N: FloatArray
    logits_N: FloatArray
    patient_N: NDArray
    weights_N: FloatArray
    features_ND: FloatArray
    finetuned_N: FloatArray
    """Logits after fine-tuning, for patients that it did not train on; NaN for the others."""


def choose_update(sample: UpdateSample, up_to: str, name: str) -> tuple[dict, FloatArray | None]:
    """The `method` that suffices, the `p_values`, and the update `made` (the next simpler one for
    fine-tuning, which is a run of its own): logit = offset + slope * old logit + features @ the
    second value [D]. ValueError: the old logits rank these patients the wrong way round."""
    methods, y_N, x_N = METHODS[: METHODS.index(up_to) + 1], sample.labels_N, sample.logits_N
    z_ND, w_N = sample.features_ND, sample.weights_N / sample.weights_N.mean()
    tests = _likelihood_ratios(sample, methods[:3])
    scale_D = 1 / np.append(x_N.std() / FREE, np.where(np.ptp(z_ND, axis=0), z_ND.std(axis=0), 1))
    data_ND, penalty = np.column_stack([x_N, z_ND - z_ND.mean(axis=0)]) * scale_D, PENALTIES[0]
    if "head" in methods:
        before_N = _cross_fit(sample, data_ND[:, :1], np.inf)
        heads = {c: _cross_fit(sample, data_ND, c) for c in PENALTIES}
        gains = {c: _gain(sample, head_N, before_N) for c, head_N in heads.items()}
        penalty = max(gains, key=lambda c: float(gains[c].sum()))
        p = _p_of(gains[penalty]) * len(PENALTIES)
        tests |= {(method, "head"): p for method in methods[:3]}
    if "finetune" in methods:
        old = before_N, heads[penalty]
        known_N = np.isfinite(sample.finetuned_N)
        few = scarce(count_events(y_N[known_N], sample.patient_N[known_N]), MIN_EVENTS)
        p = 1.0 if few else max(_p_of(_gain(sample, sample.finetuned_N, o)) for o in old)
        tests |= {(method, "finetune"): p for method in methods[:4]}
    method, p_values = _first_that_suffices(tests, methods)
    made, _ = _first_that_suffices(tests, methods[:4])
    slope, offset, change_D = 1.0, 0.0, None
    if made == "intercept":
        offset = fit_intercept(y_N, x_N, w_N)
    elif made == "recalibration":
        fit = fit_calibration(y_N, x_N, "platt", name, sample.patient_N, w_N)
        slope, offset = fit["slope"], fit["offset"]
    elif made == "head":
        model = LogisticRegression(C=penalty, solver=SOLVER).fit(data_ND, y_N, w_N)
        slope, change_D = float(model.coef_[0, 0] * scale_D[0]), model.coef_[0, 1:] * scale_D[1:]
        offset = float(model.intercept_[0] - change_D @ z_ND.mean(axis=0))
    about = {"method": method, "made": made, "p_values": p_values}
    return about | {"slope": slope, "offset": offset}, change_D


def _first_that_suffices(
    tests: dict[tuple[str, str], float], methods: tuple[str, ...]
) -> tuple[str, dict[str, float]]:
    p = {m: [tests[m, other] for other in methods if (m, other) in tests] for m in methods}
    p_values = {
        m: min([1.0, *(len(values) * value for value in values)]) for m, values in p.items()
    }
    return next(m for m in methods if p_values[m] >= ALPHA), p_values


def _likelihood_ratios(
    sample: UpdateSample, methods: tuple[str, ...]
) -> dict[tuple[str, str], float]:
    """p of each method against the last. Weights against censoring are scaled to the effective
    number of patients (Kish 1965)."""
    order_N = np.random.default_rng(0).permutation(len(sample.labels_N))
    rows_P = order_N[np.unique(sample.patient_N[order_N], return_index=True)[1]]
    y_P, x_P, w_P = (v[rows_P] for v in (sample.labels_N, sample.logits_N, sample.weights_N))
    w_P = w_P * w_P.sum() / (w_P**2).sum()
    offset, slope = fit_slope(y_P, x_P, w_P)
    fits = (x_P, x_P + fit_intercept(y_P, x_P, w_P), offset + slope * x_P)
    value = [float(w_P @ _log_likelihood(y_P, fit_P)) for fit_P in fits[: len(methods)]]
    p = stats.chi2.sf(2 * (value[-1] - np.array(value[:-1])), np.arange(len(value) - 1, 0, -1))
    return {(method, methods[-1]): float(p[k]) for k, method in enumerate(methods[:-1])}


def _cross_fit(sample: UpdateSample, data_ND: FloatArray, penalty: float) -> FloatArray:
    """Each patient's logits by a fit to the patients of other folds."""
    _, patient_N = np.unique(sample.patient_N, return_inverse=True)
    fold_N = (np.random.default_rng(0).permutation(patient_N.max() + 1) % 5)[patient_N]
    about = {"cv": PredefinedSplit(fold_N), "method": "decision_function"}
    weights = {"sample_weight": sample.weights_N / sample.weights_N.mean()}
    model = LogisticRegression(C=penalty, solver=SOLVER)
    return np.asarray(cross_val_predict(model, data_ND, sample.labels_N, params=weights, **about))


def _log_likelihood(labels_N: FloatArray, logits_N: FloatArray) -> FloatArray:
    return np.asarray(labels_N * logits_N - np.logaddexp(0, logits_N))


def _gain(sample: UpdateSample, new_N: FloatArray, old_N: FloatArray) -> pd.Series:
    """By patient; those without a new logit are left out."""
    rows = np.isfinite(new_N)
    y_n, new_n, old_n = sample.labels_N[rows], new_N[rows], old_N[rows]
    gain_n = sample.weights_N[rows] * (_log_likelihood(y_n, new_n) - _log_likelihood(y_n, old_n))
    return pd.Series(gain_n).groupby(sample.patient_N[rows]).sum()


def _p_of(gain_P: pd.Series) -> float:
    p = stats.ttest_1samp(gain_P, 0.0, alternative="greater").pvalue
    return float(np.nan_to_num(p, nan=1.0))  # NaN: the same gain for all
