"""The patient bootstrap, vectorised: draws of patients in, metric values per replicate out.

A replicate draws P patients with replacement, and takes all ECGs of each. It is never built: a
record counts as often as its patient was drawn, so a metric on the resample is a weighted metric
on the original records, which are sorted once. The weights are whole numbers, so counts are exact
and the values are those of scikit-learn on the resample (a test holds this to 1e-12). Pairing is
free: use the same `multiplicity_RP` for two models. A replicate without both classes has no AUROC:
NaN. Cluster bootstrap: Field & Welsh 2007; Obuchowski 1997 for clustered ROC data.
"""

# N records, P patients, R replicates, A positive records, B negative records

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.metrics import FloatArray

CHUNK_ELEMENTS = 4_000_000  # replicates × records held at once: about 100 MB with the intermediates


@dataclass(frozen=True, kw_only=True)
class Resamples:
    patient_N: NDArray[np.intp]
    """Each record's patient as a number 0 … P-1."""
    multiplicity_RP: NDArray[np.uint8]

    @property
    def num_patients(self) -> int:
        return self.multiplicity_RP.shape[1]


def draw_multiplicities(num_patients: int, replicates: int, seed: int) -> NDArray[np.uint8]:
    """How often each patient is in each replicate; rows sum to `num_patients`. A pure function of
    its arguments. uint8 holds it: for a count of 256 the chance is below 1 / 256!."""
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {replicates}; 2000 is usual")
    rng = np.random.default_rng(seed)
    multiplicity_RP = np.empty((replicates, num_patients), dtype=np.uint8)
    for row_P in multiplicity_RP:
        drawn = rng.integers(num_patients, size=num_patients)
        row_P[:] = np.bincount(drawn, minlength=num_patients)
    return multiplicity_RP


def draw_resamples(patients_N: NDArray, replicates: int, seed: int) -> Resamples:
    """Number the patients and draw them; the same for every model that saw these records."""
    names_P, patient_N = np.unique(patients_N, return_inverse=True)
    multiplicity_RP = draw_multiplicities(len(names_P), replicates, seed)
    return Resamples(patient_N=patient_N, multiplicity_RP=multiplicity_RP)


def ranked_replicates(
    labels_N: FloatArray, scores_N: FloatArray, patient_N: NDArray, multiplicity_RP: NDArray
) -> dict[str, FloatArray]:
    """AUROC and AUPRC of every replicate; NaN where a replicate holds one class only."""
    positive_A = _by_falling_score(scores_N, labels_N == 1)
    negative_B = _by_falling_score(scores_N, labels_N == 0)
    # for each positive: the negatives above it, those not below it, and the positives not below it
    rising_B = scores_N[negative_B][::-1]
    above_A = len(rising_B) - np.searchsorted(rising_B, scores_N[positive_A], side="right")
    not_below_A = len(rising_B) - np.searchsorted(rising_B, scores_N[positive_A], side="left")
    rising_A = scores_N[positive_A][::-1]
    rank_A = len(rising_A) - np.searchsorted(rising_A, scores_N[positive_A], side="left")
    auroc, auprc = [], []
    for multiplicity in _chunks(multiplicity_RP, len(labels_N)):
        weight_RA = multiplicity[:, patient_N[positive_A]]
        hits_RA = _counts(weight_RA)
        false_RB = _counts(multiplicity[:, patient_N[negative_B]])
        total_hits_R, total_false_R = hits_RA[:, -1], false_RB[:, -1]
        found_RA, false_RA = hits_RA[:, rank_A], false_RB[:, not_below_A]
        # wins over negatives, counted twice so that ties (half a win) stay whole numbers
        wins_RA = 2 * total_false_R[:, None] - false_RA - false_RB[:, above_A]
        precision_RA = found_RA / np.maximum(found_RA + false_RA, 1)
        one_class_R = (total_hits_R == 0) | (total_false_R == 0)
        denominator_R = np.where(one_class_R, np.nan, total_hits_R)
        auroc.append((weight_RA * wins_RA).sum(axis=1) / (2 * denominator_R * total_false_R))
        auprc.append((weight_RA * precision_RA).sum(axis=1) / denominator_R)
    return {"auroc": np.concatenate(auroc), "auprc": np.concatenate(auprc)}


def regression_replicates(
    labels_N: FloatArray, values_N: FloatArray, patient_N: NDArray, multiplicity_RP: NDArray
) -> dict[str, FloatArray]:
    """MAE, RMSE, R² and Pearson's r of every replicate, from sums per patient."""
    y_N, x_N = labels_N - labels_N.mean(), values_N - values_N.mean()
    error_N = values_N - labels_N
    terms = (np.ones_like(y_N), y_N, x_N, y_N**2, x_N**2, x_N * y_N, np.abs(error_N), error_N**2)
    num_patients = multiplicity_RP.shape[1]
    sums_PT = np.stack([np.bincount(patient_N, t, minlength=num_patients) for t in terms], axis=1)
    chunks = _chunks(multiplicity_RP, num_patients)
    n, y, x, yy, xx, xy, absolute, square = np.concatenate([m @ sums_PT for m in chunks]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        var_y, var_x, cov = yy - y**2 / n, xx - x**2 / n, xy - x * y / n
        var_y[var_y <= 1e-12 * yy] = np.nan  # a replicate of one value, but for rounding
        r2, pearson = 1 - square / var_y, cov / np.sqrt(var_x * var_y)
        values = {"mae": absolute / n, "rmse": np.sqrt(square / n), "r2": r2, "pearson": pearson}
    return {name: np.where(np.isfinite(v), v, np.nan) for name, v in values.items()}


def _by_falling_score(scores_N: FloatArray, keep_N: NDArray[np.bool_]) -> NDArray[np.intp]:
    index = np.flatnonzero(keep_N)
    return index[np.argsort(-scores_N[index], kind="stable")]


def _counts(weight_RM: NDArray) -> NDArray[np.int64]:
    """`counts[:, k]` is the weight of the first k records: a cumulative sum that starts at 0."""
    counts = np.zeros((weight_RM.shape[0], weight_RM.shape[1] + 1), dtype=np.int64)
    np.cumsum(weight_RM, axis=1, out=counts[:, 1:])
    return counts


def _chunks(multiplicity_RP: NDArray, width: int) -> Iterator[NDArray]:
    rows = max(1, CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, len(multiplicity_RP), rows):
        yield multiplicity_RP[start : start + rows]
