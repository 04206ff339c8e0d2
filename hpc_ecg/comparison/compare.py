"""Compare the strategies of a sweep: finished runs in, a `Comparison` out.

One metric decides: AUROC (its mean over labels where there are several), or R² for regression,
because it has no unit and higher is better. A strategy's value is the mean over its seeds. Its
interval, and that of each difference, hold the chance of patients and of seeds
(evaluation/comparisons.py).
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.comparison.by_label import compare_by_label
from hpc_ecg.comparison.comparison import Comparison, StrategyResult
from hpc_ecg.comparison.cost import total_costs
from hpc_ecg.comparison.grid_arms import choose_arms, validation_events
from hpc_ecg.comparison.label_efficiency import label_efficiency
from hpc_ecg.comparison.reference_models import (
    average_seeds,
    compare_with_baselines,
    estimate_reference_models,
    gains_over_age_sex,
    read_baselines,
    read_soups,
    score_reference_models,
)
from hpc_ecg.comparison.report_warnings import collect_warnings
from hpc_ecg.comparison.results import Problem, RunResult, by_strategy, read_results
from hpc_ecg.comparison.scoring import (
    Scorer,
    against_best,
    detectable,
    estimate_from,
    group_by_strategy,
)
from hpc_ecg.comparison.selected import select_models
from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.delong import delong_difference
from hpc_ecg.evaluation.families import compare_strategies, correct_best, probability_best
from hpc_ecg.evaluation.metrics import RANKING_METRICS, is_weighted
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.log import logger
from hpc_ecg.sweep.arms import LEFT_OUT_SITE
from hpc_ecg.sweep.folder import read_note
from hpc_ecg.sweep.protocol import protocol_note, read_margin
from hpc_ecg.training.open_run import UNVERIFIED


def compare(
    sweep_dir: Path, replicates: int = 2000, seed: int = 0, margin: float | None = None
) -> Comparison:
    """Compare all strategies of a sweep, on `replicates` draws of patients; the margin of
    non-inferiority is by default the protocol's.

    Raises `ValueError` if no run is finished, or if runs were tested on different records.
    """
    # 1. read the finished runs, and the reasons why others are left out
    sweep_dir = Path(sweep_dir)
    margin = read_margin(sweep_dir, margin)
    runs, problems = _read_finished(sweep_dir)

    # 2. score every run on the same draws of patients
    scorer = Scorer.for_test_set(runs[0].test, replicates, seed)
    scorer = replace(scorer, fixed={run.strategy for run in runs if run.is_fixed})
    keys = [(run.strategy, run.seed) for run in runs]
    scored = dict(zip(keys, scorer.score_labels([run.test for run in runs]), strict=True))
    means = {key: scorer.mean(by_label) for key, by_label in scored.items()}
    scores = group_by_strategy(scorer.metrics, means, scorer.fixed)

    # 3. rank the strategies, and compare all pairs
    metric = scorer.metrics[0]
    standing = choose_arms(runs, scorer.task, metric)
    strategies = [
        _summarize(group, scores, scorer, name in standing)
        for name, group in by_strategy(runs).items()
    ]
    strategies.sort(key=lambda s: (-s.estimates[metric].value, s.name))
    competing = {s.name: s.base for s in strategies if s.competes}
    strategies.sort(key=lambda s: ([*competing.values()].index(s.base), not s.competes))
    order = [s.name for s in strategies]
    ranked = {m: {name: scores[m][name] for name in competing} for m in scorer.metrics}
    pairs_of = {
        m: compare_strategies(ranked[m], scorer.num_patients, metric=m) for m in scorer.metrics
    }
    in_order = sorted(runs, key=lambda run: order.index(run.strategy))

    # 4. compare with ensembles, soups and baselines
    ensembles = average_seeds(in_order)
    baselines = read_baselines(sweep_dir / "baselines", scorer.test)
    references = {("ensemble", name): model for name, model in ensembles.items()}
    references |= {("soup", name): model for name, model in read_soups(in_order, sweep_dir).items()}
    references |= {("baseline", name): model for name, model in baselines.test.items()}
    reference_scores = score_reference_models(scorer, references)
    first_runs = [run for run in in_order if run.strategy in competing]
    gains, gains_left_out = gains_over_age_sex(scorer, first_runs, baselines, reference_scores)

    comparison = Comparison(
        task=scorer.task,
        metric=metric,
        metrics=scorer.metrics,
        labels=scorer.label_names,
        not_scored=scorer.not_scored,
        counts=scorer.counts,
        strategies=strategies,
        standing=[why for why in standing.values() if why],
        validation=validation_events(runs[0]),
        pairs_of=pairs_of,
        best_corrected=correct_best(
            ranked[metric],
            strategies[0].estimates[metric],
            scorer.num_patients,
            lowest=0.0 if metric in RANKING_METRICS else -np.inf,
        ),
        by_label=compare_by_label(scorer, scored, list(competing)),
        reference_models=estimate_reference_models(scorer, list(references), reference_scores),
        baselines=compare_with_baselines(scorer, ranked[metric], reference_scores),
        gains=gains,
        gains_left_out=gains_left_out,
        baselines_left_out=baselines.left_out,
        probability_best=probability_best(ranked[metric], scorer.num_patients),
        margin=margin,
        non_inferior=against_best(pairs_of[metric], margin),
        detectable={
            f"{pair.first} - {pair.second}": detectable(pair, metric)
            for pair in pairs_of[metric]
            if pair.estimate.includes_seeds
        },
        delong=_compare_by_delong(scorer, {n: e for n, e in ensembles.items() if n in competing}),
        efficiency=label_efficiency(strategies, scores[metric], scorer.num_patients),
        selected=select_models(in_order),
        cost=total_costs(runs),
        problems=problems,
        protocol=protocol_note(sweep_dir, margin, metric, [run.name for run in runs]),
        warnings=[],
        replicates=replicates,
        seed=seed,
        runs=runs,
    )
    note = [text] if (text := read_note(sweep_dir)) else []
    return replace(comparison, warnings=note + collect_warnings(comparison))


def _read_finished(sweep_dir: Path) -> tuple[list[RunResult], list[Problem]]:
    runs, problems = read_results(sweep_dir)
    if not runs:
        reasons = "; ".join({p.reason: f"{p.name} {p.reason}" for p in problems[:3]}.values())
        nothing = "there is neither a sweep.yaml nor a run; give the folder that a sweep made"
        raise ValueError(f"{sweep_dir}: no finished run to compare ({reasons or nothing})")
    if any(LEFT_OUT_SITE in run.varied for run in runs):
        text = "leaves out one site at a time, so its tests differ"
        raise ValueError(f"{sweep_dir} {text}: hpc-ecg report summarizes each strategy over sites")
    if unverified := [run.name for run in runs if not run.is_verified]:
        logger.warning(UNVERIFIED, ", ".join(unverified))
    return runs, problems


def _summarize(
    runs: list[RunResult],
    scores: Mapping[str, Mapping[str, SeedScores]],
    scorer: Scorer,
    competes: bool,
) -> StrategyResult:
    name = runs[0].strategy
    return StrategyResult(
        name=name,
        base=runs[0].base,
        varied=runs[0].varied,
        competes=competes,
        seeds=[run.seed for run in runs],
        estimates={
            metric: estimate_from(seeds[name], scorer.num_patients, metric)
            for metric, seeds in scores.items()
        },
        per_seed={metric: seeds[name].value for metric, seeds in scores.items()},
    )


def _compare_by_delong(
    scorer: Scorer, ensembles: Mapping[str, Predictions]
) -> list[dict[str, Any]]:
    """All pairs of ensembles by DeLong's test for clustered data; [] for several labels, or where
    one patient alone has an outcome."""
    if scorer.task == "regression" or len(scorer.label_names) != 1 or scorer.num_patients < 2:
        return []
    k = scorer.test.labels.index(scorer.label_names[0])
    if is_weighted(scorer.test.weights(k)):  # it takes no weights: the bootstrap stands for it
        return []
    label_N = scorer.test.label_NK[:, k]
    is_known_N = ~np.isnan(label_N)
    logits = {name: model.logit_NK[is_known_N, k] for name, model in ensembles.items()}
    label_N, patient_N = label_N[is_known_N], scorer.test.patient_N[is_known_N]
    return [
        {"first": a, "second": b} | delong_difference(label_N, logits[a], logits[b], patient_N)
        for a, b in combinations(logits, 2)
    ]
