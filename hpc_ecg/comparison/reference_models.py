"""What stands beside the strategies in the table: ensembles, weight soups, and baselines that need
no network; and what a network adds to age and sex.

An ensemble is the mean of the seeds' probabilities, a soup the mean of their weights: one model
each, so their intervals hold the chance of the patients alone. A baseline has no seed either; in
a difference to it the seeds are those of the strategy.
"""

# N records, S seeds, R replicates

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpc_ecg.atomic_io import read_json
from hpc_ecg.comparison.baselines import CONSTANTS, adds_to_age_sex
from hpc_ecg.comparison.results import RunResult
from hpc_ecg.comparison.scoring import Scorer, Scores, group_by_strategy
from hpc_ecg.evaluation.comparisons import (
    Difference,
    Estimate,
    SeedScores,
    estimate_mean,
    holm,
)
from hpc_ecg.evaluation.predictions import Predictions, read_predictions

BASELINES = {
    "prevalence": "prevalence",
    "training_mean": "mean of the training split",
    "age_sex": "age and sex",
    "rr_irregularity": "beat-to-beat irregularity",
}
Row = tuple[str, str]
"""Kind and name of a reference model."""


@dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    """A row that is no strategy."""

    name: str
    kind: str
    """ensemble, soup or baseline."""
    estimates: dict[str, Estimate]
    """By metric; {} for one that ranks nobody (the prevalence)."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What SWEEP/baselines/ holds: predictions by name, and why others are not there."""

    test: dict[str, Predictions]
    valid: dict[str, Predictions]
    left_out: dict[str, str]


def read_baselines(folder: Path, test: Predictions) -> Baselines:
    """Only those of the very records that the strategies are tested on."""
    if not (folder / "baselines.json").exists():
        return Baselines(test={}, valid={}, left_out={})
    note = read_json(folder / "baselines.json")
    found = Baselines(test={}, valid={}, left_out=dict(note["left_out"]))
    for name in note["made"]:
        own = read_predictions(folder / name / "test.parquet").sorted()
        if not np.array_equal(own.record_N, test.record_N):
            found.left_out[name] = "it was made for another test set; make the report again"
            continue
        found.test[name] = own
        found.valid[name] = read_predictions(folder / name / "valid.parquet").sorted()
    return found


def ensembles(runs: Sequence[RunResult]) -> dict[str, Predictions]:
    """The mean prediction of each strategy's seeds; strategies of one seed have none."""
    by_strategy: dict[str, list[Predictions]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run.test)
    return {name: _mean(own) for name, own in by_strategy.items() if len(own) > 1}


def soups(runs: Sequence[RunResult], sweep_dir: Path) -> dict[str, Predictions]:
    """Those that the sweep made and that predict the same records."""
    found = {}
    for strategy in dict.fromkeys(run.strategy for run in runs):
        path = sweep_dir / strategy / "soup" / "predictions.parquet"
        if path.exists():
            own = read_predictions(path).sorted()
            if np.array_equal(own.record_N, runs[0].test.record_N):
                found[strategy] = own
    return found


def rank_reference_models(
    scorer: Scorer, kinds: dict[str, dict[str, Predictions]], scored: Mapping[Row, Scores]
) -> list[ReferenceModel]:
    """`kinds`: predictions by kind and name; `scored`: of `score_reference_models`."""
    reference_models = []
    for kind, by_name in kinds.items():
        for name in by_name:
            estimates = {}
            if (kind, name) in scored:
                values, replicates = scored[kind, name]
                estimates = {
                    metric: estimate_mean(
                        np.array([values[metric]]),
                        replicates[metric][None],
                        scorer.num_patients,
                        metric,
                    )
                    for metric in scorer.metrics
                }
            reference_models.append(
                ReferenceModel(name=BASELINES.get(name, name), kind=kind, estimates=estimates)
            )
    return reference_models


