"""A family of differences between strategies, judged together: p-values and intervals that hold for
all of its differences at once.

The mean of a strategy over its seeds varies with the patients drawn (the bootstrap's covariance of
the means, which also holds how each seed's model fits these patients) and with what training adds.
A few seeds hardly show the second part, so the variances over seeds are moderated by empirical
Bayes (Smyth 2004), and never count less than the bootstrap explains. What remains uncertain is
carried through: each of `DRAWS` draws takes a variance from its scaled inverse χ² distribution (a
generalized pivot, Weerahandi 1993) and then the means. The largest |difference| in standard errors
(max-T, Westfall & Young 1993) gives adjusted p-values and simultaneous intervals, which agree: an
interval excludes 0 where the adjusted p is below 0.05.

Seeds of different strategies count as independent: where equal seeds move all strategies alike,
the test errs on the safe side. Two strategies with the same seeds are paired by seed instead.

Measured (tools/coverage_tables.py family, normal scores, 5,000 sweeps a case): 2, 4, 6 and 8 equal
strategies, 3, 5 and 10 seeds, spread over seeds 0 to 2 times the patients' part, in all strategies
or in every second one: any difference is found in 2.2–6.1 %; a leader by 4 standard errors in at
most 10 of 100 sweeps less often than by a test that knows all spreads. From cohorts, scores and the
bootstrap (table sweeps, 1,000 a case, 4 and 6 strategies, 3 and 5 seeds): 3.0–5.0 %. One strategy
with 2 or 3 seeds and a spread of 2 among others with 5 to 10 and less (`UNEQUAL` of table family):
3.3–5.0 %; its lead is found in up to 8 of 100 sweeps less often, with two seeds in 3–18. Where it
ends: at a spread of 3 in half of the strategies, three seeds err in about 7 % (1,000 sweeps), in
one that has fewer than the others in 5.5–6.5 %, two seeds there in up to 8.7 %; the value of the
best, corrected, is off by up to 0.6 of its standard error where one of 8 leads by 2. Its
interval covers 92–99 % (table best, 400 sweeps a case, 2 to 8 strategies, lead 0 to 4; 97 % there).
"""

# K strategies, R draws, M differences of the family

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from hpc_ecg.evaluation.intervals import LEVEL
from hpc_ecg.evaluation.metrics import FloatArray

DRAWS = 20_000
MOST_FREEDOM = 1000.0
"""Degrees of freedom where all strategies seem to have one variance."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means over seeds of K strategies, and where their chance comes from."""

    value_K: FloatArray
    patients_KK: FloatArray
    """Covariance of the means over draws of patients."""
    patient_freedom: int
    seed_variance_K: FloatArray
    """Sample variance over seeds; not used where there is one seed."""
    known_K: FloatArray
    """The part of a seed's variance that the bootstrap explains: how its model fits these patients,
    beyond what all seeds share."""
    num_seeds_K: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Family:
    """M differences; limits are `critical * error_M` to both sides."""

    value_M: FloatArray
    error_M: FloatArray
    p_M: FloatArray
    """Adjusted for all differences of the family."""
    critical: float
    critical_M: FloatArray
    """For each difference on its own."""
    detectable_M: FloatArray
    """The true difference that is found in 80 % of such comparisons."""


def judge_family(means: Means, pairs_M2: NDArray[np.int64], num_families: int = 1) -> Family:
    """Judge the differences first minus second of `pairs_M2` (numbers of strategies) together, with
    Bonferroni's correction where this is one of several families."""
    first_M, second_M = pairs_M2.T
    moderated_K, freedom_K = moderate(means.seed_variance_K, means.num_seeds_K - 1)
    total_KK = means.patients_KK + np.diag(_training_part(means, moderated_K))
    error_M = np.sqrt(variance_of(total_KK, pairs_M2))
    value_M = means.value_K[first_M] - means.value_K[second_M]

    draw_RK = _draw(means, moderated_K, freedom_K)
    scale_M = np.where(error_M > 0, error_M, np.inf)
    size_RM = np.abs(draw_RK[:, first_M] - draw_RK[:, second_M]) / scale_M
    most_R = np.sort(size_RM.max(axis=1))
    critical = float(np.quantile(most_R, 1 - (1 - LEVEL) / num_families))
    as_large_M = DRAWS - np.searchsorted(most_R, np.abs(value_M) / scale_M)
    p_M = np.where(value_M == 0, 1.0, num_families * (1 + as_large_M) / (1 + DRAWS))
    # by symmetry, the 80 % quantile of the difference itself
    return Family(
        value_M=value_M,
        error_M=error_M,
        p_M=np.where((error_M == 0) & (value_M != 0), 0.0, np.minimum(p_M, 1)),
        critical=critical,
        critical_M=np.quantile(size_RM, LEVEL, axis=0),
        detectable_M=error_M * (critical + np.quantile(size_RM, 0.6, axis=0)),
    )


