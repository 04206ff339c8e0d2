"""Which arm of a grid stands for its strategy on the test set.

Strategies compete on test; the arms of a grid are rows of their strategy. The one that stands for
it is chosen without the test set: of label fractions the largest, then the best on validation. So
the tests are a family of strategies, however fine the grid.
"""

from collections.abc import Sequence

import numpy as np

from hpc_ecg.comparison.results import RunResult, by_strategy
from hpc_ecg.evaluation.events import events_by_label
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.evaluation.predictions import read_predictions
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
            score = {}
            for arm in largest:
                group = [run for run in arms[arm] if run.seed in seeds or not seeds]
                score[arm] = float(np.mean([_score(run, task, metric) for run in group]))
            best = max(largest, key=score.__getitem__)
            values = ", ".join(f"{arm} {format_number(score[arm])}" for arm in largest)
            why.append(f"the highest {METRIC_NAMES[metric]} on validation ({values})")
        intro = f"Of {count(len(arms), 'arm')} of {base}, {best} stands for it on the test set"
        chosen[best] = f"{intro}: {' and '.join(why)}." if why else ""
    return chosen


def validation_events(run: RunResult) -> dict[str, dict[str, int]]:
    """Events in validation by label; {} for a regression, or where its predictions are gone."""
    path = run.folder.predictions / "valid.parquet"
    return events_by_label(read_predictions(path)) if path.exists() else {}


def _score(run: RunResult, task: str, metric: str) -> float:
    valid = read_predictions(run.folder.predictions / "valid.parquet")
    skip = labels_not_scored(valid, task)
    scored = [k for k, name in enumerate(valid.labels) if name not in skip]
    return float(np.mean([point_values(valid, k, task)[metric] for k in scored]))
