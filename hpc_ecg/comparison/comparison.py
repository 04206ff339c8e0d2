"""The result of a comparison as plain values, from which verdict, tables and page are made."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hpc_ecg.comparison.by_label import LabelResult
from hpc_ecg.comparison.cost import Cost
from hpc_ecg.comparison.reference_models import ReferenceModel
from hpc_ecg.comparison.results import Problem, RunResult
from hpc_ecg.comparison.selected import SelectedModel
from hpc_ecg.evaluation.comparisons import Difference, Estimate
from hpc_ecg.evaluation.metric_names import METRIC_NAMES

JSON_KEYS = {
    "reference_models": "rivals",
    "gains": "adds",
    "gains_left_out": "adds_left_out",
    "selected": "chosen",
    "runs": "cells",
}
"""Fields that comparison.json holds under another name, which its readers know."""


@dataclass(frozen=True, kw_only=True)
class StrategyResult:
    name: str
    base: str
    """The name without what a grid varied."""
    varied: dict[str, Any]
    competes: bool
    """False for an arm of a grid that does not stand for its strategy, and is in no test."""
    seeds: list[int]
    estimates: dict[str, Estimate]
    """By metric."""
    per_seed: dict[str, dict[int, float]]
    """By metric and seed."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    task: str
    metric: str
    """The metric that decides; `metrics` are all that are reported."""
    metrics: list[str]
    labels: list[str]
    """Scored labels; `not_scored` gives the reason for each other one."""
    not_scored: dict[str, str]
    counts: dict[str, dict[str, Any]]
    """Test set by label: records, patients, positive ones, prevalence."""
    strategies: list[StrategyResult]
    """Highest metric first; the other arms of a grid follow the one that stands for them."""
    standing: list[str]
    """Which arm of a grid stands for its strategy, and why."""
    validation: dict[str, dict[str, int]]
    """Events in validation by label; {} for a regression."""
    pairs_of: dict[str, list[Difference]]
    """By metric: all pairs of competing strategies, adjusted for the pairs of one metric."""
    best_corrected: Estimate | None
    """The highest strategy's value without what it owes to being the highest."""
    by_label: list[LabelResult]
    """[] for a single label."""
    reference_models: list[ReferenceModel]
    baselines: list[Difference]
    """Strategy minus baseline."""
    gains: list[Difference]
    """Network with age and sex, minus age and sex."""
    gains_left_out: str
    """Why `gains` cannot be computed; else ""."""
    baselines_left_out: dict[str, str]
    probability_best: dict[str, float]
    margin: float
    non_inferior: list[dict[str, Any]]
    """Each strategy against the highest."""
    detectable: dict[str, float | None]
    """By pair, "a - b": what 80 % of such sweeps would find; None: no possible difference."""
    delong: list[dict[str, Any]]
    """Pairs of ensembles, by DeLong's test for clustered data."""
    efficiency: list[dict[str, Any]]
    """What more labelled patients are worth, by strategy with several shares of them."""
    selected: list[SelectedModel] = field(repr=False)
    cost: dict[str, Cost]
    problems: list[Problem]
    protocol: dict[str, Any]
    warnings: list[str]
    replicates: int
    seed: int
    runs: list[RunResult] = field(repr=False)

    @property
    def competing(self) -> list[StrategyResult]:
        return [strategy for strategy in self.strategies if strategy.competes]

    @property
    def pairs(self) -> list[Difference]:
        return self.pairs_of[self.metric]

    @property
    def metric_name(self) -> str:
        return self.name_of(self.metric)

    def name_of(self, metric: str) -> str:
        mean = "macro " if len(self.labels) > 1 else ""
        return mean + METRIC_NAMES[metric]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, under the names of `JSON_KEYS`. What differs when the same sweep is run again
        (time and cost) stands apart, under `varies`."""
        values = asdict(replace(self, runs=[], selected=[], cost={}))
        values["selected"] = {s.strategy: s.run.seed for s in self.selected}
        values["runs"] = [run.name for run in self.runs]
        del values["cost"]
        renamed = {JSON_KEYS.get(name, name): value for name, value in values.items()}
        return renamed | {"varies": {name: asdict(cost) for name, cost in self.cost.items()}}
