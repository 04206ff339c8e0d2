"""One yes/no label as its numbers are computed from: the records that have it, what was predicted
for them, and how often each patient is in each replicate. Missing labels are left out here, once.
"""

# N records with the label, P patients, R replicates, V columns

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.intervals import bootstrap_interval, few_patients_warning
from hpc_ecg.evaluation.metrics import (
    FloatArray,
    check_finite,
    check_probabilities,
    count_label,
    has_label,
)
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, ranking_replicates, sum_replicates

RANKED = ("auroc", "auprc")


@dataclass(frozen=True, kw_only=True)
class LabelSample:
    record_N: NDArray
    labels_N: FloatArray
    logits_N: FloatArray
    probabilities_N: FloatArray
    patient_N: NDArray
    """Columns of multiplicity_RP."""
    multiplicity_RP: NDArray
    groups: dict[str, NDArray]

    @classmethod
    def from_predictions(cls, predictions: Predictions, k: int, resamples: Resamples) -> Self:
        name = predictions.labels[k]
        if predictions.probability_NK is None:
            raise ValueError(f"{name}: a yes/no label needs probabilities, and there are none")
        keep_N = has_label(predictions.label_NK[:, k])
        logits_N, probabilities_N = predictions.logit_NK[:, k], predictions.probability_NK[:, k]
        check_finite(logits_N, name)
        check_probabilities(probabilities_N, name)
        return cls(
            record_N=predictions.record_N[keep_N],
            labels_N=predictions.label_NK[keep_N, k],
            logits_N=logits_N[keep_N],
            probabilities_N=probabilities_N[keep_N].astype(np.float64),
            patient_N=resamples.patient_N[keep_N],
            multiplicity_RP=resamples.multiplicity_RP,
            groups={g: values_N[keep_N] for g, values_N in predictions.groups.items()},
        )

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: NDArray) -> Self:
        """Some of the records, on the same draws of patients."""
        arrays = ("record_N", "labels_N", "logits_N", "probabilities_N", "patient_N")
        return replace(
            self,
            **{array: getattr(self, array)[rows] for array in arrays},
            groups={name: values_N[rows] for name, values_N in self.groups.items()},
        )

    def num_patients(self, is_one_N: NDArray) -> int:
        """How many patients are behind these records."""
        return int(np.count_nonzero(np.bincount(self.patient_N[is_one_N])))

    def patients_in_smaller_class(self) -> int:
        """Patients whose chance dominates that of a ranking metric."""
        return min(self.num_patients(self.labels_N == 1), self.num_patients(self.labels_N == 0))

    def replicates(self) -> dict[str, FloatArray]:
        """AUROC, AUPRC, Brier score and log loss of every replicate."""
        return self.ranking_replicates() | self.loss_replicates()

    def ranking_replicates(self) -> dict[str, FloatArray]:
        return ranking_replicates(
            self.labels_N, self.logits_N, self.patient_N, self.multiplicity_RP
        )

    def loss_replicates(self) -> dict[str, FloatArray]:
        y_N, p_N = self.labels_N, self.probabilities_N
        terms = ((p_N - y_N) ** 2, log_losses(y_N, p_N), np.ones(len(self)))
        brier_R, loss_R, count_R = self.sum_replicates(np.stack(terms, axis=1)).T
        return {"brier": brier_R / count_R, "log_loss": loss_R / count_R}

    def sum_replicates(self, values_NV: FloatArray) -> FloatArray:
        """[R, V]: the sum of each column in every replicate."""
        return sum_replicates(values_NV, self.patient_N, self.multiplicity_RP)


def log_losses(labels_N: FloatArray, probabilities_N: FloatArray) -> FloatArray:
    """Of each record; their mean is `metrics.log_loss`."""
    tiny = np.finfo(np.float64).eps
    right_N = np.where(labels_N == 1, probabilities_N, 1 - probabilities_N)
    return -np.log(np.clip(right_N, tiny, 1 - tiny))


def pooled(parts: Sequence[LabelSample]) -> LabelSample:
    """All labels as one, for micro averages: a record is there once for each label that it has."""
    fields = ("record_N", "labels_N", "logits_N", "probabilities_N", "patient_N")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
    return replace(parts[0], **arrays, groups={})


def metric_intervals(
    values: dict[str, float], values_R: dict[str, FloatArray], sample: LabelSample
) -> dict[str, dict]:
    """By metric, for values of `sample`; a ranking metric of few patients has a warning."""
    few = sample.patients_in_smaller_class()
    warning = few_patients_warning(count_label(sample.labels_N, sample.patient_N))
    return {
        metric: interval_or_none(values[metric], value_R, metric, few, warning)
        if metric in RANKED
        else interval_or_none(values[metric], value_R, metric)
        for metric, value_R in values_R.items()
    }


def interval_or_none(
    value: float,
    value_R: FloatArray,
    metric: str,
    num_patients: int | None = None,
    warning: str | None = None,
) -> dict:
    """The interval; nothing where the value does not exist, such as the PPV of nobody."""
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    return bootstrap_interval(
        float(value), value_R, metric=metric, num_patients=num_patients, warning=warning
    )
