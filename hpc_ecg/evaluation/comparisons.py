"""Means of a training strategy over seeds, and differences that are paired by seed.

The question is about a strategy, not about one trained model: the estimand is the strategy's
metric, averaged over training seeds, in the population that the test patients come from. The
difference D_s of seed s has a part that the drawn patients give to all seeds alike, and a part from
the training and from how that model fits these patients:

    variance of D̄  =  covariance of D_s and D_t (bootstrap: both strategies, the same draws of
                      patients), mean over pairs of seeds  +  variance of D_s over seeds / S

The second part holds how each seed's model fits these patients, which the bootstrap knows as well:
its own variance minus that covariance. Seeds that happen to agree do not make it smaller than that.
(The bootstrap variance of D̄ itself holds that part too: adding it would count it twice. With one
seed the second part is unknown: sampling error only, and `includes_seeds` is False.) Interval and p
use a t distribution. With Satterthwaite's degrees of freedom, three seeds find a difference where
there is none in up to 7.8 % at the level of 5 % (exact for normal values); with those of
`_degrees_of_freedom`, 3 to 20 seeds do in 3.1 to 5.7 %, whatever the parts (the bootstrap's part of
a seed up to twice that of the patients).

Measured under no difference (tools/coverage_tables.py error, 2,000 cohorts of 200 patients a cell,
level 5 %): 3 to 10 seeds 2.9–5.8 %; two seeds up to 8.9 %, as their variance is hardly known. The
interval of a difference of two models holds it in 94–96 % for AUROC with 20 positive patients or
more on average, in 96–99 % with 4 and 10; for AUPRC in 94–97 %, but up to 99 % where 2 % are
positive. Several strategies: families.py.
"""

# S seeds, R replicates

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from hpc_ecg.evaluation.intervals import LEVEL, auprc_limits, bounded_limits, logit, t_quantile
from hpc_ecg.evaluation.metrics import RANKING_METRICS, FloatArray

ALPHA = 0.05
"""An adjusted p below it is called a difference."""
KNOWN_SHARE = 0.3
"""How much of the seeds' variance counts as estimated where the bootstrap's part is larger than
what the seeds show. With 1, the error is 1.2 % in places where it could be 5; with 0, up to 7.3."""


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
    is_fixed: bool = False
    """One model that no seed changes, such as a baseline."""

    @property
    def includes_seeds(self) -> bool:
        """Whether its chance is known: of a strategy, from two seeds on."""
        return self.is_fixed or len(self.value) > 1

    def arrays(self, seeds: Sequence[int] | None = None) -> tuple[FloatArray, FloatArray]:
        """`value_S` and `replicate_SR`, of these seeds or all."""
        chosen = list(self.value if seeds is None else seeds)
        value_S = np.array([self.value[s] for s in chosen])
        return value_S, np.stack([self.replicate_R[s] for s in chosen])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`first` minus `second`."""

    first: str
    second: str
    seeds: list[int]
    """Those of either."""
    estimate: Estimate
    p_adjusted: float
    """Holds for all differences of the family."""
    low: float
    high: float
    """The simultaneous 95 % interval: it holds the true value for all differences of the family."""
    detectable: float
    """The true difference that is found in 80 % of such sweeps, at the adjusted level."""


def estimate_mean(
    value_S: FloatArray, replicate_SR: FloatArray, num_patients: int, metric: str | None = None
) -> Estimate:
    """Mean over seeds, with patients and seeds as sources of chance. The interval of a ranking
    `metric` is made like that of a single model.

    `num_patients` is the number behind the bootstrap variance: for a yes/no label the patients of
    the smaller class, whose chance dominates that of a ranking metric.
    """
    num_seeds = len(value_S)
    value = float(np.mean(value_S))
    error, freedom, sampling = _standard_errors(value_S, replicate_SR, num_patients)
    low, high = value + t_quantile(freedom) * error * np.array([-1, 1])
    if metric == "auroc":
        low, high = bounded_limits(value, error**2, t_quantile(freedom), num_patients)
    elif metric in RANKING_METRICS:
        on_logits, df, _ = _standard_errors(logit(value_S), logit(replicate_SR), num_patients)
        half = t_quantile(df) * on_logits
        low, high = auprc_limits(value, error**2, t_quantile(freedom), num_patients, half)
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        standard_error=error,
        degrees_of_freedom=freedom,
        p_value=two_sided_p(value, error, freedom),
        seed_sd=float(np.std(value_S, ddof=1)) if num_seeds > 1 else None,
        sampling_sd=sampling,
        includes_seeds=num_seeds > 1,
    )


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where the adjusted p is below the level."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(p) for p in adjusted]


def non_inferior(difference: Difference, margin: float) -> dict[str, float | bool]:
    """Whether `first` is not worse than `second` by `margin` or more: a one-sided test at 2.5 %,
    which says yes exactly when the interval lies above -margin; never from a single seed."""
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin:g}; 0.01 is usual for AUROC")
    e = difference.estimate
    gap = e.value + margin
    p_value = two_sided_p(gap, e.standard_error, e.degrees_of_freedom) / 2
    p_value = p_value if gap > 0 else 1 - p_value
    yes = e.includes_seeds and p_value < (1 - LEVEL) / 2
    return {"margin": margin, "p_value": p_value, "is_non_inferior": yes, "low": e.low}


def detectable_difference(
    estimate: Estimate, power: float = 0.8, num_comparisons: int = 1
) -> float:
    """The true difference that patients and seeds like these would show with this power, at the
    level of Bonferroni's correction for this many comparisons."""
    df = estimate.degrees_of_freedom
    critical = t_quantile(df, num_comparisons)

    def missing_power(effect: float) -> float:
        # scipy's far tail is NaN at times where it is below 1e-15
        wrong_tail = np.nan_to_num(stats.nct.cdf(-critical, df, effect))
        return float(stats.nct.sf(critical, df, effect) + wrong_tail) - power

    return float(optimize.brentq(missing_power, 0, 100)) * estimate.standard_error


