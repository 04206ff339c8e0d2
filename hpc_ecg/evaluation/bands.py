"""ROC and precision-recall curves with bands: the mean over seeds, and what it does when patients
are drawn again. Pointwise 95 %; the chance of training is not in them.

A replicate is a curve of the same records, each counted as often as its patient was drawn.
"""

# N records, D distinct scores, G grid points, R replicates, S seeds, P patients

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.curves import GRID_POINTS
from hpc_ecg.evaluation.metrics import FloatArray, check_scorable, has_label

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Band:
    """`seed_SG` are the curves of the single seeds on the grid."""

    x_G: FloatArray
    seed_SG: FloatArray
    low_G: FloatArray
    high_G: FloatArray


def roc_band(
    labels_N: FloatArray, scores_SN: Sequence[FloatArray], patient_N: NDArray, draws_RP: NDArray
) -> Band:
    """Sensitivity by 1 - specificity; straight lines between thresholds, as the AUROC counts."""

    def curve(hits_D: FloatArray, false_D: FloatArray, grid_G: FloatArray) -> FloatArray:
        true_G = np.interp(grid_G, np.r_[0, false_D / false_D[-1]], np.r_[0, hits_D / hits_D[-1]])
        true_G[0] = 0.0
        return true_G

    return _band(labels_N, scores_SN, (patient_N, draws_RP), curve, np.linspace(0, 1, GRID_POINTS))


def precision_recall_band(
    labels_N: FloatArray, scores_SN: Sequence[FloatArray], patient_N: NDArray, draws_RP: NDArray
) -> Band:
    """Precision by recall, in steps, as average precision counts."""

    def curve(hits_D: FloatArray, false_D: FloatArray, grid_G: FloatArray) -> FloatArray:
        recall_D = hits_D / hits_D[-1]
        first_G = np.searchsorted(recall_D, grid_G - 1e-12, side="left")
        found_G = (hits_D + false_D)[first_G]
        return np.asarray(hits_D[first_G] / np.maximum(found_G, 1))

    grid_G = np.linspace(0, 1, GRID_POINTS)[1:]
    return _band(labels_N, scores_SN, (patient_N, draws_RP), curve, grid_G)


def _band(
    labels_N: FloatArray,
    scores_SN: Sequence[FloatArray],
    patients: tuple[NDArray, NDArray],
    curve: Callable[[FloatArray, FloatArray, FloatArray], FloatArray],
    grid_G: FloatArray,
) -> Band:
    keep_N = has_label(labels_N)
    labels, (patient_N, draws_RP) = labels_N[keep_N], patients
    patient = patient_N[keep_N]
    seed_SG, sum_RG = [], np.zeros((len(draws_RP), len(grid_G)))
    for scores_N in scores_SN:
        scores = scores_N[keep_N]
        check_scorable(labels, scores, "curve")
        order = np.argsort(-scores, kind="stable")
        # the last of equal scores: a threshold cannot part them
        ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
        positive, sorted_patient = labels[order] == 1, patient[order]

        def of(weight_N: NDArray, positive: NDArray = positive, ends: NDArray = ends) -> FloatArray:
            hits = np.cumsum(weight_N * positive)[ends].astype(float)
            false = np.cumsum(weight_N)[ends] - hits
            if hits[-1] == 0 or false[-1] == 0:  # a replicate of one class has no curve
                return np.full(len(grid_G), np.nan)
            return curve(hits, false, grid_G)

        seed_SG.append(of(np.ones(len(labels), dtype=np.int64)))
        for row, draw_P in enumerate(draws_RP):
            sum_RG[row] += of(draw_P[sorted_patient].astype(np.int64))
    mean_RG = sum_RG[np.isfinite(sum_RG).all(axis=1)] / len(scores_SN)
    low_G, high_G = np.quantile(mean_RG, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Band(x_G=grid_G, seed_SG=np.stack(seed_SG), low_G=low_G, high_G=high_G)
