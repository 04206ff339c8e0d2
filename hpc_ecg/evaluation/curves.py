"""ROC and precision-recall curves on a fixed grid, so that curves of several seeds can be averaged
and a figure stays small however many records there are."""

# N records, G grid points

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from hpc_ecg.evaluation.metrics import FloatArray, check_scorable, has_label

GRID_POINTS = 201


def roc_on_grid(labels_N: FloatArray, scores_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """1 - specificity and sensitivity; straight lines between thresholds, as the AUROC counts."""
    keep_N = has_label(labels_N)
    check_scorable(labels_N[keep_N], scores_N[keep_N], "ROC curve")
    false_rate, true_rate, _ = roc_curve(labels_N[keep_N], scores_N[keep_N])
    grid_G = np.linspace(0, 1, GRID_POINTS)
    true_G = np.interp(grid_G, false_rate, true_rate)
    true_G[0] = 0.0
    return grid_G, true_G


def precision_recall_on_grid(
    labels_N: FloatArray, scores_N: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Recall and precision; steps and no lines between thresholds, as average precision counts
    (Davis & Goadrich 2006: a straight line there is too good)."""
    keep_N = has_label(labels_N)
    check_scorable(labels_N[keep_N], scores_N[keep_N], "precision-recall curve")
    precision, recall, _ = precision_recall_curve(labels_N[keep_N], scores_N[keep_N])
    grid_G = np.linspace(0, 1, GRID_POINTS)[1:]
    first = np.searchsorted(recall[::-1], grid_G - 1e-12, side="left")
    return grid_G, precision[::-1][first]
