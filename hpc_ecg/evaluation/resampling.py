"""The patient bootstrap, vectorised: draws of patients in, metric values per replicate out.

A replicate draws P patients with replacement, and takes all ECGs of each. It is never built: a
record counts as often as its patient was drawn, so a metric on the resample is a weighted metric
on the original records, which are sorted once. The weights are whole numbers, so counts are exact
and the values are those of scikit-learn on the resample (a test holds this to 1e-12). The same
`multiplicity_RP` for two models pairs them. A replicate without both classes has no AUROC: NaN.
Cluster bootstrap: Field & Welsh 2007; Obuchowski 1997 for clustered ROC data.
"""

# N records, P patients, R replicates, B replicates of one block, V columns, K groups of tied scores

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.metrics import FloatArray, Weights, is_weighted

BLOCK = 32  # replicates that are ranked together: one record's counts fill a vector register
CHUNK_ELEMENTS = 4_000_000  # replicates × patients held at once as float64: 32 MB


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
    """Number the patients and draw them: the same draws for every model of these records."""
    names_P, patient_N = np.unique(patients_N, return_inverse=True)
    multiplicity_RP = draw_multiplicities(len(names_P), replicates, seed)
    return Resamples(patient_N=patient_N, multiplicity_RP=multiplicity_RP)


def ranking_replicates(
    labels_N: FloatArray,
    scores_N: FloatArray,
    patient_N: NDArray,
    multiplicity_RP: NDArray,
    weights_N: Weights = None,
) -> dict[str, FloatArray]:
    """AUROC and AUPRC of every replicate; NaN where a replicate holds one class only."""
    order_N = np.lexsort((labels_N == 0, -scores_N))
    sorted_patient_N = patient_N[order_N].astype(np.int64)
    weight_N1 = None
    if weights_N is not None and is_weighted(weights_N):
        weight_N1 = weights_N[order_N, None]
    group_K3 = _tied_groups(scores_N[order_N], labels_N[order_N] == 1)
    value_2R = np.empty((2, len(multiplicity_RP)))
    for start in range(0, len(multiplicity_RP), BLOCK):
        block = slice(start, start + BLOCK)
        draws_PB = np.ascontiguousarray(multiplicity_RP[block].T)
        columns, zeros_B = (sorted_patient_N, group_K3, draws_PB), np.zeros(draws_PB.shape[1])
        if weight_N1 is not None:  # each record is drawn on its own
            draws_NB = draws_PB[sorted_patient_N] * weight_N1
            columns = np.arange(len(order_N)), group_K3, draws_NB
        kind = np.int64 if weight_N1 is None else np.float64
        value_2R[:, block] = _compiled(str(columns[2].dtype))(*columns, zeros_B.astype(kind))
    return {"auroc": value_2R[0], "auprc": value_2R[1]}


