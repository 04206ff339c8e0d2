"""One model at several sites: values and variances of each, their mean, the value at a new site.

Scales on which sites are about normal (Snell et al. 2018): logit AUROC, calibration slope, log of
observed / expected events. Variances are clustered by patient: DeLong's, and sandwich variances.

Spread between sites: restricted maximum likelihood. Mean: Hartung and Knapp's interval (2001), t of
k - 1 for k sites, with a factor of at least 1 (Röver, Knapp & Friede 2015), so that it is never
narrower than that of a common value. New site, from three sites on: the confidence distribution of
the spread (Nagashima, Noma & Furukawa 2019), no narrower than the mean's; the usual t of k - 2
(Higgins, Thompson & Spiegelhalter 2009) is given beside it. One or two sites cannot tell how much
they differ: AUROCs, new ones and the mean of two, then take the spread of 469 prediction models
(SDs of mean 0.055 and SD 0.015 on the AUROC scale; van Leeuwen et al. 2025, Stat Med 44:e70011), as
a log-normal prior. Measured (tools/coverage_tables.py new_site, new_site_gaussian): mean 94–100 %,
new site 93–100 %, usual t 84–100 %; of skewed or heavy-tailed sites 90 and 91 % at least.
"""

# N records, S seeds, k sites, T and J variances between sites, P patients, V columns

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from hpc_ecg.evaluation.comparisons import Estimate, split_covariance, two_sided_p
from hpc_ecg.evaluation.delong import delong
from hpc_ecg.evaluation.families import Pair
from hpc_ecg.evaluation.intervals import TAILS, t_quantile
from hpc_ecg.evaluation.metrics import FloatArray, Weights
from hpc_ecg.evaluation.reliability import fit_slope

SCALES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "auroc": (special.logit, special.expit),
    "slope": (float, float),
    "observed_expected": (np.log, np.exp),
}
"""To the scale on which a measure is summarized, and back."""
Values = dict[str, tuple[float, float]]
OF_PRIOR, NUM_QUANTILES = 2, 200
"""The most sites whose spread is the prior's; quantiles that stand for a distribution."""
MIN_VARIANCE = 1e-12
MIDDLES_J = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
SHAPE = np.sqrt(np.log1p((0.015 / 0.055) ** 2))
PRIOR_J = stats.lognorm.ppf(MIDDLES_J, SHAPE, scale=0.055 * np.exp(-(SHAPE**2) / 2)) ** 2


def site_values(
    label_N: FloatArray,
    logit_N: FloatArray,
    probability_N: FloatArray,
    patient_N: NDArray,
    weights_N: Weights = None,
) -> Values:
    """By measure: its value, and its variance on the measure's scale; weights are taken as known. A
    measure that has none is left out: AUROC 1, or a slope where the classes are apart. ValueError:
    see `delong`."""
    weight_N = np.ones(len(label_N)) if weights_N is None else weights_N
    auroc_M, covariance_MM = delong(label_N, logit_N[None], patient_N, weight_N)
    auroc, variance = float(auroc_M[0]), float(covariance_MM[0, 0])
    values = {"auroc": (auroc, variance / (auroc * (1 - auroc)) ** 2)} if variance > 0 else {}
    positive, negative = logit_N[label_N == 1], logit_N[label_N == 0]
    if positive.min() < negative.max() and positive.max() > negative.min():
        offset, slope = fit_slope(label_N, logit_N, weight_N)
        fitted_N = special.expit(offset + slope * logit_N)
        x_N2 = np.stack([np.ones(len(logit_N)), logit_N], axis=1)
        bread_22 = np.linalg.inv((x_N2 * (weight_N * fitted_N * (1 - fitted_N))[:, None]).T @ x_N2)
        meat_22 = _clustered(x_N2 * (weight_N * (label_N - fitted_N))[:, None], patient_N)
        values["slope"] = slope, float((bread_22 @ meat_22 @ bread_22)[1, 1])
    observed, expected = weight_N @ label_N, weight_N @ probability_N
    share_N1 = (weight_N * (label_N / observed - probability_N / expected))[:, None]
    ratio = float(observed / expected), float(_clustered(share_N1, patient_N)[0, 0])
    return values | {"observed_expected": ratio}


