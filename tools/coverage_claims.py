"""Tables of tools/coverage_tables.py on what the page of a sweep says.

power   the difference that a sweep of equal strategies is said to find with 80 % power, and how
        often it is found between the first strategy and another (normal scores, 3 seeds)
jumps   95 % intervals of an AUROC near 1 as one of 20 positive patients falls below none, one and
        more of 280 negative ones: they must not jump
"""

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
from coverage_before import beside, quoted
from coverage_families import simulate_means

from hpc_ecg.evaluation import max_t
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.max_t import judge_family
from hpc_ecg.evaluation.resampling import draw_multiplicities

# K strategies, M pairs of the first with another

POSITIVE, NEGATIVE = 20, 280


def power_table(options: argparse.Namespace) -> Iterator[str]:
    max_t.DRAWS = 2000  # of the package's 20,000: for speed
    for num, spread in product((2, 4, 6, 8), (0, 1.5)):
        said = float(np.median([one.detectable_M for one in _families(num, spread, 0, options)]))
        with_first = slice(num - 1)
        found = [one.p_M[with_first] < 0.05 for one in _families(num, spread, said, options)]
        key = "power", num
        cell = f"{num} strategies, 3 seeds, spread {spread:3.1f}, said to find {said:.2f}"
        yield f"{cell}  found {beside(100 * float(np.mean(found)), key)}{quoted(key)}"


def _families(
    num: int, spread: float, lead: float, options: argparse.Namespace
) -> Iterator[max_t.Family]:
    rng, pairs_M2 = np.random.default_rng(options.seed), np.stack(np.triu_indices(num, 1), axis=1)
    training_K = np.full(num, spread**2 / 2)
    for means in simulate_means(rng, training_K, 3, lead, options.simulations):
        yield judge_family(means, pairs_M2)


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
