"""The comparison of a sweep: finished runs in, strategies side by side and a verdict out.

One metric decides: AUROC (its mean over labels where there are several), R² for regression, because
it has no unit and higher is better. Each strategy's value is the mean over its seeds; its interval,
and that of each difference, hold the chance of patients and of seeds (evaluation/comparisons.py).
The verdict (verdict.py) is written from these numbers only.
"""

# S seeds, R replicates

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.comparison.by_label import compare_by_label
from hpc_ecg.comparison.comparison import Comparison, StrategyResult
from hpc_ecg.comparison.cost import total_costs
from hpc_ecg.comparison.reference_models import (
    against_baselines,
    ensembles,
    gains_over_age_sex,
    rank_reference_models,
    read_baselines,
    score_reference_models,
    soups,
)
from hpc_ecg.comparison.report_warnings import collect_warnings
from hpc_ecg.comparison.results import RunResult, read_results
from hpc_ecg.comparison.scoring import Scorer, estimate_strategy, group_by_strategy
from hpc_ecg.comparison.selected import select_models
from hpc_ecg.evaluation.comparisons import (
    Difference,
    SeedScores,
    compare_strategies,
    detectable_difference,
    non_inferior,
    probability_best,
)
from hpc_ecg.evaluation.delong import delong_difference
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.sweep.folder import read_note

MARGIN = 0.02
"""What non-inferiority is judged by, in the deciding metric, unless another is stated."""


def compare(
    sweep_dir: Path, replicates: int = 2000, seed: int = 0, margin: float = MARGIN
) -> Comparison:
    """Raises `ValueError` when no run is finished, or when runs were tested on different sets."""
    sweep_dir = Path(sweep_dir)
    if not 0 < margin < 1:
        raise ValueError(f"the margin must be between 0 and 1, got {margin}; {MARGIN} is usual")

    # 1. read what is finished, and say of the rest why it is not
    runs, problems = read_results(sweep_dir)
    if not runs:
        reasons = "; ".join(f"{p.strategy}/seed-{p.seed} {p.reason}" for p in problems[:3])
        nothing = "no sweep.yaml and no runs are there; give the folder that a sweep made"
        raise ValueError(f"{sweep_dir}: no finished run to compare ({reasons or nothing})")

    # 2. score every run on the same draws of patients
    scorer = Scorer.of(runs[0].test, replicates, seed)
    keys = [(run.strategy, run.seed) for run in runs]
    scored = scorer.score_labels_all([run.test for run in runs])
    scores = group_by_strategy(scorer.metrics, keys, [scorer.mean(own) for own in scored])
    metric = scorer.metrics[0]

    # 3. estimate each strategy and compare all pairs
    strategies = [_result(name, runs, scores, scorer) for name in scores[metric]]
    strategies.sort(key=lambda s: (-s.estimates[metric].value, s.name))
    order = [s.name for s in strategies]
    pairs_of = {
        m: compare_strategies({name: scores[m][name] for name in order}, scorer.num_patients)
        for m in scorer.metrics
    }

    # 4. what else could be used: ensembles, soups, and baselines without a network
    baselines = read_baselines(sweep_dir / "baselines", scorer.test)
    kinds = {
        "ensemble": _in(order, ensembles(runs)),
        "soup": _in(order, soups(runs, sweep_dir)),
        "baseline": baselines.test,
    }
    scored_reference_models = score_reference_models(scorer, kinds)
    in_order = sorted(runs, key=lambda c: order.index(c.strategy))
    gains, gains_left_out = gains_over_age_sex(scorer, in_order, baselines, scored_reference_models)
    comparison = Comparison(
        task=scorer.task,
        metric=metric,
        metrics=scorer.metrics,
        labels=scorer.label_names,
        not_scored=scorer.not_scored,
        counts=scorer.counts,
        strategies=strategies,
        pairs_of=pairs_of,
        by_label=compare_by_label(scorer, keys, scored, order),
        reference_models=rank_reference_models(scorer, kinds, scored_reference_models),
        baselines=against_baselines(
            scorer, {name: scores[metric][name] for name in order}, scored_reference_models
        ),
        gains=gains,
        gains_left_out=gains_left_out,
        baselines_left_out=baselines.left_out,
        probability_best=probability_best(scores[metric], scorer.num_patients),
        margin=margin,
        non_inferior=_non_inferior(pairs_of[metric], order, margin),
        detectable={
            f"{pair.first} - {pair.second}": detectable_difference(pair.estimate)
            for pair in pairs_of[metric]
        },
        delong=_delong(scorer, kinds["ensemble"]),
        selected=sorted(select_models(runs), key=lambda c: order.index(c.strategy)),
        cost=total_costs(runs),
        problems=problems,
        warnings=[],
        replicates=replicates,
        seed=seed,
        runs=runs,
    )
    note = [text] if (text := read_note(sweep_dir)) else []
    return replace(comparison, warnings=note + collect_warnings(comparison))


def _in(order: list[str], predictions: dict[str, Predictions]) -> dict[str, Predictions]:
    return {name: predictions[name] for name in order if name in predictions}


def _result(
    name: str,
    runs: list[RunResult],
    scores: dict[str, dict[str, SeedScores]],
    scorer: Scorer,
) -> StrategyResult:
    own = [run for run in runs if run.strategy == name]
    estimates, per_seed = {}, {}
    for metric, by_strategy in scores.items():
        estimates[metric] = estimate_strategy(by_strategy[name], scorer.num_patients, metric)
        per_seed[metric] = by_strategy[name].value
    return StrategyResult(
        name=name,
        base=own[0].base,
        varied=own[0].varied,
        seeds=[c.seed for c in own],
        estimates=estimates,
        per_seed=per_seed,
    )


def _non_inferior(pairs: list[Difference], order: list[str], margin: float) -> list[dict[str, Any]]:
    """Of each strategy against the one with the highest value."""
    found = []
    for pair in pairs:
        if order[0] in (pair.first, pair.second):
            seen = pair if pair.second == order[0] else flipped(pair)
            found.append({"strategy": seen.first, "to": order[0]} | non_inferior(seen, margin))
    return found


def flipped(pair: Difference) -> Difference:
    """The same difference, seen from the other side."""
    e = pair.estimate
    turned = replace(e, value=-e.value, low=-e.high, high=-e.low)
    return replace(pair, first=pair.second, second=pair.first, estimate=turned)


def _delong(scorer: Scorer, together: Mapping[str, Predictions]) -> list[dict[str, Any]]:
    if scorer.task == "regression" or len(scorer.label_names) != 1:
        return []
    k = scorer.test.labels.index(scorer.label_names[0])
    label_N = scorer.test.label_NK[:, k]
    known_N = ~np.isnan(label_N)
    patient_N = scorer.test.patient_N[known_N]
    return [
        {"first": a, "second": b}
        | delong_difference(
            label_N[known_N],
            together[a].logit_NK[known_N, k],
            together[b].logit_NK[known_N, k],
            patient_N,
        )
        for a, b in combinations(together, 2)
    ]