def mean_over_seeds(found: Sequence[Values]) -> Values:
    """The mean over models of several seeds, by measure that all have, from their `site_values`.
    The variance is the mean of theirs, as if one patient moved all alike, and that between seeds.
    """
    means = {}
    for measure in [m for m in found[0] if all(m in values for values in found)]:
        forward, back = SCALES[measure]
        value_S, variance_S = np.array([values[measure] for values in found]).T
        value_S = np.array([forward(value) for value in value_S])
        between = value_S.var(ddof=1) / len(value_S) if len(value_S) > 1 else 0.0
        means[measure] = float(back(value_S.mean())), float(variance_S.mean() + between)
    return means


def site_interval(measure: str, value: float, variance: float) -> tuple[float, float]:
    """95 % interval of one site's value, normal on the measure's scale."""
    forward, back = SCALES[measure]
    half = t_quantile(np.inf) * np.sqrt(variance)
    return float(back(forward(value) - half)), float(back(forward(value) + half))


def summarize_sites(measure: str, values: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """The mean over sites with `low` and `high`, at a new site `new_low` and `new_high` (by the
    usual t: `t_low` and `t_high`), and `sd_between` on the scale. None: too few sites."""
    value_k, variance_k = np.array(values).T
    forward, back = SCALES[measure]
    prior_J = None
    if measure == "auroc" and len(values) <= OF_PRIOR:  # the prior holds on the AUROC scale
        variance_k, prior_J = variance_k * (value_k * (1 - value_k)) ** 2, PRIOR_J
        forward, back = float, lambda value: np.clip(value, 0, 1)
    fit = random_effects(np.array([forward(value) for value in value_k]), variance_k, prior_J)
    return {k: v if v is None or k == "sd_between" else float(back(v)) for k, v in fit.items()}


def site_differences(
    scores: Mapping[str, Sequence[FloatArray]],
    pairs: Sequence[Pair],
    label_N: FloatArray,
    patient_N: NDArray,
    weights_N: Weights = None,
) -> dict[Pair, tuple[float, float]]:
    """First minus second of each pair: AUROC, as the mean over the seeds' scores [N], paired by
    patient; and its variance, with what seeds vary beyond what the patients explain. A pair that
    ranks alike (as where both are perfect) is left out. ValueError: see `delong`."""
    scores_MN = np.stack([score_N for by_seed in scores.values() for score_N in by_seed])
    auroc_M, covariance_MM = delong(label_N, scores_MN, patient_N, weights_N)
    name_M = np.repeat([*scores], [len(by_seed) for by_seed in scores.values()])
    found = {}
    for pair in pairs:
        contrast_M, training = np.zeros(len(name_M)), 0.0
        for name, sign in zip(pair, (1, -1), strict=True):
            rows = np.flatnonzero(name_M == name)
            contrast_M[rows] = sign / len(rows)
            if len(rows) > 1:
                by_patients = split_covariance(covariance_MM[np.ix_(rows, rows)])[1]
                training += max(auroc_M[rows].var(ddof=1) - by_patients, 0.0) / len(rows)
        variance = float(contrast_M @ covariance_MM @ contrast_M) + training
        if variance > MIN_VARIANCE:
            found[pair] = float(contrast_M @ auroc_M), variance
    return found


def mean_difference(
    values: Mapping[str, tuple[float, float]], includes_seeds: bool
) -> tuple[Estimate, dict[str, Any]]:
    """The mean over two sites or more, from the difference at each and its variance; and `new_low`
    and `new_high` at a new site (or None) and `sites`: value and 95 % interval at each."""
    value_k, variance_k = np.array([*values.values()]).T
    fit: dict[str, Any] = random_effects(value_k, variance_k)
    freedom = len(values) - 1
    error = (fit["high"] - fit["value"]) / t_quantile(freedom)
    estimate = Estimate(
        **{name: fit[name] for name in ("value", "low", "high")},
        standard_error=error,
        degrees_of_freedom=freedom,
        p_value=two_sided_p(fit["value"], error, freedom),
        seed_sd=None,
        sampling_sd=float((1 / variance_k).sum() ** -0.5),
        includes_seeds=includes_seeds,
    )
    sites = {name: [pair[0], *site_interval("slope", *pair)] for name, pair in values.items()}
    return estimate, {"new_low": fit["new_low"], "new_high": fit["new_high"], "sites": sites}


def random_effects(
    value_k: FloatArray, variance_k: FloatArray, prior_J: FloatArray | None = None
) -> dict[str, float | None]:
    """As `summarize_sites`, of values on their scale; `prior_J` are equally likely variances
    between sites. ValueError: a value is not finite, or a variance not finite and positive."""
    if not np.all(np.isfinite(value_k) & (variance_k > 0) & (variance_k < np.inf)):
        raise ValueError("each site needs a finite value with a finite variance above 0")

    def fit(tau2_T: FloatArray) -> tuple[FloatArray, ...]:
        """Total weight, mean, Cochran's Q, and -2 log of the restricted likelihood."""
        weight_Tk = 1 / (variance_k + tau2_T[:, None])
        total_T = weight_Tk.sum(axis=1)
        mean_T = weight_Tk @ value_k / total_T
        q_T = (weight_Tk * (value_k - mean_T[:, None]) ** 2).sum(axis=1)
        return total_T, mean_T, q_T, q_T + np.log(total_T) - np.log(weight_Tk).sum(axis=1)

    k, unit = len(value_k), float(variance_k.max() + value_k.var())
    grid_T = near_T = np.concatenate([[0.0], unit * np.geomspace(1e-6, 1e6, 400)])
    for _ in range(5):
        best = int(np.argmin(fit(near_T)[3]))
        tau2 = float(near_T[best])
        near_T = np.linspace(near_T[max(best - 1, 0)], near_T[min(best + 1, len(near_T) - 1)], 101)
    if prior_J is not None:
        tau2 = float(np.mean(np.sqrt(prior_J)) ** 2)
    total, mean, q, _ = (float(part[0]) for part in fit(np.array([tau2])))
    error = np.sqrt(max(q / (k - 1), 1.0) / total) if k > 1 else np.nan
    half, usual = t_quantile(k - 1) * error if k > 1 else None, None
    both: tuple[Any, ...] = (None, None) if half is None else (mean - half, mean + half)
    new: tuple[Any, ...] = (None, None)
    if k > OF_PRIOR:
        usual = t_quantile(k - 2) * np.hypot(error, np.sqrt(tau2))
        chance_J = stats.chi2.ppf(MIDDLES_J, k - 1)  # what Q is at the true variance
        prior_J = np.interp(chance_J, fit(grid_T)[2][::-1], grid_T[::-1])
    if prior_J is not None:
        total_J, mean_J, *_ = fit(prior_J)
        new = _mixture_quantiles(mean_J, np.sqrt(prior_J + 1 / total_J))
        if k > OF_PRIOR:
            new = min(new[0], both[0]), max(new[1], both[1])
        elif k > 1:
            both = _mixture_quantiles(mean_J, np.sqrt(1 / total_J))
    by_t = (None, None) if usual is None else (mean - usual, mean + usual)
    result: dict[str, float | None] = {"value": mean, "sd_between": float(np.sqrt(tau2))}
    for name, (low, high) in {"": both, "t_": by_t, "new_": new}.items():
        result |= {f"{name}low": low, f"{name}high": high}
    return result


def _mixture_quantiles(mean_J: FloatArray, sd_J: FloatArray) -> tuple[float, ...]:
    """The 95 % interval of a mixture of normal distributions of equal shares."""
    ends = float((mean_J - 9 * sd_J).min()), float((mean_J + 9 * sd_J).max())

    return tuple(
        optimize.brentq(lambda x: special.ndtr((x - mean_J) / sd_J).mean() - tail, *ends)  # noqa: B023
        for tail in TAILS
    )


def _clustered(terms_NV: FloatArray, patient_N: NDArray) -> FloatArray:
    """The variance [V, V] of sums of terms of mean 0 whose patients are independent."""
    patient_N = np.unique(patient_N, return_inverse=True)[1]
    sums_VP = np.array([np.bincount(patient_N, term_N) for term_N in terms_NV.T])
    return sums_VP @ sums_VP.T * sums_VP.shape[1] / (sums_VP.shape[1] - 1)
