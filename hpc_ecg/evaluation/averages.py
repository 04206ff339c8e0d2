"""Several labels as one number. Macro: the mean over labels. Micro: all labels pooled, so that each
pair of a record and a label that it has counts once. Intervals from the same draws of patients.
"""

# L labels, R replicates; 4 counts at a threshold

from collections.abc import Mapping

import numpy as np

from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals, pooled
from hpc_ecg.evaluation.metrics import FloatArray, auprc, auroc, brier, log_loss
from hpc_ecg.evaluation.thresholds import confusion_counts, rates, with_intervals


def macro(labels: Mapping[str, dict], values_R: Mapping[str, dict[str, FloatArray]]) -> dict:
    """Of all metrics with replicates. A replicate that lacks a class of some label averages over
    the others."""
    result: dict = {"n_labels": len(labels)}
    for metric in next(iter(values_R.values())):
        value = float(np.mean([label[metric]["value"] for label in labels.values()]))
        value_LR = np.stack([values[metric] for values in values_R.values()])
        result[metric] = bootstrap_interval(value, mean_over_labels(value_LR), metric=metric)
        incomplete = int(np.isnan(value_LR).any(axis=0).sum())
        if incomplete:
            text = f"{incomplete} replicates lacked a class of some label: mean over the others"
            result[metric]["warning"] = text
    return result


def micro(samples: Mapping[str, LabelSample]) -> dict:
    everything = pooled(list(samples.values()))
    labels_N, p_N = everything.labels_N, everything.probabilities_N
    values = {of.__name__: of(labels_N, everything.logits_N) for of in (auroc, auprc)}
    values |= {of.__name__: of(labels_N, p_N) for of in (brier, log_loss)}
    return {"n": len(everything)} | metric_intervals(values, everything.replicates(), everything)


def averages_at_thresholds(
    samples: Mapping[str, LabelSample], points: Mapping[str, dict[str, dict]]
) -> dict[str, dict[str, dict]]:
    """`macro` and `micro`, by method: every label at its own threshold."""
    at: dict[str, dict[str, dict]] = {"macro": {}, "micro": {}}
    for method in dict.fromkeys(method for own in points.values() for method in own):
        counted = [
            confusion_counts(samples[name], own[method]["threshold"])
            for name, own in points.items()
            if method in own
        ]
        counts_L4 = np.stack([counts for counts, _ in counted])
        counts_LR4 = np.stack([counts_R for _, counts_R in counted])
        mean, mean_R = (
            {rate: mean_over_labels(values) for rate, values in rates(counts).items()}
            for counts in (counts_L4, counts_LR4)
        )
        at["macro"][method] = with_intervals(mean, mean_R)
        at["micro"][method] = with_intervals(rates(counts_L4.sum(0)), rates(counts_LR4.sum(0)))
    return at


def mean_over_labels(value_LR: FloatArray) -> FloatArray:
    """Mean over the labels that have a value in the replicate; NaN where none has."""
    count_R = np.isfinite(value_LR).sum(axis=0)
    return np.where(count_R > 0, np.nansum(value_LR, axis=0) / np.maximum(count_R, 1), np.nan)
