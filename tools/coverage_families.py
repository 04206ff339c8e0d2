"""Tables of tools/coverage_tables.py on sweeps of several strategies.

family  normal scores (the limit of many patients). Each row: strategies, seeds, spread over seeds
        (in multiples of the patients' part of a difference; `half`: every second strategy has
        none), how often any p < 0.05 where all strategies are equal, and the power where the
        first leads by 4 standard errors, beside that of an oracle that knows all spreads. Last,
        one strategy with fewer seeds than the others (`UNEQUAL`), `--seeds` or not
sweeps  how often any p < 0.05 among equal strategies, from cohorts, scores and bootstrap
best    the best of several strategies: its error in standard errors and the coverage of its
        interval, as it is and corrected for having been chosen
"""

import argparse
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np
from coverage_before import beside, quoted
from simulated_cohorts import Design, cohorts, fewer_draws, noise, sampling_error, shift_sd

from hpc_ecg.evaluation import max_t
from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.families import compare_strategies
from hpc_ecg.evaluation.max_t import Means, bias_of_best, judge_family
from hpc_ecg.evaluation.resampling import ranking_replicates

# K strategies, S seeds (absent ones NaN), M pairs

PATIENTS, BY_SEED = 0.5, 0.25  # variances: a strategy's patients' part, how a seed fits patients
FREEDOM = 200  # of the patients' part: that many patients in the smaller class
SPREADS = (0, 0.5, 1, 1.5, 2)
UNEQUAL = (
    (2, 3, 7, 3, 0),
    (2, 3, 10, 2, 0),
    (4, 3, 10, 2, 0.3),
    (6, 3, 7, 2, 0.5),
    (8, 3, 10, 2, 0.5),
    (2, 2, 10, 2, 0.3),
    (3, 2, 5, 2, 0.3),
    (4, 2, 10, 2, 0.5),
    (6, 2, 5, 2, 0.3),
    (4, 3, 10, 3, 0.3),
    (4, 2, 10, 3, 0.3),
    (2, 2, 7, 3, 0),
)
"""Strategies, seeds of the first and of each other, spread of the first and of the others."""


def family_table(options: argparse.Namespace) -> Iterator[str]:
    for num, seeds, spread, is_half in product((2, 4, 6, 8), options.seeds, SPREADS, (False, True)):
        if spread == 0 and is_half:
            continue
        spread_K = np.full(num, float(spread))
        spread_K[1::2] *= not is_half
        kind = "half" if is_half else "all"
        row = _family(spread_K, np.full(num, seeds), ("family", num, seeds, spread, kind), options)
        yield f"{num} strategies, {seeds:2d} seeds, spread {spread:3.1f} {kind:4s}  {row}"
    for num, few, more, spread, others in UNEQUAL:
        spread_K, seeds_K = np.full(num, float(others)), np.full(num, more)
        spread_K[0], seeds_K[0] = spread, few
        row = _family(spread_K, seeds_K, None, options)
        yield (
            f"{num} strategies, {few} seeds and spread {spread:3.1f} in one, {more} and "
            f"{others:3.1f} in others  {row}"
        )


def _family(
    spread_K: np.ndarray, seeds_K: np.ndarray, key: Hashable, options: argparse.Namespace
) -> str:
    others = len(seeds_K) - 1  # pairs of the first with one of these come first
    wrong, _ = _rejected(spread_K, seeds_K, 0.0, options)
    found, known = _rejected(spread_K, seeds_K, 4.0, options)
    return (
        f"any error {beside(100 * wrong.any(1).mean(), key)}  "
        f"power {100 * found[:, :others].mean():3.0f} "
        f"(oracle {100 * known[:, :others].mean():3.0f}){quoted(key)}"
    )


