"""Decision curves (Vickers & Elkin 2006): what acting on a model is worth.

Acting from a probability of t on implies that a false alarm costs t / (1 - t) of what a case found
is worth. Net benefit: cases found, less false alarms at that price, per record. A model has to beat
treating all and treating none (0).
"""

# N records, T thresholds, R replicates

import numpy as np

from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.metrics import FloatArray, Weights

THRESHOLDS = np.arange(1, 100) / 100


def net_benefit(
    labels_N: FloatArray,
    probabilities_N: FloatArray,
    threshold_T: FloatArray = THRESHOLDS,
    w_N: Weights = None,
) -> FloatArray:
    """Net benefit by threshold [T]; a record is treated at `probability >= threshold`."""
    worth_NT = np.where(labels_N[:, None] == 1, 1.0, -threshold_T / (1 - threshold_T))
    is_treated_NT = probabilities_N[:, None] >= threshold_T
    return np.asarray(np.average(worth_NT * is_treated_NT, axis=0, weights=w_N))


def decision_curve(sample: LabelSample, threshold_T: FloatArray = THRESHOLDS) -> dict:
    """Lists by threshold: net benefit with its pointwise 95 % interval, and that of treating all;
    treating none has 0.

    The limits join those of two shares, of true and of false positives among all records (MOVER,
    Zou & Donner 2008). So where nobody is flagged, they say what so many patients leave possible.
    """
    true_3T, false_3T = (_shares(sample, case, threshold_T) for case in (1, 0))
    price_T = threshold_T / (1 - threshold_T)
    value_T = true_3T[0] - price_T * false_3T[0]
    (true_down, true_up), (false_down, false_up) = (
        np.abs(share_3T[1:] - share_3T[0]) for share_3T in (true_3T, false_3T)
    )
    everybody_N = np.ones(len(sample))
    everybody_T = net_benefit(sample.labels_N, everybody_N, threshold_T, sample.weights_N)
    return {
        "threshold": threshold_T.tolist(),
        "net_benefit": value_T.tolist(),
        "low": (value_T - np.hypot(true_down, price_T * false_up)).tolist(),
        "high": (value_T + np.hypot(true_up, price_T * false_down)).tolist(),
        "treat_all": everybody_T.tolist(),
        "treat_none": [0.0] * len(threshold_T),
    }


def _shares(sample: LabelSample, case: int, threshold_T: FloatArray) -> FloatArray:
    """[3, T]: the share of records that are flagged and of this class, with its limits."""
    flagged_NT = sample.probabilities_N[:, None] >= threshold_T
    flagged_NT = (flagged_NT & (sample.labels_N[:, None] == case)).astype(np.float64)
    sums_RT = sample.sum_replicates(np.column_stack([flagged_NT, np.ones(len(sample))]))
    share_T = np.average(flagged_NT, axis=0, weights=sample.weights_N)
    columns = zip(share_T, (sums_RT[:, :-1] / sums_RT[:, -1:]).T, strict=True)
    num = sample.effective_patients()
    shares = [bootstrap_interval(value, value_R, "observed", num) for value, value_R in columns]
    return np.array([[share[end] for share in shares] for end in ("value", "low", "high")])