def moderate(variance_K: FloatArray, freedom_K: NDArray) -> tuple[FloatArray, FloatArray]:
    """Moderated variances and their degrees of freedom (Smyth 2004, section 6.2).

    Each variance is averaged with a prior that is fitted to all of them. Variances of 0 (equal
    seeds, so nothing was trained) and those without degrees of freedom take no part. For a strategy
    with fewer seeds than others, which may hide that it spreads more, the prior counts for at most
    1 − 1/K times the freedom of itself and all with no more seeds (at least 2): by simulation.
    """
    used_K = (freedom_K > 0) & (variance_K > 0)
    if used_K.sum() < 2:
        return variance_K, np.maximum(freedom_K, 1.0)
    half_U, log_U = freedom_K[used_K] / 2, np.log(variance_K[used_K])
    log_U = log_U - special.digamma(half_U) + np.log(half_U)
    excess = np.var(log_U, ddof=1) - np.mean(special.polygamma(1, half_U))
    prior = MOST_FREEDOM
    common = np.average(variance_K[used_K], weights=freedom_K[used_K])
    if excess > special.polygamma(1, MOST_FREEDOM / 2):
        prior = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-3, MOST_FREEDOM)
        common = np.exp(np.mean(log_U) + special.digamma(prior / 2) - np.log(prior / 2))
    as_few_K = np.array([freedom_K[used_K & (freedom_K <= freedom)].sum() for freedom in freedom_K])
    most_K = (1 - 1 / used_K.sum()) * np.maximum(as_few_K, 2)
    prior_K = np.where(freedom_K < freedom_K[used_K].max(), np.minimum(prior, most_K), prior)
    moderated_K = (prior_K * common + freedom_K * variance_K) / (prior_K + freedom_K)
    joint_K = np.minimum(prior_K + freedom_K, freedom_K[used_K].sum())
    return np.where(used_K, moderated_K, variance_K), np.where(used_K, joint_K, 1.0)


def variance_of(covariance_KK: FloatArray, pairs_M2: NDArray[np.int64]) -> FloatArray:
    first_M, second_M = pairs_M2.T
    own_K = np.diag(covariance_KK)
    variance_M = own_K[first_M] + own_K[second_M] - 2 * covariance_KK[first_M, second_M]
    return np.where(variance_M > 1e-12 * own_K[first_M], variance_M, 0)  # 0 but for rounding


def _training_part(means: Means, variance: FloatArray) -> FloatArray:
    """What training adds to the variance of a mean over seeds; `variance` is [K] or [R, K]."""
    return np.maximum(variance - means.known_K, 0) / means.num_seeds_K


def _draw(means: Means, moderated_K: FloatArray, freedom_K: FloatArray) -> FloatArray:
    """[R, K]: means under no difference, with both parts' variances as uncertain as they are."""
    rng = np.random.default_rng(0)
    num = len(moderated_K)
    root_K, axes_KK = np.linalg.eigh(means.patients_KK)
    patients_RK = rng.standard_normal((DRAWS, num)) @ (axes_KK * np.sqrt(np.maximum(root_K, 0))).T
    patients_RK *= np.sqrt(means.patient_freedom / rng.chisquare(means.patient_freedom, (DRAWS, 1)))
    variance_RK = moderated_K * freedom_K / rng.chisquare(freedom_K, (DRAWS, num))
    training_RK = np.sqrt(_training_part(means, variance_RK))
    return patients_RK + rng.standard_normal((DRAWS, num)) * training_RK


def bias_of_best(means: Means) -> float:
    """How much too high the value of the strategy on top is, on average, for being on top.

    Draws around the strategies' means, which are first shrunk to each other (James & Stein 1961,
    positive part) as the observed ones lie too far apart, choose a best each; its excess over its
    own mean is the bias.
    """
    moderated_K, freedom_K = moderate(means.seed_variance_K, means.num_seeds_K - 1)
    num = len(moderated_K)
    total_KK = means.patients_KK + np.diag(_training_part(means, moderated_K))
    pairs_M2 = np.array([(j, k) for k in range(num) for j in range(k)])
    deviation_K = means.value_K - means.value_K.mean()
    chance = max(num - 3, 1) * variance_of(total_KK, pairs_M2).mean() / 2
    squares = float((deviation_K**2).sum())
    kept = max(0.0, 1 - chance / squares) if squares else 0.0
    draw_RK = _draw(means, moderated_K, freedom_K)
    best_R = np.argmax(draw_RK + kept * deviation_K, axis=1)
    return float(np.mean(draw_RK[np.arange(DRAWS), best_R]))
