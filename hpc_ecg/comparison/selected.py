"""The model of each strategy that one would take home, and what its own evaluation says.

Seeds are for judging a strategy; only one model is used afterwards. It is the seed with the best
score on validation, never the one that did best on the test set.
"""

from dataclasses import dataclass
from typing import Any

from hpc_ecg.comparison.results import RunResult
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class Chosen:
    strategy: str
    cell: RunResult
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


def choose(cells: list[RunResult]) -> list[Chosen]:
    """One model per strategy, in the order of the cells; of equal scores the first seed."""
    by_strategy: dict[str, list[RunResult]] = {}
    for cell in cells:
        by_strategy.setdefault(cell.strategy, []).append(cell)
    return [_choose(strategy, own) for strategy, own in by_strategy.items()]


def _choose(strategy: str, cells: list[RunResult]) -> Chosen:
    def rank(cell: RunResult) -> float:
        score = cell.finished.get("best_score")
        if score is None:
            return float("-inf")
        return -score if cell.finished.get("metric") == "loss" else score

    best = max(cells, key=rank)
    return Chosen(
        strategy=strategy,
        cell=best,
        score=best.finished.get("best_score"),
        metric=str(best.finished.get("metric", "")),
        evaluation=read_optional(best.run.evaluation),
        points=read_optional(best.run.best / "operating_point.json"),
    )
