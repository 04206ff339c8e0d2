"""The model that each strategy would hand on, and what the model's evaluation says.

Seeds serve to judge a strategy; only one model is used afterwards. It is the seed with the best
score on validation, never the one that did best on the test set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_ecg.comparison.results import RunResult, by_strategy
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    run: RunResult
    evaluation: dict[str, Any]
    """evaluation.json of that run; {} if there is none."""
    points: dict[str, Any]
    """best/operating_point.json."""

    @property
    def strategy(self) -> str:
        return self.run.strategy

    def label(self, name: str) -> dict[str, Any]:
        """The part of evaluation.json on one label; {} if there is none."""
        return self.evaluation.get("labels", {}).get(name, {})

    def at_thresholds(self, name: str) -> dict[str, dict[str, Any]]:
        """Rates on the test set at each threshold that was fitted on validation, by method."""
        points = self.label(name).get("at_threshold", {})
        return {m: p for m, p in points.items() if isinstance(p, dict) and "threshold" in p}


def select_models(runs: list[RunResult]) -> list[SelectedModel]:
    """Select one model per strategy, in the order of the runs; the first of equal scores."""
    best = [
        max(group, key=lambda run: validation_score(run.finished))
        for group in by_strategy(runs).values()
    ]
    return [
        SelectedModel(
            run=run,
            evaluation=read_optional(run.folder.evaluation),
            points=read_optional(run.folder.best / "operating_point.json"),
        )
        for run in best
    ]


def validation_score(finished: Mapping[str, Any]) -> float:
    """The score in finished.json, as a number of which higher is better; minus infinity if nothing
    was trained and so nothing was scored."""
    score = finished.get("best_score")
    if score is None:
        return float("-inf")
    return -score if finished.get("metric") == "loss" else score
