"""Averages over several labels, with intervals from the same draws of patients.

Macro is the mean over labels. Micro pools all labels: each pair of a record and a label that it
has counts once.
"""

# L labels, R replicates; 4 counts at a threshold

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals, pooled
from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.evaluation.thresholds import confusion_counts, patients_behind, rate_intervals, rates
from hpc_ecg.reporting.numbers import count


def macro(
    labels: Mapping[str, dict],
    values_R: Mapping[str, dict[str, FloatArray]],
    num_patients: Sequence[float],
) -> dict:
    """Mean over labels of each metric that has replicates.

    `labels` and `values_R` hold the results and the replicates by label, `num_patients` the
    patients of the smaller class (a regression: all). A replicate that lacks a class of some label
    averages over the others."""
    num_L = np.array(num_patients, dtype=np.float64)
    result: dict = {"n_labels": len(labels)}
    for metric in next(iter(values_R.values())):
        value = float(np.mean([label[metric]["value"] for label in labels.values()]))
        value_LR = np.stack([values[metric] for values in values_R.values()])
        result[metric] = bootstrap_interval(
            value, mean_replicates(value_LR, num_L), metric, joint_patients(num_L)
        )
        incomplete = int(np.isnan(value_LR).any(axis=0).sum())
        if incomplete:
            text = f"{count(incomplete, 'replicate')} lacked a class of some label"
            result[metric]["warning"] = f"{text}: mean over the others"
    return result


def mean_replicates(value_LR: FloatArray, num_L: FloatArray) -> FloatArray:
    """Replicates of the mean over labels, each label's spread from the variance within the sample
    to the population's, n / (n - 1) of it: other labels do not make up for few patients of one."""
    growth_L1 = np.sqrt(num_L / np.maximum(num_L - 1, 1))[:, None]
    center_L1 = np.nanmean(value_LR, axis=1, keepdims=True)
    return mean_over_labels(center_L1 + growth_L1 * (value_LR - center_L1))


def joint_patients(num_L: FloatArray) -> float:
    """For how many patients a mean over labels stands: 1 + Satterthwaite's degrees of freedom
    (1946) for labels of one variance, with n - 1 each; a label without patients has no part."""
    num_L = num_L[num_L > 0]
    return 1 + len(num_L) ** 2 / max(float(np.sum(1 / np.maximum(num_L - 1, 1))), 1e-9)


def micro(samples: Mapping[str, LabelSample]) -> dict:
    """AUROC, AUPRC, Brier score and log loss of all labels pooled."""
    sample = pooled(list(samples.values()))
    values = sample.rankings() | sample.losses()
    return {"n": len(sample)} | metric_intervals(values, sample.replicates(), sample)


def averages_at_thresholds(
    samples: Mapping[str, LabelSample], points: Mapping[str, dict[str, dict]]
) -> dict[str, dict[str, dict]]:
    """`macro` and `micro` rates by method, with each label at its own threshold."""
    result: dict[str, dict[str, dict]] = {"macro": {}, "micro": {}}
    for method in dict.fromkeys(method for by_method in points.values() for method in by_method):
        above = [  # by how much probabilities exceed each label's threshold
            replace(s, probabilities_N=s.probabilities_N - points[name][method]["threshold"])
            for name, s in samples.items()
            if method in points.get(name, {})
        ]
        counted = zip(*[confusion_counts(sample, 0.0) for sample in above], strict=True)
        counts_L4, counts_LR4 = (np.stack(part) for part in counted)
        mean, mean_R = (
            {rate: mean_over_labels(values) for rate, values in rates(counts).items()}
            for counts in (counts_L4, counts_LR4)
        )
        behind = [patients_behind(sample, 0.0) for sample in above]
        joint = {rate: joint_patients(np.array([n[rate] for n in behind])) for rate in behind[0]}
        result["macro"][method] = rate_intervals(mean, mean_R, joint)
        total, total_R = rates(counts_L4.sum(axis=0)), rates(counts_LR4.sum(axis=0))
        pool = patients_behind(pooled(above), 0.0)
        result["micro"][method] = rate_intervals(total, total_R, pool)
    return result


def mean_over_labels(value_LR: FloatArray) -> FloatArray:
    """Mean over the labels that have a value in the replicate; NaN where none has."""
    count_R = np.isfinite(value_LR).sum(axis=0)
    return np.where(count_R > 0, np.nansum(value_LR, axis=0) / np.maximum(count_R, 1), np.nan)
