"""The sample behind one yes/no label: the records that have it, their predictions, and how often
each patient is in each replicate. Missing labels are left out once, on construction."""

# N records with the label, P patients, R replicates, V columns

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation import metrics
from hpc_ecg.evaluation.events import count_events, scarce
from hpc_ecg.evaluation.intervals import FEW_PATIENTS, bootstrap_interval
from hpc_ecg.evaluation.metrics import RANKING_METRICS, FloatArray, has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, ranking_replicates, sum_replicates

PER_RECORD = ("record_N", "labels_N", "logits_N", "probabilities_N", "patient_N", "weights_N")


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
    weights_N: FloatArray
    """Against censoring, or 1."""

    @classmethod
    def from_predictions(cls, predictions: Predictions, k: int, resamples: Resamples) -> Self:
        """The sample of label k. ValueError: predictions that are not finite, or no probabilities
        between 0 and 1."""
        name = predictions.labels[k]
        if predictions.probability_NK is None:
            raise ValueError(f"{name}: a yes/no label needs probabilities, and there are none")
        keep_N = has_label(predictions.label_NK[:, k])
        logits_N, probabilities_N = predictions.logit_NK[:, k], predictions.probability_NK[:, k]
        metrics.check_finite(logits_N, name)
        metrics.check_probabilities(probabilities_N, name)
        return cls(
            record_N=predictions.record_N[keep_N],
            labels_N=predictions.label_NK[keep_N, k],
            logits_N=logits_N[keep_N],
            probabilities_N=probabilities_N[keep_N].astype(np.float64),
            patient_N=resamples.patient_N[keep_N],
            multiplicity_RP=resamples.multiplicity_RP,
            weights_N=predictions.weights(k)[keep_N],
            groups={g: values_N[keep_N] for g, values_N in predictions.groups.items()},
        )

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: NDArray) -> Self:
        """Some of the records, on the same draws of patients."""
        arrays = {name: getattr(self, name)[rows] for name in PER_RECORD}
        groups = {name: values_N[rows] for name, values_N in self.groups.items()}
        return replace(self, **arrays, groups=groups)

    def num_patients(self, is_in_N: NDArray) -> int:
        return int(np.count_nonzero(np.bincount(self.patient_N[is_in_N])))

    def effective_patients(self, is_in_N: NDArray | None = None) -> float:
        """Patients behind the records of a mask (or all), as many as have the variance of a mean
        where all ECGs of a patient are alike: (Σ ECGs)² / Σ ECGs², weighted (Kish 1965)."""
        rows = slice(None) if is_in_N is None else is_in_N
        ecgs_P = np.bincount(self.patient_N[rows], self.weights_N[rows])
        return float(ecgs_P.sum() ** 2 / ((ecgs_P**2).sum() or 1.0))

    def patients_in_smaller_class(self) -> int:
        """The patients whose chance dominates that of a ranking metric."""
        return min(self.num_patients(self.labels_N == 1), self.num_patients(self.labels_N == 0))

    def rankings(self) -> dict[str, float]:
        data = self.labels_N, self.logits_N, self.weights_N
        return {"auroc": metrics.auroc(*data), "auprc": metrics.auprc(*data)}

    def losses(self) -> dict[str, float]:
        data = self.labels_N, self.probabilities_N, self.weights_N
        return {"brier": metrics.brier(*data), "log_loss": metrics.log_loss(*data)}

    def replicates(self) -> dict[str, FloatArray]:
        return self.ranking_replicates() | self.loss_replicates()

    def ranking_replicates(self) -> dict[str, FloatArray]:
        return ranking_replicates(
            self.labels_N, self.logits_N, self.patient_N, self.multiplicity_RP, self.weights_N
        )

    def loss_replicates(self) -> dict[str, FloatArray]:
        y_N, p_N = self.labels_N, self.probabilities_N
        eps = np.finfo(np.float64).eps
        likelihood_N = np.clip(np.where(y_N == 1, p_N, 1 - p_N), eps, 1 - eps)
        terms = ((p_N - y_N) ** 2, -np.log(likelihood_N), np.ones(len(self)))
        brier_R, loss_R, count_R = self.sum_replicates(np.stack(terms, axis=1)).T
        return {"brier": brier_R / count_R, "log_loss": loss_R / count_R}

    def sum_replicates(self, values_NV: FloatArray) -> FloatArray:
        """[R, V]: the weighted sum of each column in every replicate."""
        values_NV = values_NV * self.weights_N[:, None]
        return sum_replicates(values_NV, self.patient_N, self.multiplicity_RP)


def pooled(samples: Sequence[LabelSample]) -> LabelSample:
    """All labels as one, for micro averages: a record counts once for each label that it has."""
    arrays = {name: np.concatenate([getattr(s, name) for s in samples]) for name in PER_RECORD}
    return replace(samples[0], **arrays, groups={})


def metric_intervals(
    values: dict[str, float], values_R: dict[str, FloatArray], sample: LabelSample
) -> dict[str, dict]:
    """Intervals by metric of `values_R`; ranking metrics of few patients carry a warning."""
    num_patients = sample.patients_in_smaller_class()
    few = scarce(count_events(sample.labels_N, sample.patient_N), FEW_PATIENTS)
    safe = "the interval is wide, and errs on the safe side (95 % intervals cover 94–100 % there)"
    few = f"only {few}: {safe}" if few else None
    about: dict[str, tuple[float, str | None]] = {"log_loss": (num_patients, None)}
    about |= dict.fromkeys(RANKING_METRICS, (num_patients, few))
    everybody = sample.effective_patients(), None
    return {
        metric: bootstrap_interval(values[metric], value_R, metric, *about.get(metric, everybody))
        for metric, value_R in values_R.items()
    }
