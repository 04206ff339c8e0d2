"""Comparison of training strategies over seeds, paired on the same patients and the same seeds.

The question is about a strategy, not about one trained model: the estimand is the strategy's
metric, averaged over training seeds, in the population that the test patients come from. The
difference D_s of seed s has a part that the drawn patients give to all seeds alike, and a part from
the training and from how that model fits these patients:

    variance of D̄  =  covariance of D_s and D_t (bootstrap: both strategies, the same draws of
                      patients), mean over pairs of seeds  +  variance of D_s over seeds / S

(The bootstrap variance of D̄ itself holds the second part too: adding it would count it twice. With
one seed it is unknown: sampling error only, and `includes_seeds` is False.) Interval and p use a t
distribution. With Satterthwaite's degrees of freedom, three seeds find a difference where there is
none in up to 7.8 % at the level of 5 % (exact for normal values); with those of
`_degrees_of_freedom`, 3 to 20 seeds do in 4.7 to 5.7 %, whatever the parts.

Measured under no difference (tools/coverage_tables.py, 5,000 cohorts of 200 patients a cell, level
5 %; spread over seeds of the true value 0, 1 and 2 times the sampling error), AUROC and AUPRC:
3 seeds 4.8–5.9 %, 5 seeds 4.4–5.2 %, 10 seeds 4.7–5.4 %. Two seeds err in 5.2–8.9 %: their variance
is hardly known. The interval of a difference of two models holds it in 94–96 % for AUROC with 20
positive patients or more on average, in 96–99 % with 4 and 10; for AUPRC in 94–97 %, but up to 99 %
where 2 % are positive.

Holm's correction runs over all pairs, not over "each against the best": which strategy is best is
read from the same data, and a test against the maximum, as if it had been named beforehand, favours
it. Every pair that one may end up looking at is in the family, so the choice costs nothing more.
"""

# S seeds, R replicates, A strategies

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import optimize, special, stats

from hpc_ecg.evaluation.intervals import LEVEL, limits_at_edge, logit, t_quantile
from hpc_ecg.evaluation.metrics import RANKING_METRICS, FloatArray

