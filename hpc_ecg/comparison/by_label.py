"""Compare the strategies on each of several labels, which the mean over labels hides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_ecg.comparison.scoring import (
    RunKey,
    Scorer,
    Scores,
    estimate_from,
    group_by_strategy,
    is_better,
    pairs_with,
)
from hpc_ecg.evaluation.comparisons import Difference, Estimate
from hpc_ecg.evaluation.families import compare_strategies


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    label: str
    estimates: dict[str, dict[str, Estimate]]
    """By strategy and metric; the first metric decides."""
    pairs: list[Difference]
    """In the deciding metric, adjusted for the pairs of all labels."""

    def worse(self) -> list[str]:
        """Strategies that the best one beats."""
        best = max(self.estimates, key=lambda name: next(iter(self.estimates[name].values())).value)
        pairs = pairs_with(self.pairs, best)
        return [pair.second for pair in pairs if is_better(pair)]


def compare_by_label(
    scorer: Scorer, scored: Mapping[RunKey, Mapping[str, Scores]], order: Sequence[str]
) -> list[LabelResult]:
    """Compare all pairs on each label; [] for a single label.

    `scored` holds each run's scores by label; `order` is that of the strategies.
    """
    if len(scorer.label_names) < 2:
        return []
    return [
        _compare_on_label(
            scorer, label, {run: scores[label] for run, scores in scored.items()}, order
        )
        for label in scorer.label_names
    ]


def _compare_on_label(
    scorer: Scorer, label: str, scored: Mapping[RunKey, Scores], order: Sequence[str]
) -> LabelResult:
    num_patients = scorer.num_patients_for([label])
    scores = group_by_strategy(scorer.metrics, scored, scorer.fixed)
    metric = scorer.metrics[0]
    return LabelResult(
        label=label,
        estimates={
            name: {m: estimate_from(scores[m][name], num_patients, m) for m in scorer.metrics}
            for name in order
        },
        pairs=compare_strategies(
            {name: scores[metric][name] for name in order},
            num_patients,
            len(scorer.label_names),
            metric,
        ),
    )