def score_reference_models(
    scorer: Scorer, kinds: dict[str, dict[str, Predictions]]
) -> dict[Row, Scores]:
    """By kind and name, on the same draws as the strategies; without those that rank nobody."""
    ranked = {
        (kind, name): own
        for kind, by_name in kinds.items()
        for name, own in by_name.items()
        if name not in CONSTANTS
    }
    return dict(zip(ranked, scorer.score_all(list(ranked.values())), strict=True))


def against_baselines(
    scorer: Scorer, strategies: dict[str, SeedScores], scored: Mapping[Row, Scores]
) -> list[Difference]:
    """Each strategy minus each baseline that ranks, in the deciding metric; Holm over all."""
    pairs = [
        (strategy, BASELINES[name], _minus(scorer, scores, own))
        for (kind, name), own in scored.items()
        if kind == "baseline"
        for strategy, scores in strategies.items()
    ]
    return _corrected(pairs, strategies)


def gains_over_age_sex(
    scorer: Scorer, runs: Sequence[RunResult], baselines: Baselines, scored: Mapping[Row, Scores]
) -> tuple[list[Difference], str]:
    """Network with age and sex, minus age and sex alone: of each label a regression of both,
    fitted on validation; and why it cannot be said, where validation cannot fit one. Neither
    where the table knew no age and no sex."""
    if "age_sex" not in baselines.test:
        return [], ""
    try:
        joined = [_with_age_sex(scorer, run, baselines) for run in runs]
    except ValueError as error:
        return [], str(error)
    keys = [(f"{run.strategy} + age and sex", run.seed) for run in runs]
    both = group_by_strategy(scorer.metrics, keys, scorer.score_all(joined))[scorer.metrics[0]]
    alone = scored["baseline", "age_sex"]
    pairs = [(name, "age and sex", _minus(scorer, own, alone)) for name, own in both.items()]
    return _corrected(pairs, both), ""


def _with_age_sex(scorer: Scorer, run: RunResult, baselines: Baselines) -> Predictions:
    valid, test = baselines.valid["age_sex"], baselines.test["age_sex"]
    own = read_predictions(run.folder.predictions / "valid.parquet").sorted()
    logit_NK = run.test.logit_NK.copy()
    for name in scorer.label_names:
        k = test.labels.index(name)
        logit_NK[:, k] = adds_to_age_sex(own, run.test, valid, test, k)
    return replace(run.test, logit_NK=logit_NK)


def _corrected(
    pairs: list[tuple[str, str, Estimate]], scores: dict[str, SeedScores]
) -> list[Difference]:
    adjusted = holm([estimate.p_value for *_, estimate in pairs])
    return [
        Difference(
            first=first, second=second, seeds=sorted(scores[first].value), estimate=e, p_holm=p
        )
        for (first, second, e), p in zip(pairs, adjusted, strict=True)
    ]


def _minus(scorer: Scorer, scores: SeedScores, fixed: Scores) -> Estimate:
    """In the deciding metric; `fixed` has no seed and stands against each one."""
    metric = scorer.metrics[0]
    value, replicate_R = fixed[0][metric], fixed[1][metric]
    seeds = sorted(scores.value)
    value_S = np.array([scores.value[s] - value for s in seeds])
    replicate_SR = np.stack([scores.replicate_R[s] - replicate_R for s in seeds])
    return estimate_mean(value_S, replicate_SR, scorer.num_patients)


def _mean(predictions: list[Predictions]) -> Predictions:
    """Of probabilities, or of values where there are none."""
    first = predictions[0]
    if first.probability_NK is None:
        return replace(first, logit_NK=np.mean([p.logit_NK for p in predictions], axis=0))
    # log-odds of the mean probability, without 1 - p: p ties near 1
    log_p = np.mean(np.exp([-np.logaddexp(0, -p.logit_NK) for p in predictions]), axis=0)
    log_q = np.mean(np.exp([-np.logaddexp(0, p.logit_NK) for p in predictions]), axis=0)
    return replace(first, logit_NK=np.log(log_p) - np.log(log_q), probability_NK=log_p)