@fewer_draws
def _rejected(
    spread_K: np.ndarray, seeds_K: np.ndarray, lead: float, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs differ at 5 % in each simulation, by `judge_family` and by the oracle."""
    rng = np.random.default_rng(options.seed)
    num, training_K = len(spread_K), spread_K**2 / 2
    pairs_M2 = np.array(list(combinations(range(num), 2)))
    true_KK = np.diag(PATIENTS + (BY_SEED + training_K) / seeds_K)
    error_M = np.sqrt(max_t.variance_of(true_KK, pairs_M2))
    drawn_RK = rng.multivariate_normal(np.zeros(num), true_KK, 20_000)
    drawn_RM = np.abs(drawn_RK[:, pairs_M2[:, 0]] - drawn_RK[:, pairs_M2[:, 1]]) / error_M
    limit = np.quantile(drawn_RM.max(axis=1), 0.95)
    found, known = [], []
    for means in _simulate(rng, training_K, seeds_K, lead * error_M[0], options.simulations):
        family = judge_family(means, pairs_M2)
        found.append(family.p_M < 0.05)
        known.append(np.abs(family.value_M) / error_M > limit)
    return np.array(found), np.array(known)


def _simulate(
    rng: np.random.Generator,
    training_K: np.ndarray,
    seeds_K: np.ndarray,
    lead: float,
    simulations: int,
) -> Iterator[Means]:
    num, most = len(training_K), int(seeds_K.max())
    is_absent_KS = np.arange(most) >= seeds_K[:, None]
    for _ in range(simulations):
        score_KS = rng.normal(size=(num, 1)) * np.sqrt(PATIENTS)
        score_KS = score_KS + rng.normal(size=(num, most)) * np.sqrt(BY_SEED + training_K)[:, None]
        score_KS[0] += lead
        score_KS[is_absent_KS] = np.nan
        seen = rng.chisquare(FREEDOM) / FREEDOM
        yield Means(
            value_K=np.nanmean(score_KS, axis=1),
            patients_KK=np.diag(PATIENTS + BY_SEED / seeds_K) * seen,
            patient_freedom=FREEDOM,
            seed_variance_K=np.nanvar(score_KS, axis=1, ddof=1),
            known_K=np.full(num, BY_SEED * seen),
            num_seeds_K=seeds_K,
        )


def sweeps_table(options: argparse.Namespace) -> Iterator[str]:
    for num, seeds, spread in product((4, 6), (3, 5), (0, 1.5)):
        design = Design(patients=300, prevalence=0.2, auroc=0.8)
        wrong = _sweeps(design, num, seeds, spread, options)
        cell, key = f"{num} strategies, {seeds} seeds", ("sweeps", num, seeds, spread)
        yield f"{cell}, spread {spread:3.1f}  any error {beside(100 * wrong, key)}{quoted(key)}"


def _sweeps(
    design: Design, num: int, seeds: int, spread: float, options: argparse.Namespace
) -> float:
    sd = shift_sd(design.shift, spread * sampling_error(design, options))
    hits = []
    for rng, labels_N, patient_N, smaller, draws_RP in cohorts(design, options):
        common_N, scores = noise(rng, patient_N, 0.5), {}
        for name in map(str, range(num)):
            own_N, one = common_N + noise(rng, patient_N, 0.2), SeedScores(value={}, replicate_R={})
            for seed in range(seeds):
                score_N = (design.shift + sd * rng.normal()) * labels_N + own_N
                score_N = score_N + noise(rng, patient_N, 0.3)
                drawn_R = ranking_replicates(labels_N, score_N, patient_N, draws_RP)["auroc"]
                one.value[seed], one.replicate_R[seed] = float(drawn_R[0]), drawn_R[1:]
            scores[name] = one
        hits.append(any(pair.p_adjusted < 0.05 for pair in compare_strategies(scores, smaller)))
    return float(np.mean(hits))


def best_table(options: argparse.Namespace) -> Iterator[str]:
    for num, spread, lead in product((2, 4, 6, 8), (0, 1.5), (0, 1, 2, 4)):
        rows = _best(num, spread, lead, options)
        held = {
            name: float(np.mean((low < 0) & (high > 0))) for name, (_, low, high) in rows.items()
        }
        errors = "  ".join(f"{name} {error.mean():+.2f}" for name, (error, *_) in rows.items())
        key = "best", num, lead
        yield (
            f"{num} strategies, 3 seeds, spread {spread:3.1f}, lead {lead}  {errors}  covered: "
            f"as it is {100 * held['as it is']:.1f}  corrected "
            f"{beside(100 * held['corrected'], key)}{quoted(key)}"
        )


@fewer_draws
def _best(
    num: int, spread: float, lead: float, options: argparse.Namespace
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(options.seed)
    training_K = np.full(num, spread**2 / 2)
    true_error = np.sqrt(2 * PATIENTS + 2 * (BY_SEED + training_K[0]) / 3)
    rows = []
    for means in _simulate(
        rng, training_K, np.full(num, 3), lead * true_error, options.simulations
    ):
        best = int(np.argmax(means.value_K))
        alone = judge_family(
            replace(
                means,
                value_K=np.append(means.value_K, 0),
                patients_KK=np.pad(means.patients_KK, ((0, 1), (0, 1))),
                seed_variance_K=np.append(means.seed_variance_K, 0),
                known_K=np.append(means.known_K, 0),
                num_seeds_K=np.append(means.num_seeds_K, 1),
            ),
            np.array([[best, num]]),
        )
        error = means.value_K[best] - (lead * true_error if best == 0 else 0)
        rows.append((error, error - bias_of_best(means), alone.critical * alone.error_M[0]))
    raw, corrected, limit = np.array(rows).T
    # the corrected interval reaches up to the limit of the value as it is
    lower, upper = corrected - limit, raw + limit
    scale = np.sqrt(PATIENTS + (BY_SEED + training_K[0]) / 3)
    return {
        "as it is": (raw / scale, raw - limit, raw + limit),
        "corrected": (corrected / scale, lower, upper),
    }
