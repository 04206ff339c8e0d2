"""Tables of tools/coverage_tables.py on what the page of a sweep says.

power   the median of what sweeps of equal strategies are said to find with 80 % power, in units of
        the patients' part of a difference, and how often a first strategy that leads by so much
        differs from another (normal scores; two strategies are paired by seed)
jumps   95 % intervals of an AUROC near 1 as one of 20 positive patients falls below none, one and
        more of 280 negative ones: they must not jump
"""

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
from coverage_before import beside, quoted
from coverage_families import BY_SEED, FREEDOM, PATIENTS
from simulated_cohorts import fewer_draws

from hpc_ecg.evaluation.comparisons import ALPHA, Difference, SeedScores
from hpc_ecg.evaluation.families import compare_strategies
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.resampling import draw_multiplicities

# N records, P patients, R replicates, S seeds

POSITIVE, NEGATIVE = 20, 280


def power_table(options: argparse.Namespace) -> Iterator[str]:
    for num, spread in product((2, 4, 6, 8), (0, 1.5)):
        said = float(np.median([d.detectable for d in _differences(num, spread, 0.0, options)]))
        found = [d.p_adjusted < ALPHA for d in _differences(num, spread, said, options)]
        key = "power", num
        cell = f"{num} strategies, 3 seeds, spread {spread:3.1f}, said to find {said:.2f}"
        yield f"{cell}  found {beside(100 * float(np.mean(found)), key)}{quoted(key)}"


@fewer_draws
def _differences(
    num: int, spread: float, lead: float, options: argparse.Namespace
) -> list[Difference]:
    """Of the first strategy, which leads, and each other one."""
    rng, found = np.random.default_rng(options.seed), list[Difference]()
    for _ in range(options.simulations):
        scores = {f"{k}": _strategy(rng, spread, lead * (k == 0), options) for k in range(num)}
        pairs = compare_strategies(scores, FREEDOM)
        found += [pair for pair in pairs if "0" in (pair.first, pair.second)]
    return found


def _strategy(
    rng: np.random.Generator, spread: float, mean: float, options: argparse.Namespace
) -> SeedScores:
    """Normal scores of 3 seeds, in units of the patients' part of a difference; a replicate draws
    its patients anew."""
    patients, by_seed = np.sqrt(PATIENTS), np.sqrt(BY_SEED)
    patient_R = patients * rng.normal(size=1 + options.replicates)
    score_SR = mean + patient_R + by_seed * rng.normal(size=(3, len(patient_R)))
    true_S = spread / np.sqrt(2) * rng.normal(size=3)
    value_S = score_SR[:, 0] + true_S
    replicate_SR = value_S[:, None] + score_SR[:, 1:] - mean
    return SeedScores(value=dict(enumerate(value_S)), replicate_R=dict(enumerate(replicate_SR)))


def jumps_table(options: argparse.Namespace) -> Iterator[str]:
    draws_RP = draw_multiplicities(POSITIVE + NEGATIVE, options.replicates, options.seed)
    for below in (0, 1, 2, 5, 10, 20, 56):
        labels_N = np.r_[np.ones(POSITIVE), np.zeros(NEGATIVE)]
        score_N = np.r_[np.arange(POSITIVE) + 1.0 * NEGATIVE, np.arange(NEGATIVE)]
        score_N[0] = NEGATIVE - below - 0.5
        sample = LabelSample(
            record_N=np.arange(len(labels_N)),
            labels_N=labels_N,
            logits_N=score_N,
            probabilities_N=score_N / score_N.max(),
            patient_N=np.arange(len(labels_N)),
            multiplicity_RP=draws_RP,
            groups={},
            weights_N=np.ones(len(labels_N)),
        )
        found = metric_intervals(sample.rankings(), sample.ranking_replicates(), sample)["auroc"]
        limits = f"{found['low']:.3f}–{found['high']:.3f}"
        key = "jumps", below
        cell = f"{POSITIVE} positive patients, one below {below:2d} of {NEGATIVE} negative ones"
        yield f"{cell}, AUROC {found['value']:.4f}  {beside(limits, key)}{quoted(key)}"
