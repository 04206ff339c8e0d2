"""Where there are several labels: the strategies on each of them, which their mean hides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hpc_ecg.comparison.scoring import Scorer, Scores, estimate_strategy, group_by_strategy
from hpc_ecg.evaluation.comparisons import (
    ALPHA,
    Difference,
    Estimate,
    SeedScores,
    compare_strategies,
    holm,
)


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    label: str
    estimates: dict[str, dict[str, Estimate]]
    """By strategy and metric."""
    pairs: list[Difference]
    """In the deciding metric; Holm's correction over the pairs of all labels."""

    @property
    def best(self) -> str:
        """The strategy with the highest value of the deciding metric."""
        return max(self.estimates, key=lambda name: next(iter(self.estimates[name].values())).value)

    def worse(self) -> list[str]:
        """Whom the best is better than; nobody where one seed cannot tell how training varies."""
        found = []
        for pair in self.pairs:
            sign = {pair.first: 1, pair.second: -1}.get(self.best, 0)
            is_sure = pair.p_holm < ALPHA and pair.estimate.includes_seeds
            if is_sure and sign * pair.estimate.value > 0:
                found.append(pair.second if sign > 0 else pair.first)
        return found


def compare_by_label(
    scorer: Scorer,
    keys: Sequence[tuple[str, int]],
    scored: Sequence[Mapping[str, Scores]],
    order: Sequence[str],
) -> list[LabelResult]:
    """`scored`: by label, of the run of each of `keys` (strategy, seed). [] for a single label."""
    if len(scorer.label_names) < 2:
        return []
    found = []
    for label in scorer.label_names:
        scores = group_by_strategy(scorer.metrics, keys, [own[label] for own in scored])
        found.append(_of_label(scorer, label, scores, order))
    adjusted = iter(holm([pair.estimate.p_value for own in found for pair in own.pairs]))
    return [
        replace(own, pairs=[replace(pair, p_holm=next(adjusted)) for pair in own.pairs])
        for own in found
    ]


def _of_label(
    scorer: Scorer, label: str, scores: dict[str, dict[str, SeedScores]], order: Sequence[str]
) -> LabelResult:
    num_patients = scorer.patients_behind([label])
    deciding = scores[scorer.metrics[0]]
    return LabelResult(
        label=label,
        estimates={
            name: {m: estimate_strategy(scores[m][name], num_patients, m) for m in scorer.metrics}
            for name in order
        },
        pairs=compare_strategies({name: deciding[name] for name in order}, num_patients),
    )
