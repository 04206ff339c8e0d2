"""The model of each strategy that one would take home, and what its own evaluation says.

Seeds are for judging a strategy; only one model is used afterwards. It is the seed with the best
score on validation, never the one that did best on the test set.
"""

from dataclasses import dataclass
from typing import Any

from hpc_ecg.comparison.results import RunResult
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    strategy: str
    run: RunResult
    score: float | None
    """On validation; None if nothing was trained and so nothing was chosen."""
    metric: str
    evaluation: dict[str, Any]
    """evaluation.json of that run; {} if it is not there."""
    points: dict[str, Any]
    """best/operating_point.json."""

    def label(self, name: str) -> dict[str, Any]:
        """What evaluation.json says of one label; {} if nothing."""
        return self.evaluation.get("labels", {}).get(name, {})

    def at_thresholds(self, name: str) -> dict[str, dict[str, Any]]:
        """What happens at each threshold that was fitted on validation, by method."""
        points = self.label(name).get("at_threshold", {})
        return {m: p for m, p in points.items() if isinstance(p, dict) and "threshold" in p}


def select_models(runs: list[RunResult]) -> list[SelectedModel]:
    """One model per strategy, in the order of the runs; of equal scores the first seed."""
    by_strategy: dict[str, list[RunResult]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    return [_select(strategy, own) for strategy, own in by_strategy.items()]


def _select(strategy: str, runs: list[RunResult]) -> SelectedModel:
    def rank(run: RunResult) -> float:
        score = run.finished.get("best_score")
        if score is None:
            return float("-inf")
        return -score if run.finished.get("metric") == "loss" else score

    best = max(runs, key=rank)
    return SelectedModel(
        strategy=strategy,
        run=best,
        score=best.finished.get("best_score"),
        metric=str(best.finished.get("metric", "")),
        evaluation=read_optional(best.folder.evaluation),
        points=read_optional(best.folder.best / "operating_point.json"),
    )
