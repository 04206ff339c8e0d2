"""Simulated cohorts whose truth is known, for tools/coverage_tables.py: 1 to 4 ECGs per patient,
labels by patient, normal scores of which half of the variance belongs to the patient."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from hpc_ecg.evaluation.resampling import draw_multiplicities, ranking_replicates

# N records, P patients, R replicates; row 0 of the draws is the sample itself


@dataclass(frozen=True, kw_only=True)
class Design:
    """`positives` patients if given, else each is positive with the chance `prevalence`."""

    patients: int
    prevalence: float = 0.0
    positives: int | None = None
    auroc: float = 0.75

    @property
    def share(self) -> float:
        return self.prevalence if self.positives is None else self.positives / self.patients

    @property
    def shift(self) -> float:
        """Between the classes' means, in standard deviations of the score."""
        return float(np.sqrt(2) * stats.norm.ppf(self.auroc))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """Labels and patients of the records, and the patients of the smaller class."""
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
    """Random state, labels, patients, patients of the smaller class, draws of patients."""
    rng = np.random.default_rng(options.seed)
    # any draws serve any cohort: they know nothing of it
    bank_RP = draw_multiplicities(design.patients, 4 * options.replicates, options.seed + 1)
    own_1P = np.ones((1, design.patients), dtype=np.uint8)
    done = 0
    while done < options.simulations:
        labels_N, patient_N, smaller = design.draw(rng)
        if smaller >= 2:
            done += 1
            start = options.replicates * (done % 4)
            draws_RP = bank_RP[start : start + options.replicates]
            yield rng, labels_N, patient_N, smaller, np.concatenate([own_1P, draws_RP])


def noise(rng: np.random.Generator, patient_N: np.ndarray, variance: float) -> np.ndarray:
    """Half of it belongs to the patient, half to the ECG."""
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
    common_N = noise(rng, patient_N, 0.5)
    own = [common_N + noise(rng, patient_N, 0.2) for _ in range(2)]
    return [
        [
            (design.shift + shift_sd * rng.normal()) * labels_N + own_N + noise(rng, patient_N, 0.3)
            for _ in range(num_seeds)
        ]
        for own_N in own
    ]


def sampling_error(design: Design, options: argparse.Namespace) -> float:
    """Of the difference of two models of one seed, over patients and what a seed adds on them."""
    few = argparse.Namespace(**vars(options) | {"simulations": 1000, "replicates": 2})
    differences = []
    for rng, labels_N, patient_N, _, draws_RP in cohorts(design, few):
        first, second = (
            ranking_replicates(labels_N, row[0], patient_N, draws_RP[:1])["auroc"][0]
            for row in two_strategies(rng, design, labels_N, patient_N, 1, 0.0)
        )
        differences.append(first - second)
    return float(np.std(differences))


def shift_sd(shift: float, wanted: float) -> float:
    """The spread of shifts over seeds at which the true difference of AUROC spreads by `wanted`."""
    points = stats.norm.ppf((np.arange(400) + 0.5) / 400)

    def beyond(sd: float) -> float:
        auroc = stats.norm.cdf((shift + sd * points) / np.sqrt(2))
        return float(np.sqrt(2) * np.std(auroc)) - wanted

    return float(optimize.brentq(beyond, 0, 10)) if wanted else 0.0


def true_auprc(shift: float, prevalence: float) -> float:
    """Precision averaged over the recall of normal scores."""
    threshold = np.linspace(-9, 9 + shift, 100_001)
    hit, false = stats.norm.sf(threshold - shift), stats.norm.sf(threshold)
    precision = prevalence * hit / (prevalence * hit + (1 - prevalence) * false)
    return float(-np.trapezoid(precision, hit))