ALPHA = 0.05
"""A corrected p below it is called a difference."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds (of a metric, or of a difference) with its interval."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, against 0: meaningful for a difference."""
    seed_sd: float | None
    """Spread of the seeds' values on these patients; None with one seed."""
    sampling_sd: float
    """Standard error from patients alone: what the mean of these very models would vary by."""
    includes_seeds: bool


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """One strategy's metric per seed: on the test set, and in every patient replicate."""

    value: dict[int, float]
    replicate_R: dict[int, FloatArray]

    def arrays(self) -> tuple[FloatArray, FloatArray]:
        """`value_S` and `replicate_SR`."""
        return np.array(list(self.value.values())), np.stack(list(self.replicate_R.values()))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`first` minus `second`, on the seeds that both have."""

    first: str
    second: str
    seeds: list[int]
    estimate: Estimate
    p_holm: float


def estimate_mean(
    value_S: FloatArray, replicate_SR: FloatArray, num_patients: int, metric: str | None = None
) -> Estimate:
    """Mean over seeds, with patients and seeds as sources of chance. The interval of a ranking
    `metric` is made on the logit scale, like that of a single model.

    `num_patients` is the number behind the bootstrap variance: for a yes/no label the patients of
    the smaller class, whose chance dominates that of a ranking metric.
    """
    num_seeds = len(value_S)
    value = float(np.mean(value_S))
    error, freedom, sampling = _standard_errors(value_S, replicate_SR, num_patients)
    low, high = value + t_quantile(freedom) * error * np.array([-1, 1])
    if metric in RANKING_METRICS and value in (0, 1):
        low, high = limits_at_edge(value, num_patients)
    elif metric in RANKING_METRICS:
        on_logits, df, _ = _standard_errors(logit(value_S), logit(replicate_SR), num_patients)
        low, high = special.expit(logit(value) + t_quantile(df) * on_logits * np.array([-1, 1]))
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        standard_error=error,
        degrees_of_freedom=freedom,
        p_value=_two_sided_p(value, error, freedom),
        seed_sd=float(np.std(value_S, ddof=1)) if num_seeds > 1 else None,
        sampling_sd=sampling,
        includes_seeds=num_seeds > 1,
    )


def compare_strategies(scores: dict[str, SeedScores], num_patients: int) -> list[Difference]:
    """All pairs that share a seed, the first with the higher value, Holm's correction over them."""
    pairs = [
        _difference(a, b, sorted(seeds), scores, num_patients)
        for a, b in combinations(scores, 2)
        if (seeds := scores[a].value.keys() & scores[b].value.keys())
    ]
    adjusted = holm([pair.estimate.p_value for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where the adjusted p is below the level."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(p) for p in adjusted]


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


def non_inferior(difference: Difference, margin: float) -> dict[str, float | bool]:
    """Whether `first` is not worse than `second` by `margin` or more: a one-sided test at 2.5 %,
    which says yes exactly when the interval lies above -margin."""
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin:g}; 0.01 is usual for AUROC")
    e = difference.estimate
    gap = e.value + margin
    p_value = _two_sided_p(gap, e.standard_error, e.degrees_of_freedom) / 2
    p_value = p_value if gap > 0 else 1 - p_value
    yes = p_value < (1 - LEVEL) / 2
    return {"margin": margin, "p_value": p_value, "is_non_inferior": yes, "low": e.low}


def detectable_difference(estimate: Estimate, power: float = 0.8) -> float:
    """The true difference that patients and seeds like these would show with this power, at the
    level of one comparison."""
    df = estimate.degrees_of_freedom
    critical = t_quantile(df)

    def missing_power(effect: float) -> float:
        # scipy's far tail is NaN at times where it is below 1e-15
        wrong_tail = np.nan_to_num(stats.nct.cdf(-critical, df, effect))
        return float(stats.nct.sf(critical, df, effect) + wrong_tail) - power

    return float(optimize.brentq(missing_power, 0, 100)) * estimate.standard_error


def _difference(
    first: str, second: str, seeds: list[int], scores: dict[str, SeedScores], num_patients: int
) -> Difference:
    """The difference as an uncorrected comparison, the strategy with the higher value first."""
    a, b = scores[first], scores[second]
    value_S = np.array([a.value[s] - b.value[s] for s in seeds])
    if value_S.mean() < 0:
        return _difference(second, first, seeds, scores, num_patients)
    replicate_SR = np.stack([a.replicate_R[s] - b.replicate_R[s] for s in seeds])
    estimate = estimate_mean(value_S, replicate_SR, num_patients)
    p_holm = estimate.p_value
    return Difference(first=first, second=second, seeds=seeds, estimate=estimate, p_holm=p_holm)


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


def _standard_errors(
    value_S: FloatArray, replicate_SR: FloatArray, num_patients: int
) -> tuple[float, float, float]:
    """Standard error of the mean over seeds, its degrees of freedom, and the standard error from
    patients alone."""
    num_seeds, patient_df = len(value_S), max(num_patients - 1, 1)
    complete_SR = replicate_SR[:, np.isfinite(replicate_SR).all(axis=0)]
    # the bootstrap's variance is that within the sample: (n - 1) / n of the population's
    covariance_SS = np.atleast_2d(np.cov(complete_SR)) * num_patients / patient_df
    sampling = float(np.sqrt(float(covariance_SS.mean())))
    if num_seeds == 1:
        return sampling, float(patient_df), sampling
    off_diagonal = float(covariance_SS.sum() - np.trace(covariance_SS))
    patients = max(off_diagonal / (num_seeds * (num_seeds - 1)), 0.0)
    seeds = float(np.var(value_S, ddof=1)) / num_seeds
    if patients + seeds == 0:
        return 0.0, float(patient_df), sampling
    freedom = _degrees_of_freedom(seeds / (patients + seeds), num_seeds - 1, patient_df)
    return float(np.sqrt(patients + seeds)), freedom, sampling


def _degrees_of_freedom(share: float, seed_df: int, patient_df: int) -> float:
    """`share` of the variance comes from seeds. Without the divisor this is Satterthwaite 1946."""
    divisor = share**2 + (1 - share) ** (1 + (2 / seed_df) ** 2)
    return 1 / (share**2 / seed_df / divisor + (1 - share) ** 2 / patient_df)


def _two_sided_p(value: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, freedom))
