"""Families of differences: the scores of strategies and fixed models in, p-values and intervals
that hold for all differences of a family at once out.

Several strategies are judged by max_t.py, on the means over all seeds that each has. Two strategies
with the same seeds are paired by seed (comparisons.py), as is one strategy with fixed models; there
Holm's correction and Bonferroni's intervals are used.

Every pair of strategies is in the family, not "each against the best": which strategy is best is
read from the same data, and a test against the maximum, as if it had been named beforehand, favours
it. Every pair that one may end up looking at is in the family, so the choice costs nothing more.
"""

# K or A strategies, S and T seeds, R replicates, M differences

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import special

from hpc_ecg.evaluation.comparisons import (
    Difference,
    Estimate,
    SeedScores,
    detectable_difference,
    estimate_mean,
    holm,
    patient_covariance,
    split_covariance,
    two_sided_p,
)
from hpc_ecg.evaluation.intervals import LEVEL, t_quantile
from hpc_ecg.evaluation.max_t import Means, bias_of_best, judge_family, variance_of
from hpc_ecg.evaluation.metrics import RANKING_METRICS, FloatArray

Pair = tuple[str, str]


def compare_strategies(
    scores: Mapping[str, SeedScores],
    num_patients: int,
    num_families: int = 1,
    metric: str | None = None,
) -> list[Difference]:
    """All pairs, the strategy with the higher mean first. For `num_patients` see estimate_mean."""
    mean = {name: np.mean(list(one.value.values())) for name, one in scores.items()}
    pairs = [(a, b) if mean[a] >= mean[b] else (b, a) for a, b in combinations(scores, 2)]
    return compare_family(scores, pairs, num_patients, num_families, metric)


def compare_family(
    scores: Mapping[str, SeedScores],
    pairs: Sequence[Pair],
    num_patients: int,
    num_families: int = 1,
    metric: str | None = None,
) -> list[Difference]:
    """Each pair's first minus its second, as one of so many families of the same question (such as
    one for each label), over which Bonferroni's correction is made.

    A strategy with a single seed is compared apart, on the chance of the patients alone
    (`includes_seeds` is False). Two strategies with the same seeds, or one with fixed models, are
    paired by seed, with Holm's correction and Bonferroni's intervals if there are several pairs.
    Intervals for a ranking `metric` end at -1 and 1.
    """
    known = [pair for pair in pairs if all(scores[name].includes_seeds for name in pair)]
    unknown = [pair for pair in pairs if pair not in known]
    varying = {name for pair in known for name in pair if not scores[name].is_fixed}
    seeds = {frozenset(scores[name].value) for name in varying}
    is_paired = len(varying) < 2 or (len(known) == 1 and len(seeds) == 1)
    judge = _judge_paired if is_paired else _judge_means
    judged = judge(scores, known, num_patients, num_families) if known else []
    judged += _judge_paired(scores, unknown, num_patients, num_families)
    if metric in RANKING_METRICS:
        judged = [within_bounds(one) for one in judged]
    return sorted(judged, key=lambda one: pairs.index((one.first, one.second)))


def within_bounds(pair: Difference) -> Difference:
    """Of a metric between 0 and 1: its intervals, cut at what a difference can be."""
    e = pair.estimate
    estimate = replace(e, low=max(e.low, -1.0), high=min(e.high, 1.0))
    return replace(pair, estimate=estimate, low=max(pair.low, -1.0), high=min(pair.high, 1.0))


def correct_best(
    scores: Mapping[str, SeedScores], best: Estimate, num_patients: int, lowest: float = -np.inf
) -> Estimate | None:
    """The highest mean, corrected for having been chosen for being the highest.

    The interval reaches from the corrected lower limit to the upper limit as it was, since the
    correction is too large where one strategy leads. None with fewer than two strategies, or if one
    has a single seed. `lowest`: the least value that the metric can have.
    """
    if len(scores) < 2 or not all(one.includes_seeds for one in scores.values()):
        return None
    bias = bias_of_best(_means(list(scores.values()), num_patients))
    return replace(best, value=best.value - bias, low=max(best.low - bias, lowest))


def probability_best(scores: dict[str, SeedScores], num_patients: int) -> dict[str, float]:
    """The chance that a strategy's mean over training seeds is the highest, under a flat prior.

    Each replicate is one draw from the posterior. The patients' part is the replicate's; the seeds'
    part is a t variate with the spread over seeds beyond what the patients explain, the same
    variate for strategies that share the seeds. Equal strategies share the chance.
    """
    num_replicates = len(next(iter(next(iter(scores.values())).replicate_R.values())))
    rng = np.random.default_rng(0)
    degrees = [len(one.value) - 1 for one in scores.values() if len(one.value) > 1]
    scale_R = np.sqrt(min(degrees) / rng.chisquare(min(degrees), num_replicates)) if degrees else 1
    seeds = sorted({seed for one in scores.values() for seed in one.value})
    variate_R = {seed: rng.normal(size=num_replicates) * scale_R for seed in seeds}
    draw_AR = np.stack([_posterior(one, variate_R, num_patients) for one in scores.values()])
    draw_AR = draw_AR[:, np.isfinite(draw_AR).all(axis=0)]
    best_AR = draw_AR == draw_AR.max(axis=0)
    chance_A = np.mean(best_AR / best_AR.sum(axis=0), axis=1)
    return dict(zip(scores, chance_A.tolist(), strict=True))


