"""Which arm of a grid stands for its strategy on the test set.

Strategies compete on test; the arms of a grid are rows of their strategy. The one that stands for
it is chosen without the test set: of label fractions the largest, then the best on validation. So
the tests are a family of strategies, however fine the grid.
"""

from collections.abc import Sequence

import numpy as np

from hpc_ecg.comparison.results import RunResult, by_strategy
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.scores import labels_not_scored, point_values
from hpc_ecg.reporting.numbers import count, format_number

FRACTION = "data.label_fraction"


def choose_arms(runs: Sequence[RunResult], task: str, metric: str) -> dict[str, str]:
    """The arms that compete, with the reason for each ("" where a strategy has one arm)."""
    chosen = {}
    for base in dict.fromkeys(run.base for run in runs):
        arms = by_strategy(run for run in runs if run.base == base)
        fraction = {arm: float(group[0].varied.get(FRACTION, 1)) for arm, group in arms.items()}
        most = max(fraction.values())
        largest = [arm for arm in arms if fraction[arm] == most]
        why = [f"the largest share of the labels ({most:g})"] if len(largest) < len(arms) else []
        best = largest[0]
        if len(largest) > 1:
            seeds = set.intersection(*({run.seed for run in arms[arm]} for arm in largest))
            score = {
                arm: np.mean(
                    [
                        _score(validation_of(run), task, metric)
                        for run in arms[arm]
                        if run.seed in seeds or not seeds
                    ]
                )
                for arm in largest
            }
            best = max(largest, key=lambda arm: score[arm])
            values = ", ".join(f"{arm} {format_number(float(score[arm]))}" for arm in largest)
            why.append(f"the highest {METRIC_NAMES[metric]} on validation ({values})")
        intro = f"Of {count(len(arms), 'arm')} of {base}, {best} stands for it on the test set"
        chosen[best] = f"{intro}: {' and '.join(why)}." if why else ""
    return chosen


def validation_of(run: RunResult) -> Predictions:
    return read_predictions(run.folder.predictions / "valid.parquet")


def _score(valid: Predictions, task: str, metric: str) -> float:
    skip = labels_not_scored(valid, task)
    scored = [k for k, name in enumerate(valid.labels) if name not in skip]
    return float(np.mean([point_values(valid, k, task)[metric] for k in scored]))
