"""What more labelled patients are worth: the deciding metric's gain per doubling of them.

The slope of a straight line over log2 of the share, fitted for each seed (which draws shares of its
own); the mean over seeds has the interval of evaluation/comparisons.py, for the chance of test
patients and of seeds. Beyond the largest share, the line promises too much where the curve
flattens, so its bend is tested (the quadratic part beside the line).
"""

# F shares, S seeds, R replicates

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import StrategyResult
from hpc_ecg.comparison.grid_arms import FRACTION
from hpc_ecg.evaluation.comparisons import SeedScores, estimate_mean
from hpc_ecg.reporting.numbers import format_number, format_with_interval

GAIN, LEAST_SHARES = 0.01, 3


def label_efficiency(
    strategies: Sequence[StrategyResult], scores: Mapping[str, SeedScores], num_patients: int
) -> list[dict[str, Any]]:
    """By strategy with three shares and two common seeds: the slope; by what factor more patients
    than in the largest share gain 0.01, along the line (None unless the slope's interval is above
    0, or where the curve is seen to flatten); a text."""
    found = []
    for base in dict.fromkeys(s.base for s in strategies):
        arms = [s for s in strategies if s.base == base and list(s.varied) == [FRACTION]]
        seeds = sorted(set.intersection(*(set(s.seeds) for s in arms))) if arms else []
        if len(arms) < LEAST_SHARES or len(seeds) < 2:
            continue
        x_F = np.log2([float(s.varied[FRACTION]) for s in arms])
        x_F -= x_F.mean()
        scores_F = [scores[s.name].arrays(seeds) for s in arms]
        square_F = x_F**2 - (x_F**2).mean()
        bend_F = square_F - x_F * (x_F @ square_F) / (x_F @ x_F)
        fits = []
        for of_F in (x_F, bend_F):
            value_S, replicate_SR = (
                np.tensordot(of_F / (of_F @ of_F), np.stack(part), 1)
                for part in zip(*scores_F, strict=True)
            )
            fits.append(estimate_mean(value_S, replicate_SR, num_patients))
        e, bend = fits
        slope, factor = {"value": e.value, "low": e.low, "high": e.high}, None
        needs = f"how many more patients +{GAIN} needs cannot be said"
        if e.low > 0 and bend.high < 0:
            least = format_number(2 ** min(GAIN / e.high, 1000))
            needs = f"the gain shrinks, and +{GAIN} needs more than {least} times the largest share"
        elif e.low > 0:
            gains = {"value": e.value, "low": e.high, "high": e.low}
            factor = {end: float(2 ** min(GAIN / gain, 1000)) for end, gain in gains.items()}
            needs = f"+{GAIN} needs {format_with_interval(factor)} times those of the largest share"
            needs += " if the line goes on, and more if the curve flattens"
        text = f"{base}: {format_with_interval(slope)} for each doubling of the training patients"
        found.append(
            {"strategy": base, "slope": slope, "factor": factor, "text": f"{text}; {needs}"}
        )
    return found
