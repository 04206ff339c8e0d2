"""Simulated cohorts with known true values, for tools/coverage_tables.py: 1 to 4 ECGs per patient,
labels by patient, and normal scores; half of their variance is between patients."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from scipy import optimize, stats

from hpc_ecg.evaluation.resampling import draw_multiplicities, ranking_replicates

# N records, P patients, R replicates; row 0 of the draws is the sample itself


fewer_draws = patch("hpc_ecg.evaluation.max_t.DRAWS", 2000)
"""Of the package's 20,000, while a decorated function runs: for speed."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A cohort with exactly `positives` positive patients; if None, each patient is positive with
    probability `prevalence`."""

    patients: int
    prevalence: float = 0.0
    positives: int | None = None
    auroc: float = 0.75
    missed: float = 0.0
    """The share of positive patients that scores as the negative ones do; AUROC is without them."""

    @property
    def share(self) -> float:
        return self.prevalence if self.positives is None else self.positives / self.patients

    @property
    def shift(self) -> float:
        """Distance between the means of the classes, in standard deviations of the score."""
        return float(np.sqrt(2) * stats.norm.ppf(self.auroc))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """Labels [N], patients [N], and the number of patients in the smaller class."""
        ecgs_P = rng.permutation(np.arange(self.patients) % 4 + 1)
        if self.positives is None:
            positive_P = rng.random(self.patients) < self.prevalence
        else:
            positive_P = rng.permutation(self.patients) < self.positives
        patient_N = np.repeat(np.arange(self.patients), ecgs_P)
        smaller = int(min(positive_P.sum(), self.patients - positive_P.sum()))
        return positive_P.astype(float)[patient_N], patient_N, smaller


def cohorts(
    design: Design, options: argparse.Namespace
) -> Iterator[tuple[np.random.Generator, np.ndarray, np.ndarray, int, np.ndarray]]:
    """Yield generator, labels [N], patients [N], number of patients in the smaller class, and
    bootstrap draws of patients [1 + R, P], of which row 0 is the sample itself."""
    rng = np.random.default_rng(options.seed)
    # Draws do not depend on the cohort, so four sets of them serve all cohorts.
    bank_RP = draw_multiplicities(design.patients, 4 * options.replicates, options.seed + 1)
    sample_1P = np.ones((1, design.patients), dtype=np.uint8)
    done = 0
    while done < options.simulations:
        labels_N, patient_N, smaller = design.draw(rng)
        if smaller >= 2:
            done += 1
            start = options.replicates * (done % 4)
            draws_RP = bank_RP[start : start + options.replicates]
            yield rng, labels_N, patient_N, smaller, np.concatenate([sample_1P, draws_RP])


def noise(rng: np.random.Generator, patient_N: np.ndarray, variance: float) -> np.ndarray:
    """Normal noise [N]: half of the variance is between patients, half between their ECGs."""
    by_patient_P = rng.normal(size=patient_N[-1] + 1)
    return np.sqrt(variance / 2) * (by_patient_P[patient_N] + rng.normal(size=len(patient_N)))


def two_strategies(
    rng: np.random.Generator,
    design: Design,
    labels_N: np.ndarray,
    patient_N: np.ndarray,
    num_seeds: int,
    shift_sd: float,
) -> list[list[np.ndarray]]:
    """Scores [N] of two equal strategies, one list per strategy with one array per seed."""
    common_N = noise(rng, patient_N, 0.5)
    strategies = [common_N + noise(rng, patient_N, 0.2) for _ in range(2)]
    return [
        [
            (design.shift + shift_sd * rng.normal()) * labels_N
            + noise_N
            + noise(rng, patient_N, 0.3)
            for _ in range(num_seeds)
        ]
        for noise_N in strategies
    ]


def sampling_error(design: Design, options: argparse.Namespace) -> float:
    """Standard error of the AUROC difference between two models, from patients and seed noise."""
    few = argparse.Namespace(**vars(options) | {"simulations": 1000, "replicates": 2})
    differences = []
    for rng, labels_N, patient_N, _, draws_RP in cohorts(design, few):
        first, second = (
            ranking_replicates(labels_N, row[0], patient_N, draws_RP[:1])["auroc"][0]
            for row in two_strategies(rng, design, labels_N, patient_N, 1, 0.0)
        )
        differences.append(first - second)
    return float(np.std(differences))


def shift_sd(shift: float, target_sd: float) -> float:
    """The standard deviation of shifts over seeds that gives the true difference of AUROC the
    standard deviation `target_sd`."""
    points = stats.norm.ppf((np.arange(400) + 0.5) / 400)

    def excess(sd: float) -> float:
        auroc = stats.norm.cdf((shift + sd * points) / np.sqrt(2))
        return float(np.sqrt(2) * np.std(auroc)) - target_sd

    return float(optimize.brentq(excess, 0, 10)) if target_sd else 0.0


def true_auprc(shift: float, prevalence: float, missed: float = 0.0) -> float:
    """Average precision for normal scores: the integral of precision over recall."""
    threshold = np.linspace(-9, 9 + shift, 100_001)
    false_positive_rate = stats.norm.sf(threshold)
    recall = (1 - missed) * stats.norm.sf(threshold - shift) + missed * false_positive_rate
    true_positives = prevalence * recall
    precision = true_positives / (true_positives + (1 - prevalence) * false_positive_rate)
    return float(-np.trapezoid(precision, recall))
