"""Differences between models over several sites: at each site, and their mean over sites.

At a site, all models rank the same patients, so their AUROCs are paired by patient (DeLong); the
variance holds the patients' chance and what seeds vary beyond it. Over sites: random effects with
Hartung and Knapp's interval, t of k - 1 for k sites, and the interval of the difference at a new
site (sites.py). Sites count as independent, and as a sample of those to come.
"""

# N records, M models, S seeds, k sites

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.comparisons import Estimate, split_covariance, two_sided_p
from hpc_ecg.evaluation.delong import delong
from hpc_ecg.evaluation.families import Pair
from hpc_ecg.evaluation.intervals import t_quantile
from hpc_ecg.evaluation.metrics import FloatArray, Weights
from hpc_ecg.evaluation.sites import random_effects

MIN_SITES = 2
MIN_VARIANCE = 1e-12
"""Below it two models rank a site's patients alike (as where both are perfect), which tells nothing
of their difference elsewhere."""


def differences_at_site(
    label_N: FloatArray,
    scores: Mapping[str, FloatArray],
    pairs: Sequence[Pair],
    patient_N: NDArray,
    weights_N: Weights = None,
) -> dict[Pair, tuple[float, float]]:
    """Each pair's first minus its second: AUROC, as the mean over the seeds' scores [S, N], and its
    variance; a pair of models that rank alike is left out. ValueError: see `delong`."""
    auroc_M, covariance_MM = delong(
        label_N, np.concatenate([*scores.values()]), patient_N, weights_N
    )
    shares, seeds, start = {}, {}, 0
    for name, scores_SN in scores.items():
        num, rows = len(scores_SN), np.arange(start, start + len(scores_SN))
        shares[name] = np.isin(np.arange(len(auroc_M)), rows) / num
        by_patients = split_covariance(covariance_MM[np.ix_(rows, rows)])[1]
        beyond = np.var(auroc_M[rows], ddof=1) - by_patients if num > 1 else 0.0
        seeds[name], start = max(beyond, 0.0) / num, start + num
    found = {}
    for first, second in pairs:
        contrast_M = shares[first] - shares[second]
        variance = contrast_M @ covariance_MM @ contrast_M + seeds[first] + seeds[second]
        if variance > MIN_VARIANCE:
            found[first, second] = float(contrast_M @ auroc_M), float(variance)
    return found


def mean_over_sites(
    values: Sequence[tuple[float, float]], includes_seeds: bool = True
) -> tuple[Estimate, tuple[float | None, float | None]]:
    """The mean of a difference, from its value and variance at each of MIN_SITES or more; and its
    95 % interval at a new site, None where sites are too few to tell."""
    value_k, variance_k = np.array(values).T
    fit, freedom = random_effects(value_k, variance_k), len(values) - 1
    value, low, high = (float(fit[key] or 0.0) for key in ("value", "low", "high"))
    error = (high - low) / 2 / t_quantile(freedom)
    estimate = Estimate(
        value=value,
        low=low,
        high=high,
        standard_error=error,
        degrees_of_freedom=freedom,
        p_value=two_sided_p(value, error, freedom),
        seed_sd=None,
        sampling_sd=float((1 / variance_k).sum() ** -0.5),
        includes_seeds=includes_seeds,
    )
    return estimate, (fit["new_low"], fit["new_high"])
