"""Tables of tools/coverage_tables.py on several sites (evaluation/sites.py).

sites              two equal strategies, 2 seeds each, trained without one site at a time: p < 0.05,
                   and coverage of the mean difference in AUROC and of the difference at a new site.
                   200 to 1,600 patients a site, 15 % positive, 1 to 4 ECGs each, AUROC 0.8. `seeds`
                   is the SD of one model's true AUROC over seeds, `between` that of the true
                   difference over sites, and `luck` that of a part of it which all sites share,
                   as their models share most of their training patients and seeds
sites_gaussian     the same for normal differences with known standard errors
new_site           one model: coverage of the mean AUROC, calibration slope and observed/expected,
                   and at a new site. The distance between the classes varies over sites, which
                   moves AUROC and slope together, and so does the log-odds of prevalence
new_site_gaussian  the same for normal values with known standard errors of 0.1 to 0.4, and the
                   usual interval at a new site (t of k - 2)
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from scipy import special, stats
from simulated_cohorts import Design, noise, shift_sd, two_strategies

from hpc_ecg.evaluation.events import MIN_EVENTS
from hpc_ecg.evaluation.sites import (
    OF_PRIOR,
    SCALES,
    Values,
    mean_difference,
    random_effects,
    site_differences,
    site_values,
    summarize_sites,
)

# N records, k sites, V values of a site, Q points of an integral

PAIR = ("first", "second")
SIZES, PREVALENCE = (200, 400, 800, 1600), 0.15
SHIFT = Design(patients=SIZES[0], auroc=0.8).shift
PER_SHIFT = float(stats.norm.pdf(SHIFT / np.sqrt(2)) / np.sqrt(2))
"""What one unit of distance between the classes adds to the AUROC."""
SEED_SD, BETWEEN, LUCK = 0.01, 0.02, 0.005
SPREADS = ((0.0, 0.0), (0.03, 0.3), (0.055, 0.5))
"""SDs over sites: of the true AUROC, and of the log-odds of prevalence."""
POINTS_Q, WEIGHTS_Q = np.polynomial.hermite_e.hermegauss(60)


def sites_table(options: argparse.Namespace) -> Iterator[str]:
    parts = [(0.0, 0.0), (SEED_SD, 0.0), (0.0, LUCK)]
    for k, between, (seed_sd, luck) in product(options.sites, (0.0, BETWEEN), parts):
        rng = np.random.default_rng(options.seed)
        spread = shift_sd(SHIFT, np.sqrt(2) * seed_sd)
        found = [
            judge(rng, between, [_difference(rng, d, spread) for d in differences(rng, *rest)])
            for rest in [(k, between, luck)] * options.simulations
        ]
        design = f"{k:3d} sites, seeds {seed_sd:.3f}, between {between:.3f}, luck {luck:.3f}"
        yield f"{design}  {_describe(found)}"


def sites_gaussian_table(options: argparse.Namespace) -> Iterator[str]:
    errors = ((0.003, 0.01), (0.01, 0.03))
    for ends, k, between, luck in product(errors, options.sites, (0.0, BETWEEN), (0.0, LUCK)):
        rng = np.random.default_rng(options.seed)
        found = []
        for _ in range(options.simulations):
            error_k = rng.uniform(*ends, k)
            value_k = rng.normal(differences(rng, k, between, luck), error_k)
            found.append(judge(rng, between, [*zip(value_k, error_k**2, strict=True)]))
        design = f"{k:3d} sites, errors {ends[0]}–{ends[1]}, between {between:.3f}, luck {luck:.3f}"
        yield f"{design}  {_describe(found)}"


def differences(rng: np.random.Generator, k: int, between: float, luck: float) -> np.ndarray:
    """True differences [k] of two strategies whose mean over sites and trainings is 0."""
    return rng.normal(0, luck) + rng.normal(0, between, k)


def judge(
    rng: np.random.Generator, between: float, values: list[tuple[float, float]]
) -> tuple[bool, bool, bool, float]:
    """Whether p < 0.05, whether the intervals hold the true mean of 0 and the true difference at a
    new site, and half the width of the first."""
    estimate, more = mean_difference(dict(enumerate(values)), includes_seeds=True)  # type: ignore[arg-type]
    holds_new = more["new_low"] <= rng.normal(0, between) <= more["new_high"]
    half = (estimate.high - estimate.low) / 2
    return estimate.p_value < 0.05, estimate.low <= 0 <= estimate.high, holds_new, half


def _difference(rng: np.random.Generator, true: float, spread: float) -> tuple[float, float]:
    """The difference at one site, and its variance."""
    design = Design(patients=int(rng.choice(SIZES)), prevalence=PREVALENCE, auroc=0.8)
    label_N, patient_N, _ = design.draw(rng)
    apart_N = true / 2 / PER_SHIFT * label_N
    both = two_strategies(rng, design, label_N, patient_N, 2, spread)
    moved = zip(PAIR, (apart_N, -apart_N), both, strict=True)
    scores = {name: [score_N + part_N for score_N in seeds] for name, part_N, seeds in moved}
    return site_differences(scores, [PAIR], label_N, patient_N)[PAIR]


def _describe(found: list[tuple[bool, bool, bool, float]]) -> str:
    wrong, mean, new, half = np.array(found, dtype=float).T
    shares = f"p<.05 {100 * wrong.mean():5.1f}  mean {100 * mean.mean():5.1f}"
    return f"{shares}  new site {100 * new.mean():5.1f}  half-width {np.median(half):.4f}"


def new_site_table(options: argparse.Namespace) -> Iterator[str]:
    for (auroc_sd, odds_sd), k in product(SPREADS, (1, 2, *options.sites)):

        def draw(
            rng: np.random.Generator,
            n: int,
            shift_sd: float = auroc_sd / PER_SHIFT,
            odds_sd: float = odds_sd,
        ) -> np.ndarray:
            """Distance of the classes and log-odds of prevalence at n sites [n, 2]."""
            return rng.normal((SHIFT, special.logit(PREVALENCE)), (shift_sd, odds_sd), (n, 2))

        rng, hits = np.random.default_rng(options.seed), dict[str, list[bool]]()
        truth = true_values(draw(rng, 20_000)).items()
        mean = {m: float(np.mean([SCALES[m][0](v) for v in value_V])) for m, value_V in truth}
        for _ in range(options.simulations):
            sites = [_values_at(rng, draw) for _ in range(k)]
            new = true_values(draw(rng, 1))
            for m, on_scale in mean.items():
                fit = summarize_sites(m, [site[m] for site in sites])
                back = SCALES[m][1](on_scale)
                for name, true, end in (("mean", back, ""), ("new site", new[m][0], "new_")):
                    low, high = fit[f"{end}low"], fit[f"{end}high"]
                    if low is not None and high is not None:
                        hits.setdefault(
                            f"{m} {name}".replace("observed_expected", "O/E"), []
                        ).append(low <= true <= high)
        text = "  ".join(f"{name} {100 * np.mean(hit):5.1f}" for name, hit in hits.items())
        yield f"{k:3d} sites, AUROC SD {auroc_sd:.3f}, log-odds SD {odds_sd:.1f}  {text}"


def true_values(sites_V2: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC, slope and observed/expected [V] of a model that is right at the usual distance and
    prevalence, at sites with these (`draw`)."""
    shift_V, share_V = sites_V2[:, 0], special.expit(sites_V2[:, 1])
    cases_VQ, others_Q = special.expit(logits_of(POINTS_Q + shift_V[:, None])), logits_of(POINTS_Q)
    weights_Q = WEIGHTS_Q / WEIGHTS_Q.sum()
    expected_V = share_V * (cases_VQ @ weights_Q)
    expected_V += (1 - share_V) * (special.expit(others_Q) @ weights_Q)
    auroc_V = stats.norm.cdf(shift_V / np.sqrt(2))
    ratio_V = share_V / expected_V
    return {"auroc": auroc_V, "slope": shift_V / SHIFT, "observed_expected": ratio_V}


