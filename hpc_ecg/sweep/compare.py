"""The comparison of a sweep: finished cells in, strategies side by side and a verdict out.

One metric decides: AUROC (its mean over labels where there are several), R² for regression, because
it has no unit and higher is better. Each strategy's value is the mean over its seeds; its interval,
and that of each difference, hold the chance of patients and of seeds (evaluation/comparisons.py).
The verdict (verdict.py) is written from these numbers only.
"""

# S seeds, R replicates, L scored labels

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.evaluation.comparisons import (
    Difference,
    Estimate,
    SeedScores,
    compare_strategies,
    estimate_mean,
)
from hpc_ecg.evaluation.evaluate import (
    labels_not_scored,
    mean_over_labels,
    point_values,
    replicates_of,
)
from hpc_ecg.evaluation.intervals import FEW_PATIENTS
from hpc_ecg.evaluation.metrics import count_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import Resamples, draw_resamples
from hpc_ecg.sweep.cells import CellResult, Problem, read_cells, read_note

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "r2": "R²",
    "mae": "MAE",
    "pearson": "Pearson's r",
}
SHARES = ("auroc", "auprc")  # between 0 and 1


@dataclass(frozen=True, kw_only=True)
class StrategyResult:
    name: str
    seeds: list[int]
    estimates: dict[str, Estimate]
    """By metric."""
    per_seed: dict[str, dict[int, float]]
    hours: dict[str, float]
    """Processes × hours of training over all seeds, by unit: GPU-hours, CPU process-hours."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    task: str
    metric: str
    """The metric that decides; `metrics` are all that are reported."""
    metrics: list[str]
    labels: list[str]
    """Those that are scored; `not_scored` gives the reasons for the others."""
    not_scored: dict[str, str]
    counts: dict[str, dict[str, Any]]
    """Of the test set, by label: records, patients, positive ones, prevalence."""
    strategies: list[StrategyResult]
    """Highest metric first."""
    pairs: list[Difference]
    problems: list[Problem]
    warnings: list[str]
    replicates: int
    seed: int
    cells: list[CellResult] = field(repr=False)

    @property
    def metric_name(self) -> str:
        return self.name_of(self.metric)

    def name_of(self, metric: str) -> str:
        mean = "macro " if len(self.labels) > 1 else ""
        return mean + METRIC_NAMES[metric]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the cells."""
        return asdict(replace(self, cells=[])) | {"cells": [cell.name for cell in self.cells]}


def compare(sweep_dir: Path, replicates: int = 2000, seed: int = 0) -> Comparison:
    """Raises `ValueError` when no cell is finished, or when cells were tested on different sets."""
    # 1. read what is finished, and say of the rest why it is not
    cells, problems = read_cells(Path(sweep_dir))
    if not cells:
        reasons = "; ".join(f"{p.strategy}/seed-{p.seed} {p.reason}" for p in problems[:3])
        raise ValueError(f"{sweep_dir}: no finished cell to compare ({reasons or 'it is empty'})")
    test = cells[0].test
    task = "regression" if test.probability_NK is None else "classification"
    not_scored = labels_not_scored(test, task)
    scored = [k for k, name in enumerate(test.labels) if name not in not_scored]

    # 2. score every cell on the same draws of patients
    metrics = _metrics(task, len(scored))
    resamples = draw_resamples(test.patient_N, replicates, seed)
    scores = _score_cells(cells, task, metrics, scored, resamples)

    # 3. estimate each strategy and compare all pairs
    counts = {test.labels[k]: count_label_or_value(test, k, task) for k in scored}
    patients = _patients_behind(counts, task, resamples.num_patients)
    strategies = [_result(name, cells, scores, patients) for name in scores[metrics[0]]]
    strategies.sort(key=lambda s: (-s.estimates[metrics[0]].value, s.name))
    pairs = compare_strategies({s.name: scores[metrics[0]][s.name] for s in strategies}, patients)
    comparison = Comparison(
        task=task,
        metric=metrics[0],
        metrics=metrics,
        labels=list(counts),
        not_scored=not_scored,
        counts=counts,
        strategies=strategies,
        pairs=pairs,
        problems=problems,
        warnings=[],
        replicates=replicates,
        seed=seed,
        cells=cells,
    )
    note = [text] if (text := read_note(Path(sweep_dir))) else []
    return replace(comparison, warnings=note + _warnings(comparison))


