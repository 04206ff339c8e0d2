"""Score models on one test set: each metric's value, and its replicates over draws of patients.

All models of a sweep are scored on the same draws of patients, so that every difference is paired.
"""

# R replicates, S seeds

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_ecg.evaluation.averages import joint_patients, mean_replicates
from hpc_ecg.evaluation.comparisons import (
    ALPHA,
    Difference,
    Estimate,
    SeedScores,
    estimate_mean,
    non_inferior,
)
from hpc_ecg.evaluation.metrics import FloatArray, count_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, draw_resamples
from hpc_ecg.evaluation.scores import labels_not_scored, metric_replicates, point_values
from hpc_ecg.log import tracked

Scores = tuple[dict[str, float], dict[str, FloatArray]]
"""By metric: the value, and its replicates [R]."""
RunKey = tuple[str, int]
"""Strategy and seed."""
LARGEST = {"auroc": 0.5, "auprc": 1.0}
"""No AUROC differs by more from that of chance."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The test set that all models are scored on, its draws of patients, and the metrics."""

    task: str
    metrics: list[str]
    """The first one decides."""
    label_names: list[str]
    """Labels that can be scored; `not_scored` gives the reason for each other one."""
    not_scored: dict[str, str]
    counts: dict[str, dict[str, Any]]
    """Test set by scored label: records, patients, positive ones, prevalence."""
    resamples: Resamples
    test: Predictions
    fixed: Collection[str] = ()
    """Strategies whose one run stands for all seeds."""

    @classmethod
    def for_test_set(cls, test: Predictions, replicates: int, seed: int) -> "Scorer":
        task = "regression" if test.probability_NK is None else "classification"
        not_scored = labels_not_scored(test, task)
        scored = [name for name in test.labels if name not in not_scored]
        return cls(
            task=task,
            metrics=_metrics(task, len(scored)),
            label_names=scored,
            not_scored=not_scored,
            counts={name: _count(test, test.labels.index(name), task) for name in scored},
            resamples=draw_resamples(test.patient_N, replicates, seed),
            test=test,
        )

    @property
    def num_patients(self) -> int:
        return self.num_patients_for(self.label_names)

    def num_patients_for(self, labels: Sequence[str]) -> int:
        """The number of patients behind the bootstrap variance: those of the smaller class, whose
        chance dominates, or all patients for a regression; for several labels `joint_patients`."""
        if self.task == "regression":
            return self.resamples.num_patients
        kinds = ("n_positive_patients", "n_negative_patients")
        num_L = np.array([float(min(self.counts[name][k] for k in kinds)) for name in labels])
        joint = int(num_L[0]) if len(labels) == 1 else round(joint_patients(num_L))
        return min(joint, self.resamples.num_patients)

    def score(self, models: Sequence[Predictions]) -> list[Scores]:
        """Score each model by its mean over labels."""
        return [self.mean(by_label) for by_label in self.score_labels(models)]

    def score_labels(self, models: Sequence[Predictions]) -> list[dict[str, Scores]]:
        """Score each model by label, in one thread per core: the compiled loops release the GIL."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = pool.map(self._score_labels, models)
            return list(tracked("models scored", found, len(models)))

    def mean(self, by_label: Mapping[str, Scores]) -> Scores:
        """Average scores over labels."""
        if len(by_label) == 1:
            return next(iter(by_label.values()))
        values, replicates = zip(*by_label.values(), strict=True)
        num_L = np.array([float(self.num_patients_for([name])) for name in by_label])
        return (
            {m: float(np.mean([value[m] for value in values])) for m in self.metrics},
            {
                m: mean_replicates(np.stack([drawn[m] for drawn in replicates]), num_L)
                for m in self.metrics
            },
        )

    def _score_labels(self, predictions: Predictions) -> dict[str, Scores]:
        scores = {}
        for name in self.label_names:
            k = predictions.labels.index(name)
            values = point_values(predictions, k, self.task)
            drawn = metric_replicates(predictions, k, self.task, self.resamples)
            scores[name] = {m: values[m] for m in self.metrics}, {m: drawn[m] for m in self.metrics}
        return scores


def group_by_strategy(
    metrics: Sequence[str], scored: Mapping[RunKey, Scores], fixed: Collection[str] = ()
) -> dict[str, dict[str, SeedScores]]:
    """Rearrange the scores of runs: by metric, strategy and seed. `fixed`: strategies whose one run
    stands for all seeds."""
    scores: dict[str, dict[str, SeedScores]] = {metric: {} for metric in metrics}
    for (strategy, seed), (values, replicates) in scored.items():
        for metric in metrics:
            empty = SeedScores(value={}, replicate_R={}, is_fixed=strategy in fixed)
            seeds = scores[metric].setdefault(strategy, empty)
            seeds.value[seed], seeds.replicate_R[seed] = values[metric], replicates[metric]
    return scores


def estimate_from(scores: SeedScores, num_patients: int, metric: str | None = None) -> Estimate:
    """The mean over seeds with its interval; `metric` is None for a difference."""
    return estimate_mean(*scores.arrays(), num_patients, metric)


def pairs_with(pairs: Sequence[Difference], name: str) -> list[Difference]:
    """The differences between one strategy and the others, with that strategy first."""
    return [put_first(pair, name) for pair in pairs if name in (pair.first, pair.second)]


def put_first(pair: Difference, name: str) -> Difference:
    """The same difference with `name` as its first strategy."""
    if pair.first == name:
        return pair
    e = pair.estimate
    return replace(
        pair,
        first=pair.second,
        second=pair.first,
        estimate=replace(e, value=-e.value, low=-e.high, high=-e.low),
        low=-pair.high,
        high=-pair.low,
    )


def detectable(pair: Difference, metric: str) -> float | None:
    """The true difference that is found with 80 % power; None from one seed, or if no difference in
    this metric is so large."""
    is_possible = pair.detectable <= LARGEST.get(metric, np.inf)
    return pair.detectable if is_possible and pair.estimate.includes_seeds else None


def against_best(pairs: Sequence[Difference], margin: float) -> list[dict[str, Any]]:
    """Test each other strategy for non-inferiority to the best, the first one of the first pair."""
    best = [pair for pair in pairs if pair.first == pairs[0].first]
    tests = [non_inferior(put_first(pair, pair.second), margin) for pair in best]
    about = [{"strategy": pair.second, "to": pair.first} for pair in best]
    return [one | test for one, test in zip(about, tests, strict=True)]


def is_better(pair: Difference) -> bool:
    """Whether the first is shown to be better than the second: never from a single seed, since how
    much training itself varies is then unknown."""
    shown = pair.p_adjusted < ALPHA and pair.estimate.includes_seeds
    return pair.estimate.value > 0 and shown


def _count(test: Predictions, k: int, task: str) -> dict[str, Any]:
    counts = count_label(test.label_NK[:, k], test.patient_N, test.weights(k))
    if task == "regression":
        return {name: counts[name] for name in ("n", "n_missing", "n_patients")}
    return counts


def _metrics(task: str, num_labels: int) -> list[str]:
    if task != "regression":
        return ["auroc", "auprc"]
    return ["r2", "mae" if num_labels == 1 else "pearson"]  # MAE of several units has no mean
