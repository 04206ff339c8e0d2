"""Decision curves (Vickers & Elkin 2006): what acting on a model is worth.

Acting from a probability of t on implies that a false alarm costs t / (1 - t) of what a case found
is worth. Net benefit: cases found, less false alarms at that price, per record. A model has to beat
treating all and treating none (0).
"""

# N records, T thresholds, R replicates

import numpy as np

from hpc_ecg.evaluation.intervals import TAILS
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.metrics import FloatArray

THRESHOLDS = np.arange(1, 100) / 100


def net_benefit(
    labels_N: FloatArray, probabilities_N: FloatArray, threshold_T: FloatArray = THRESHOLDS
) -> FloatArray:
    """Net benefit by threshold [T]; a record is treated at `probability >= threshold`."""
    return _benefits(labels_N, probabilities_N, threshold_T).mean(axis=0)


def decision_curve(sample: LabelSample, threshold_T: FloatArray = THRESHOLDS) -> dict:
    """Lists by threshold: net benefit with its pointwise 95 % interval, and that of treating all;
    treating none has 0."""
    value_NT = _benefits(sample.labels_N, sample.probabilities_N, threshold_T)
    sums_RT = sample.sum_replicates(np.column_stack([value_NT, np.ones(len(sample))]))
    low_T, high_T = np.quantile(sums_RT[:, :-1] / sums_RT[:, -1:], TAILS, axis=0)
    everybody_NT = _benefits(sample.labels_N, np.ones(len(sample)), threshold_T)
    return {
        "threshold": threshold_T.tolist(),
        "net_benefit": np.average(value_NT, axis=0, weights=sample.weights_N).tolist(),
        "low": low_T.tolist(),
        "high": high_T.tolist(),
        "treat_all": np.average(everybody_NT, axis=0, weights=sample.weights_N).tolist(),
        "treat_none": [0.0] * len(threshold_T),
    }


def _benefits(
    labels_N: FloatArray, probabilities_N: FloatArray, threshold_T: FloatArray
) -> FloatArray:
    """[N, T]: what treating each record, or not, contributes."""
    worth_NT = np.where(labels_N[:, None] == 1, 1.0, -threshold_T / (1 - threshold_T))
    return worth_NT * (probabilities_N[:, None] >= threshold_T)