def count_label_or_value(test: Predictions, k: int, task: str) -> dict[str, Any]:
    counts = count_label(test.label_NK[:, k], test.patient_N)
    if task == "regression":
        return {name: counts[name] for name in ("n", "n_missing", "n_patients")}
    return counts


def _metrics(task: str, num_labels: int) -> list[str]:
    if task != "regression":
        return ["auroc", "auprc"]
    return ["r2", "mae" if num_labels == 1 else "pearson"]  # MAE of several units has no mean


def _score_cells(
    cells: list[CellResult], task: str, metrics: list[str], scored: list[int], resamples: Resamples
) -> dict[str, dict[str, SeedScores]]:
    """By metric and strategy: value and replicates of each seed, as means over the labels."""
    scores: dict[str, dict[str, SeedScores]] = {metric: {} for metric in metrics}
    for cell in cells:
        points = [point_values(cell.test, k, task) for k in scored]
        drawn = [replicates_of(cell.test, k, task, resamples) for k in scored]
        for metric in metrics:
            empty = SeedScores(value={}, replicate_R={})
            seeds = scores[metric].setdefault(cell.strategy, empty)
            seeds.value[cell.seed] = float(np.mean([p[metric] for p in points]))
            seeds.replicate_R[cell.seed] = mean_over_labels(np.stack([d[metric] for d in drawn]))
    return scores


def _patients_behind(counts: dict[str, dict[str, Any]], task: str, num_patients: int) -> int:
    """Patients of the smaller class, whose chance dominates; all of them where there is none."""
    if task == "regression" or len(counts) > 1:
        return num_patients
    (only,) = counts.values()
    return min(only["n_positive_patients"], only["n_negative_patients"])


def _result(
    name: str, cells: list[CellResult], scores: dict[str, dict[str, SeedScores]], patients: int
) -> StrategyResult:
    own = [cell for cell in cells if cell.strategy == name]
    estimates, per_seed = {}, {}
    for metric, by_strategy in scores.items():
        seeds = by_strategy[name]
        replicate_SR = np.stack(list(seeds.replicate_R.values()))
        estimate = estimate_mean(np.array(list(seeds.value.values())), replicate_SR, patients)
        if metric in SHARES:
            estimate = replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))
        estimates[metric], per_seed[metric] = estimate, seeds.value
    return StrategyResult(
        name=name,
        seeds=[c.seed for c in own],
        estimates=estimates,
        per_seed=per_seed,
        hours=_hours(own),
    )


def _hours(cells: list[CellResult]) -> dict[str, float]:
    hours: dict[str, float] = {}
    for cell in cells:
        device = cell.finished["device"].lower()
        unit = "CPU process-hours" if device.startswith("cpu") else "GPU-hours"
        hours[unit] = hours.get(unit, 0.0) + cell.finished["process_seconds"] / 3600
    return hours


def _warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before believing a number, in plain words."""
    texts = []
    if comparison.task != "regression":
        for label, counts in comparison.counts.items():
            for kind in ("positive", "negative"):
                number = counts[f"n_{kind}_patients"]
                if number < FEW_PATIENTS:
                    noun = "patient" if number == 1 else "patients"
                    texts.append(
                        f"{label} has only {number} {kind} {noun} in the test set: "
                        "intervals and p-values are rough."
                    )
    single = [s.name for s in comparison.strategies if len(s.seeds) == 1]
    if single:
        texts.append(
            f"One seed only for {_list(single)}: these intervals hold the chance of the "
            "test patients, not that of training. Run more seeds."
        )
    double = [s.name for s in comparison.strategies if len(s.seeds) == 2]
    if double:
        texts.append(
            f"Two seeds only for {_list(double)}: where training is noisy, such a test "
            "finds a difference that is none in up to 1 of 10 cases."
        )
    if comparison.problems:
        total = len(comparison.problems) + len(comparison.cells)
        texts.append(f"Left out (listed below): {len(comparison.problems)} of {total} cells.")
    if len({tuple(s.seeds) for s in comparison.strategies}) > 1:
        texts.append("Strategies have different seeds; a difference uses the seeds of both.")
    for label, reason in comparison.not_scored.items():
        texts.append(f"{label} is not scored: {reason}.")
    return texts


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