def _judge_paired(
    scores: Mapping[str, SeedScores], pairs: Sequence[Pair], num_patients: int, num_families: int
) -> list[Difference]:
    estimates = [_paired(scores[a], scores[b], num_patients) for a, b in pairs]
    return judge_estimates(scores, pairs, estimates, num_families)


def judge_estimates(
    scores: Mapping[str, SeedScores],
    pairs: Sequence[Pair],
    estimates: list[Estimate],
    families: int,
) -> list[Difference]:
    """With Holm's correction and Bonferroni's intervals, for one of so many families."""
    adjusted = holm([e.p_value for e in estimates])
    num = len(pairs) * families
    return [
        _difference(
            scores,
            pair,
            e,
            p_adjusted=min(p * families, 1.0),
            half=t_quantile(e.degrees_of_freedom, num) * e.standard_error,
            detectable=detectable_difference(e, num_comparisons=num),
        )
        for pair, e, p in zip(pairs, estimates, adjusted, strict=True)
    ]


def _paired(first: SeedScores, second: SeedScores, num_patients: int) -> Estimate:
    """On the seeds that both have; a single model is subtracted from each seed of the other."""
    (value_S, replicate_SR), (value_T, replicate_TR) = first.arrays(), second.arrays()
    shared = sorted(first.value.keys() & second.value.keys())
    if shared and not (first.is_fixed or second.is_fixed):
        value_S, replicate_SR = first.arrays(shared)
        value_T, replicate_TR = second.arrays(shared)
    known = first.includes_seeds and second.includes_seeds
    if not known:
        value_S, replicate_SR = value_S.mean(keepdims=True), replicate_SR.mean(0, keepdims=True)
        value_T, replicate_TR = value_T.mean(keepdims=True), replicate_TR.mean(0, keepdims=True)
    estimate = estimate_mean(value_S - value_T, replicate_SR - replicate_TR, num_patients)
    return replace(estimate, includes_seeds=known)


def _judge_means(
    scores: Mapping[str, SeedScores], pairs: Sequence[Pair], num_patients: int, num_families: int
) -> list[Difference]:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    means = _means([scores[name] for name in names], num_patients)
    pairs_M2 = np.array([[names.index(name) for name in pair] for pair in pairs])
    family = judge_family(means, pairs_M2, num_families)
    patients_M = variance_of(means.patients_KK, pairs_M2)
    differences = []
    for m, pair in enumerate(pairs):
        value, error = float(family.value_M[m]), float(family.error_M[m])
        freedom = float(special.stdtridf((1 + LEVEL) / 2, family.critical_M[m]))
        half = float(family.critical_M[m]) * error
        e = Estimate(
            value=value,
            low=value - half,
            high=value + half,
            standard_error=error,
            degrees_of_freedom=freedom,
            p_value=two_sided_p(value, error, freedom),
            seed_sd=None,
            sampling_sd=float(np.sqrt(patients_M[m])),
            includes_seeds=True,
        )
        differences.append(
            _difference(
                scores,
                pair,
                e,
                p_adjusted=max(float(family.p_M[m]), e.p_value),
                half=family.critical * error,
                detectable=float(family.detectable_M[m]),
            )
        )
    return differences


def _difference(
    scores: Mapping[str, SeedScores],
    pair: Pair,
    estimate: Estimate,
    p_adjusted: float,
    half: float,
    detectable: float,
) -> Difference:
    return Difference(
        first=pair[0],
        second=pair[1],
        seeds=sorted({s for name in pair if not scores[name].is_fixed for s in scores[name].value}),
        estimate=estimate,
        p_adjusted=p_adjusted,
        low=estimate.value - half,
        high=estimate.value + half,
        detectable=detectable,
    )


def _means(members: Sequence[SeedScores], num_patients: int) -> Means:
    arrays = [one.arrays() for one in members]
    by_seed = [patient_covariance(replicate_SR, num_patients) for _, replicate_SR in arrays]
    return Means(
        value_K=np.array([value_S.mean() for value_S, _ in arrays]),
        patients_KK=patient_covariance(
            np.stack([replicate_SR.mean(axis=0) for _, replicate_SR in arrays]), num_patients
        ),
        patient_freedom=max(num_patients - 1, 1),
        seed_variance_K=np.array([np.var(v, ddof=1) if len(v) > 1 else 0.0 for v, _ in arrays]),
        known_K=np.array([split_covariance(covariance_SS)[1] for covariance_SS in by_seed]),
        num_seeds_K=np.array([len(value_S) for value_S, _ in arrays]),
    )


def _posterior(one: SeedScores, variate_R: dict[int, FloatArray], num_patients: int) -> FloatArray:
    """A draw of the strategy's mean over training seeds for each replicate."""
    value_S, replicate_SR = one.arrays()
    mean_R, num_seeds = replicate_SR.mean(axis=0), len(value_S)
    growth = np.sqrt(num_patients / max(num_patients - 1, 1))
    draw_R = value_S.mean() + growth * (mean_R - np.nanmean(mean_R))
    variance = float(np.var(value_S, ddof=1)) if num_seeds > 1 else 0.0
    if variance > 0:
        by_patients = np.nanvar(replicate_SR - mean_R, axis=1, ddof=1).sum() / (num_seeds - 1)
        share = max(0.0, 1 - by_patients / variance) / (num_seeds * (num_seeds - 1))
        variate_SR = np.stack([variate_R[seed] for seed in one.value])
        draw_R = draw_R + np.sqrt(share) * (value_S - value_S.mean()) @ variate_SR
    return draw_R