def logits_of(score: np.ndarray) -> np.ndarray:
    """Log-odds of the outcome for a score of SD 1 in each class, `SHIFT` apart."""
    return SHIFT * score - SHIFT**2 / 2 + special.logit(PREVALENCE)


def _values_at(rng: np.random.Generator, draw: Callable[..., np.ndarray]) -> Values:
    """One site's values; a site with fewer than 10 positive patients is replaced by another."""
    while True:
        ((shift, odds),) = draw(rng, 1)
        design = Design(patients=int(rng.choice(SIZES)), prevalence=float(special.expit(odds)))
        label_N, patient_N, smaller = design.draw(rng)
        if smaller >= MIN_EVENTS:
            logit_N = logits_of(shift * label_N + noise(rng, patient_N, 1.0))
            return site_values(label_N, logit_N, special.expit(logit_N), patient_N)


def new_site_gaussian_table(options: argparse.Namespace) -> Iterator[str]:
    for spread, k in product((0.0, 0.1, 0.3, 1.0), sorted({*options.sites, 4, 8, 20})):
        rng, ends, found = np.random.default_rng(options.seed), ("", "new_", "t_"), []
        for _ in range(options.simulations):
            error_k, new = rng.uniform(0.1, 0.4, k), rng.normal(0, spread)
            value_k = rng.normal(rng.normal(0, spread, k), error_k)
            fit: dict[str, Any] = random_effects(value_k, error_k**2)
            true = dict(zip(ends, (0.0, new, new), strict=True))
            found.append([fit[f"{e}low"] <= true[e] <= fit[f"{e}high"] for e in ends])
        mean, held, usual = 100 * np.mean(found, axis=0)
        text = f"mean {mean:5.1f}  new site {held:5.1f}  usual t {usual:5.1f}"
        yield f"{k:3d} sites, SD between them {spread:.1f}  {text}"


assert OF_PRIOR < 3, "the tables of differences have no new site for so few"
SITE_TABLES: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "sites": sites_table,
    "sites_gaussian": sites_gaussian_table,
    "new_site": new_site_table,
    "new_site_gaussian": new_site_gaussian_table,
}