def sum_replicates(
    values_NV: FloatArray, patient_N: NDArray, multiplicity_RP: NDArray
) -> FloatArray:
    """[R, V]: the sum of each column over the records of every replicate. Means, shares, Brier
    scores and net benefits are ratios of such sums."""
    num_patients = multiplicity_RP.shape[1]
    columns = [np.bincount(patient_N, column_N, num_patients) for column_N in values_NV.T]
    sums_PV = np.stack(columns, axis=1)
    rows = max(1, CHUNK_ELEMENTS // max(num_patients, 1))
    starts = range(0, len(multiplicity_RP), rows)
    return np.concatenate([multiplicity_RP[start : start + rows] @ sums_PV for start in starts])


def regression_replicates(
    labels_N: FloatArray, values_N: FloatArray, patient_N: NDArray, multiplicity_RP: NDArray
) -> dict[str, FloatArray]:
    """MAE, RMSE, R² and Pearson's r of every replicate, from sums per patient."""
    y_N, x_N = labels_N - labels_N.mean(), values_N - values_N.mean()
    error_N = values_N - labels_N
    terms = (np.ones_like(y_N), y_N, x_N, y_N**2, x_N**2, x_N * y_N, np.abs(error_N), error_N**2)
    sums_RV = sum_replicates(np.stack(terms, axis=1), patient_N, multiplicity_RP)
    n, y, x, yy, xx, xy, absolute, square = sums_RV.T
    with np.errstate(invalid="ignore", divide="ignore"):
        var_y, var_x, cov = yy - y**2 / n, xx - x**2 / n, xy - x * y / n
        var_y[var_y <= 1e-12 * yy] = np.nan  # a replicate of one value, but for rounding
        r2, pearson = 1 - square / var_y, cov / np.sqrt(var_x * var_y)
        values = {"mae": absolute / n, "rmse": np.sqrt(square / n), "r2": r2, "pearson": pearson}
    return {name: np.where(np.isfinite(v), v, np.nan) for name, v in values.items()}


def _tied_groups(scores_N: FloatArray, positive_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[K, 3]: start, end of the positives and end of each group of equal scores that has any, in
    records sorted by falling score, positives first. Records between are negatives; the last row
    is the end of all."""
    start_K = np.flatnonzero(np.diff(scores_N, prepend=np.nan) != 0)
    counts_K = np.add.reduceat(positive_N.astype(np.int64), start_K)
    end_K = np.append(start_K[1:], len(scores_N))
    group_K3 = np.stack([start_K, start_K + counts_K, end_K], axis=1)[counts_K > 0]
    return np.concatenate([group_K3, np.full((1, 3), len(scores_N))])


@cache
def _compiled(draws: str) -> Callable[..., tuple[FloatArray, FloatArray]]:
    """`_rank_block` compiled; without numba's cache where the disk is read-only or full."""
    import numba

    draw, total = getattr(numba, draws), numba.int64 if draws == "uint8" else numba.float64
    types = (numba.int64[::1], numba.int64[:, ::1], draw[:, ::1], total[::1])
    try:
        return numba.njit(types, nogil=True, cache=True)(_rank_block)
    except (RuntimeError, OSError):
        return numba.njit(types, nogil=True)(_rank_block)


def _rank_block(
    patient_N: NDArray, group_K3: NDArray, draws_PB: NDArray, zeros_B: NDArray
) -> tuple[FloatArray, FloatArray]:
    """AUROC and AUPRC of B replicates in one walk down the scores. B runs innermost, so that one
    record's counts lie side by side and the additions become vector instructions."""
    num = draws_PB.shape[1]
    hits_B, false_B = zeros_B.copy(), zeros_B.copy()
    positives_B, negatives_B = zeros_B.copy(), zeros_B.copy()
    lost_B, precision_B = zeros_B.copy(), np.zeros(num)
    start = 0
    for k in range(len(group_K3)):
        first, middle, end = group_K3[k]
        positives_B[:] = 0
        negatives_B[:] = 0
        for n in range(start, first):
            row_B = draws_PB[patient_N[n]]
            for b in range(num):
                false_B[b] += row_B[b]
        for n in range(first, middle):
            row_B = draws_PB[patient_N[n]]
            for b in range(num):
                positives_B[b] += row_B[b]
        for n in range(middle, end):
            row_B = draws_PB[patient_N[n]]
            for b in range(num):
                negatives_B[b] += row_B[b]
        for b in range(num):
            # twice the pairs that positives lose: whole numbers, as a tie loses half a pair
            lost_B[b] += positives_B[b] * (2 * false_B[b] + negatives_B[b])
            hits_B[b] += positives_B[b]
            false_B[b] += negatives_B[b]
            precision_B[b] += positives_B[b] * (hits_B[b] / max(hits_B[b] + false_B[b], 1e-300))
        start = end
    pairs_B = 2.0 * hits_B * false_B
    pairs_B[pairs_B == 0] = np.nan
    return (pairs_B - lost_B) / pairs_B, precision_B / (pairs_B / pairs_B * hits_B)
