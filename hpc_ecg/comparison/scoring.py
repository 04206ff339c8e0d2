"""Predictions of one test set in, values and patient replicates of each metric out.

All models of a sweep are scored on the same draws of patients, so that every difference is paired.
"""

# N records, R replicates, L scored labels

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from hpc_ecg.evaluation.averages import mean_over_labels
from hpc_ecg.evaluation.comparisons import Estimate, SeedScores, estimate_mean
from hpc_ecg.evaluation.metrics import FloatArray, count_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, draw_resamples
from hpc_ecg.evaluation.scores import (
    labels_not_scored,
    point_values,
    replicates_of,
)

SHARES = ("auroc", "auprc")  # between 0 and 1
T = TypeVar("T")
Scores = tuple[dict[str, float], dict[str, FloatArray]]
"""By metric: the value, and its values in the replicates [R]."""


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
    resamples: Resamples
    test: Predictions

    @classmethod
    def of(cls, test: Predictions, replicates: int, seed: int) -> "Scorer":
        task = "regression" if test.probability_NK is None else "classification"
        not_scored = labels_not_scored(test, task)
        scored = [name for name in test.labels if name not in not_scored]
        resamples = draw_resamples(test.patient_N, replicates, seed)
        return cls(
            task=task,
            metrics=_metrics(task, len(scored)),
            label_names=scored,
            not_scored=not_scored,
            counts={name: _count(test, test.labels.index(name), task) for name in scored},
            resamples=resamples,
            test=test,
        )

    @property
    def num_patients(self) -> int:
        return self.patients_behind(self.label_names)

    def patients_behind(self, labels: Sequence[str]) -> int:
        """Behind the bootstrap variance: those of the smaller class, whose chance dominates; all of
        them where there is none."""
        if self.task == "regression" or len(labels) > 1:
            return self.resamples.num_patients
        only = self.counts[labels[0]]
        return min(only["n_positive_patients"], only["n_negative_patients"])

    def score(self, predictions: Predictions) -> Scores:
        return self.mean(self.score_labels(predictions))

    def score_labels(self, predictions: Predictions) -> dict[str, Scores]:
        """By label."""
        found = {}
        for name in self.label_names:
            k = predictions.labels.index(name)
            point = point_values(predictions, k, self.task)
            drawn = replicates_of(predictions, k, self.task, self.resamples)
            found[name] = {m: point[m] for m in self.metrics}, {m: drawn[m] for m in self.metrics}
        return found

    def mean(self, by_label: Mapping[str, Scores]) -> Scores:
        """Over the labels."""
        points, drawn = zip(*by_label.values(), strict=True)
        return (
            {m: float(np.mean([point[m] for point in points])) for m in self.metrics},
            {m: mean_over_labels(np.stack([d[m] for d in drawn])) for m in self.metrics},
        )

    def score_all(self, predictions: Sequence[Predictions]) -> list[Scores]:
        return _side_by_side(self.score, predictions)

    def score_labels_all(self, predictions: Sequence[Predictions]) -> list[dict[str, Scores]]:
        return _side_by_side(self.score_labels, predictions)


def _side_by_side(score: Callable[[Predictions], T], predictions: Sequence[Predictions]) -> list[T]:
    """In the order given, on all cores of this process: the compiled loops let others work."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(score, predictions))


def group_by_strategy(
    metrics: Sequence[str], keys: Sequence[tuple[str, int]], scored: Sequence[Scores]
) -> dict[str, dict[str, SeedScores]]:
    """`keys`: (strategy, seed) of each of `scored`."""
    scores: dict[str, dict[str, SeedScores]] = {metric: {} for metric in metrics}
    for (strategy, seed), (values, replicates) in zip(keys, scored, strict=True):
        for metric in metrics:
            seeds = scores[metric].setdefault(strategy, SeedScores(value={}, replicate_R={}))
            seeds.value[seed], seeds.replicate_R[seed] = values[metric], replicates[metric]
    return scores


def estimate_strategy(scores: SeedScores, num_patients: int, metric: str) -> Estimate:
    """The mean over seeds, with an interval that keeps to what the metric can be."""
    replicate_SR = np.stack(list(scores.replicate_R.values()))
    value_S = np.array(list(scores.value.values()))
    found = estimate_mean(value_S, replicate_SR, num_patients, metric)
    if metric in SHARES:
        found = replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
    return found


def _count(test: Predictions, k: int, task: str) -> dict[str, Any]:
    counts = count_label(test.label_NK[:, k], test.patient_N)
    if task == "regression":
        return {name: counts[name] for name in ("n", "n_missing", "n_patients")}
    return counts


def _metrics(task: str, num_labels: int) -> list[str]:
    if task != "regression":
        return ["auroc", "auprc"]
    return ["r2", "mae" if num_labels == 1 else "pearson"]  # MAE of several units has no mean
