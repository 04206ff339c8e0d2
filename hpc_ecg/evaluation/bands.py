"""ROC and precision-recall curves, averaged over seeds, with pointwise 95 % bands.

The bands show the chance of drawing patients, not that of training. A replicate is a curve of the
same records, each weighted by how often its patient was drawn. All curves share one grid, so that
they can be averaged and a figure stays small however many records there are.
"""

# N records, D distinct scores, G grid points, R replicates, S seeds, P patients

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.intervals import TAILS
from hpc_ecg.evaluation.metrics import FloatArray, Weights, check_scorable, has_label

GRID_POINTS = 201
Curve = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
"""Numbers of true and false positives above each distinct score, and the grid -> the curve."""


@dataclass(frozen=True, kw_only=True)
class Band:
    x_G: FloatArray
    seed_SG: FloatArray
    """The curve of each seed."""
    low_G: FloatArray
    high_G: FloatArray


def _roc_curve(true_D: FloatArray, false_D: FloatArray, grid_G: FloatArray) -> FloatArray:
    curve_G = np.interp(grid_G, np.r_[0, false_D / false_D[-1]], np.r_[0, true_D / true_D[-1]])
    curve_G[0] = 0.0
    return curve_G


def _precision_recall_curve(
    true_D: FloatArray, false_D: FloatArray, grid_G: FloatArray
) -> FloatArray:
    first_G = np.searchsorted(true_D / true_D[-1], grid_G - 1e-12, side="left")
    return np.asarray(true_D[first_G] / np.maximum((true_D + false_D)[first_G], 1e-300))


def _band(
    curve: Curve,
    grid_G: FloatArray,
    labels_N: FloatArray,
    scores_SN: Sequence[FloatArray],
    patient_N: NDArray,
    draws_RP: NDArray,
    weights_N: Weights = None,
) -> Band:
    keep_N = has_label(labels_N)
    labels, patient = labels_N[keep_N], patient_N[keep_N]
    seed_SG, sum_RG = [], np.zeros((len(draws_RP), len(grid_G)))
    for scores_N in scores_SN:
        scores = scores_N[keep_N]
        check_scorable(labels, scores, "curve")
        order = np.argsort(-scores, kind="stable")
        # A threshold cannot part equal scores: count at the last of them.
        end_D = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
        is_positive, sorted_patient = labels[order] == 1, patient[order]
        once = np.ones(len(labels)) if weights_N is None else weights_N[keep_N][order]
        seed_SG.append(_weighted_curve(once, is_positive, end_D, curve, grid_G))
        for row, draw_P in enumerate(draws_RP):
            weight = draw_P[sorted_patient] * once
            sum_RG[row] += _weighted_curve(weight, is_positive, end_D, curve, grid_G)
    mean_RG = sum_RG[np.isfinite(sum_RG).all(axis=1)] / len(scores_SN)
    low_G, high_G = np.quantile(mean_RG, TAILS, axis=0)
    return Band(x_G=grid_G, seed_SG=np.stack(seed_SG), low_G=low_G, high_G=high_G)


def _weighted_curve(
    weight_N: NDArray, is_positive_N: NDArray, end_D: NDArray, curve: Curve, grid_G: FloatArray
) -> FloatArray:
    """The curve of records in falling order of scores; NaN where the weights leave one class."""
    true_D = np.cumsum(weight_N * is_positive_N)[end_D].astype(float)
    false_D = np.cumsum(weight_N)[end_D] - true_D
    if true_D[-1] == 0 or false_D[-1] == 0:
        return np.full(len(grid_G), np.nan)
    return curve(true_D, false_D, grid_G)


roc_band = partial(_band, _roc_curve, np.linspace(0, 1, GRID_POINTS))
"""Sensitivity by 1 - specificity; straight lines between thresholds, as the AUROC counts."""
precision_recall_band = partial(_band, _precision_recall_curve, np.linspace(0, 1, GRID_POINTS)[1:])
"""Precision by recall; steps between thresholds, as average precision counts (Davis & Goadrich
2006: straight lines would be too good)."""
