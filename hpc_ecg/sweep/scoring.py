"""Predictions of one test set in, values and patient replicates of each metric out.

All models of a sweep are scored on the same draws of patients, so that every difference is paired.
"""

# N records, R replicates, L scored labels

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_ecg.evaluation.averages import mean_over_labels
from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.evaluate import (
    labels_not_scored,
    point_values,
    replicates_of,
)
from hpc_ecg.evaluation.metrics import FloatArray, count_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, draw_resamples
from hpc_ecg.sweep.cells import CellResult

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "r2": "R²",
    "mae": "MAE",
    "pearson": "Pearson's r",
}
SHARES = ("auroc", "auprc")  # between 0 and 1
Scores = tuple[dict[str, float], dict[str, FloatArray]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What all models are scored by. Values are means over the labels that can be scored."""

    task: str
    metrics: list[str]
    """The first one decides."""
    label_names: list[str]
    not_scored: dict[str, str]
    counts: dict[str, dict[str, Any]]
    """Of the test set, by scored label: records, patients, positive ones, prevalence."""
    num_patients: int
    """Behind the bootstrap variance: those of the smaller class, whose chance dominates; all of
    them where there is none."""
    resamples: Resamples
    test: Predictions

    @classmethod
    def of(cls, test: Predictions, replicates: int, seed: int) -> "Scorer":
        task = "regression" if test.probability_NK is None else "classification"
        not_scored = labels_not_scored(test, task)
        scored = [name for name in test.labels if name not in not_scored]
        resamples = draw_resamples(test.patient_N, replicates, seed)
        counts = {name: _count(test, test.labels.index(name), task) for name in scored}
        return cls(
            task=task,
            metrics=_metrics(task, len(scored)),
            label_names=scored,
            not_scored=not_scored,
            counts=counts,
            num_patients=_patients_behind(counts, task, resamples.num_patients),
            resamples=resamples,
            test=test,
        )

    def score(self, predictions: Predictions) -> Scores:
        """By metric: the value, and its values in the replicates [R]."""
        columns = [predictions.labels.index(name) for name in self.label_names]
        points = [point_values(predictions, k, self.task) for k in columns]
        drawn = [replicates_of(predictions, k, self.task, self.resamples) for k in columns]
        return (
            {m: float(np.mean([point[m] for point in points])) for m in self.metrics},
            {m: mean_over_labels(np.stack([d[m] for d in drawn])) for m in self.metrics},
        )

    def score_all(self, predictions: Sequence[Predictions]) -> list[Scores]:
        """In the order given, on all cores of this process: the compiled loops run side by side."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(self.score, predictions))

    def seed_scores(self, cells: Sequence[CellResult]) -> dict[str, dict[str, SeedScores]]:
        """By metric and strategy."""
        scored = self.score_all([cell.test for cell in cells])
        return gather(self.metrics, [(cell.strategy, cell.seed) for cell in cells], scored)


def gather(
    metrics: Sequence[str], keys: Sequence[tuple[str, int]], scored: Sequence[Scores]
) -> dict[str, dict[str, SeedScores]]:
    """`keys`: (strategy, seed) of each of `scored`."""
    scores: dict[str, dict[str, SeedScores]] = {metric: {} for metric in metrics}
    for (strategy, seed), (values, replicates) in zip(keys, scored, strict=True):
        for metric in metrics:
            seeds = scores[metric].setdefault(strategy, SeedScores(value={}, replicate_R={}))
            seeds.value[seed], seeds.replicate_R[seed] = values[metric], replicates[metric]
    return scores


def _count(test: Predictions, k: int, task: str) -> dict[str, Any]:
    counts = count_label(test.label_NK[:, k], test.patient_N)
    if task == "regression":
        return {name: counts[name] for name in ("n", "n_missing", "n_patients")}
    return counts


def _metrics(task: str, num_labels: int) -> list[str]:
    if task != "regression":
        return ["auroc", "auprc"]
    return ["r2", "mae" if num_labels == 1 else "pearson"]  # MAE of several units has no mean


def _patients_behind(counts: dict[str, dict[str, Any]], task: str, num_patients: int) -> int:
    if task == "regression" or len(counts) > 1:
        return num_patients
    (only,) = counts.values()
    return min(only["n_positive_patients"], only["n_negative_patients"])