def _standard_errors(
    value_S: FloatArray, replicate_SR: FloatArray, num_patients: int
) -> tuple[float, float, float]:
    """Standard error of the mean over seeds, its degrees of freedom, and the standard error from
    patients alone."""
    num_seeds, patient_df = len(value_S), max(num_patients - 1, 1)
    covariance_SS = patient_covariance(replicate_SR, num_patients)
    sampling = float(np.sqrt(float(covariance_SS.mean())))
    if num_seeds == 1:
        return sampling, float(patient_df), sampling
    patients, by_model = split_covariance(covariance_SS)
    observed = float(np.var(value_S, ddof=1))
    seeds = max(observed, by_model) / num_seeds
    if patients + seeds == 0:
        return 0.0, float(patient_df), sampling
    uncertain = seeds if observed >= by_model else KNOWN_SHARE * seeds
    freedom = _degrees_of_freedom(uncertain / (patients + seeds), num_seeds - 1, patient_df)
    return float(np.sqrt(patients + seeds)), freedom, sampling


def patient_covariance(replicate_SR: FloatArray, num_patients: int) -> FloatArray:
    """[S, S]: covariance over draws of patients; replicates without a value are left out."""
    complete_SR = replicate_SR[:, np.isfinite(replicate_SR).all(axis=0)]
    # the bootstrap's variance is that within the sample: (n - 1) / n of the population's
    return np.atleast_2d(np.cov(complete_SR)) * num_patients / max(num_patients - 1, 1)


def split_covariance(covariance_SS: FloatArray) -> tuple[float, float]:
    """The part that seeds share, and what a seed has beyond it: how its model fits the patients."""
    num_seeds = len(covariance_SS)
    off_diagonal = float(covariance_SS.sum() - np.trace(covariance_SS))
    shared = max(off_diagonal / max(num_seeds * (num_seeds - 1), 1), 0.0)
    return shared, max(float(np.trace(covariance_SS)) / num_seeds - shared, 0.0)


def _degrees_of_freedom(share: float, seed_df: int, patient_df: int) -> float:
    """`share` of the variance comes from seeds. Without the divisor this is Satterthwaite 1946."""
    divisor = share**2 + (1 - share) ** (1 + (2 / seed_df) ** 2)
    return 1 / (share**2 / seed_df / divisor + (1 - share) ** 2 / patient_df)


def two_sided_p(value: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, freedom))
