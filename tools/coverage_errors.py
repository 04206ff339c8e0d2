"""Table `error` of tools/coverage_tables.py: two strategies that do not differ."""

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
from coverage_before import beside, quoted
from simulated_cohorts import Design, cohorts, sampling_error, shift_sd, two_strategies

from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.families import compare_strategies
from hpc_ecg.evaluation.resampling import ranking_replicates

METRICS = ("auroc", "auprc")


def error_table(options: argparse.Namespace) -> Iterator[str]:
    for num_seeds, spread in product(options.seeds, (0, 1, 2)):
        rate = type_1_error(num_seeds, spread, options)
        key = "error", num_seeds
        text = "  ".join(f"{metric} {beside(100 * rate[metric], key)}" for metric in METRICS)
        yield f"{num_seeds:3d} seeds, spread {spread}  {text}{quoted(key)}"


def type_1_error(num_seeds: int, spread: float, options: argparse.Namespace) -> dict[str, float]:
    """How often two strategies with the same mean over seeds differ at p < 0.05, by metric.

    All models share 50 % of the noise variance; 20 % is specific to a strategy and 30 % to a seed.
    A seed also changes the distance between the classes.
    """
    design = Design(patients=200, prevalence=0.3, auroc=0.8)
    error = sampling_error(design, options)
    spread_sd = shift_sd(design.shift, spread * error)
    errors: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    for rng, labels_N, patient_N, smaller, draws_RP in cohorts(design, options):
        replicates = [
            [ranking_replicates(labels_N, scores_N, patient_N, draws_RP) for scores_N in row]
            for row in two_strategies(rng, design, labels_N, patient_N, num_seeds, spread_sd)
        ]
        for metric in METRICS:
            pair = {
                name: SeedScores(
                    value={s: float(r[metric][0]) for s, r in enumerate(row)},
                    replicate_R={s: r[metric][1:] for s, r in enumerate(row)},
                )
                for name, row in zip("ab", replicates, strict=True)
            }
            (comparison,) = compare_strategies(pair, smaller)
            errors[metric].append(comparison.estimate.p_value < 0.05)
    return {metric: float(np.mean(hit)) for metric, hit in errors.items()}
