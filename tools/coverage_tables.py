#!/usr/bin/env python3
"""Simulate how often the intervals and tests of hpc_ecg/evaluation are right.

Cohorts have 1 to 4 ECGs per patient, labels by patient, and normal scores; half of their variance
is between patients. The true values are those of the population. Tables:

  censoring   coverage_censoring.py; power, jumps: coverage_claims.py
  intervals   coverage of 95 % intervals of AUROC and AUPRC, by number of patients and prevalence
  few         the same for a fixed small number of positive patients among 300; `missed`: the share
              of them that looks healthy
  shares      coverage for sensitivity at three thresholds, by number of positive patients
  difference  coverage of the difference between two models that truly differ, on the same patients
  error       how often p < 0.05 for strategies that do not differ, by number of seeds and by the
              spread of true values over seeds, in multiples of the difference's sampling error
  family, sweeps, best: coverage_families.py; edges, interaction, update: coverage_edges.py;
  sites, sites_gaussian, new_site, new_site_gaussian: coverage_sites.py

Columns: `ours` is bootstrap_interval (hpc_ecg/evaluation/intervals.py) or compare_strategies;
`percentile` is the plain patient bootstrap; `DeLong` is DeLong's clustered variance on the logit
scale; `old` takes percentiles over repeated draws of 70 % of the ECGs without replacement; `before`
is version 0.1 (coverage_before.py), in the setting that the end of the row names. All values are
percentages; with 2,000 simulations, a coverage of 95 % has a standard error of 0.5.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
from coverage_before import NEAR_1, beside, quoted
from coverage_censoring import censoring_table
from coverage_claims import jumps_table, power_table
from coverage_edges import edges_table, interaction_table, update_table
from coverage_errors import error_table
from coverage_families import best_table, family_table, sweeps_table
from coverage_sites import SITE_TABLES
from scipy import special, stats
from simulated_cohorts import (
    Design,
    cohorts,
    noise,
    true_auprc,
)

from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.delong import delong, delong_difference
from hpc_ecg.evaluation.families import compare_strategies
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.resampling import ranking_replicates, sum_replicates

# N records, P patients, R replicates; row 0 of the draws is the sample itself

METRICS = ("auroc", "auprc")
MEAN_ECGS = 2.5  # per patient: equally many patients have 1, 2, 3 and 4
Hits = dict[str, list[bool]]


def main(arguments: list[str]) -> int:
    tables: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
        "intervals": intervals_table,
        "few": few_table,
        "shares": shares_table,
        "difference": difference_table,
        "censoring": censoring_table,
        "power": power_table,
        "jumps": jumps_table,
        "error": error_table,
        "family": family_table,
        "sweeps": sweeps_table,
        "best": best_table,
        "edges": edges_table,
        "interaction": interaction_table,
        "update": update_table,
        **SITE_TABLES,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=[*tables], metavar="TABLE")
    parser.add_argument("--simulations", type=int, default=2000, help="per row (default 2000)")
    parser.add_argument("--replicates", type=int, default=500, help="of a bootstrap (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, nargs="*", default=[200, 1000, 5000])
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 5, 10], help="numbers of seeds")
    parser.add_argument("--sites", type=int, nargs="*", default=[3, 5, 10], help="numbers of sites")
    parser.add_argument("--small", action="store_true", help="one size, 200 simulations (minutes)")
    options = parser.parse_args(arguments)
    if unknown := set(options.tables) - set(tables):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    if options.small:
        options.simulations, options.patients, options.seeds, options.sites = 200, [200], [3], [3]
    for name in options.tables:
        print(f"\n{name}: {options.simulations} simulations per row")
        for line in tables[name](options):
            print(line, flush=True)
    return 0


def intervals_table(options: argparse.Namespace) -> Iterator[str]:
    combinations = product(options.patients, (0.75, 0.9), (0.02, 0.05, 0.1, 0.2, 0.5))
    designs = [Design(patients=n, auroc=a, prevalence=p) for n, a, p in combinations]
    yield from _rows("intervals", designs, one_model, options)


def few_table(options: argparse.Namespace) -> Iterator[str]:
    combinations = product((0.75, 0.9, 0.98), (2, 3, 5, 7, 10, 15, 20, 40))
    designs = [Design(patients=300, auroc=a, positives=m) for a, m in combinations]
    designs += [Design(patients=300, auroc=0.998, positives=m, missed=s) for m, s, _ in NEAR_1]
    yield from _rows("few", designs, one_model, options)


def shares_table(options: argparse.Namespace) -> Iterator[str]:
    designs = [Design(patients=300, auroc=0.9, positives=m) for m in (5, 10, 20, 40, 100)]
    yield from _rows("shares", designs, sensitivities, options)


def difference_table(options: argparse.Namespace) -> Iterator[str]:
    combinations = product(options.patients, (0.75, 0.9), (0.02, 0.05, 0.1, 0.2, 0.5))
    designs = [Design(patients=n, auroc=a, prevalence=p) for n, a, p in combinations]
    yield from _rows("difference", designs, two_models, options)


def _rows(
    table: str, designs: list[Design], simulate: Callable[..., Hits], options: argparse.Namespace
) -> Iterator[str]:
    """Yield a line per design: how often each interval covered the true value. Samples with fewer
    than 2 patients in a class have no interval and are redrawn."""
    for design in designs:
        hits = simulate(design, options)
        positives = (
            f"{design.share:6.1%}" if design.positives is None else f"{design.positives:4d} pos"
        )
        keys = {name: (table, name, design) for name in hits}
        found = {name: float(100 * np.mean(hit)) for name, hit in hits.items()}
        text = "  ".join(
            f"{name} {beside(now, keys[name]) if 'ours' in name else f'{now:5.1f}'}"
            for name, now in found.items()
        )
        missed = f", missed {design.missed:.0%}" if design.missed else ""
        cell = f"{design.patients:5d} patients, {positives}, AUROC {design.auroc:.3g}{missed}"
        yield f"{cell:40s} {text}{quoted(*keys.values())}"


def one_model(design: Design, options: argparse.Namespace) -> Hits:
    hits: Hits = {}
    missed, shift = design.missed, design.shift
    area = (1 - missed) * design.auroc + missed / 2
    truth = {"auroc": area, "auprc": true_auprc(shift, design.share, missed)}
    num_ecgs = int(MEAN_ECGS * design.patients)
    rng = np.random.default_rng(options.seed + 2)
    subsample_RN = np.zeros((options.replicates, num_ecgs), dtype=np.uint8)
    subsample_RN[:, : round(0.7 * num_ecgs)] = 1
    subsample_RN = rng.permuted(subsample_RN, axis=1)
    for rng, labels_N, patient_N, smaller, draws_RP in cohorts(design, options):
        seen_N = (rng.random(design.patients) >= missed)[patient_N] if missed else 1.0
        scores_N = shift * labels_N * seen_N + noise(rng, patient_N, 1.0)
        by_patient = ranking_replicates(labels_N, scores_N, patient_N, draws_RP)
        by_ecg = ranking_replicates(labels_N, scores_N, np.arange(num_ecgs), subsample_RN)
        for metric in METRICS:
            value, value_R = float(by_patient[metric][0]), by_patient[metric][1:]
            ours = bootstrap_interval(value, value_R, metric=metric, num_patients=smaller)
            limits: dict[str, Iterable[float]] = {
                "ours": (ours["low"], ours["high"]),
                "percentile": np.nanquantile(value_R, [0.025, 0.975]),
            }
            if metric == "auroc":
                error = float(np.sqrt(delong(labels_N, scores_N[None], patient_N)[1][0, 0]))
                limits["DeLong"] = _delong_limits(value, error, smaller)
            limits["old"] = np.nanquantile(by_ecg[metric], [0.025, 0.975])
            for name, (low, high) in limits.items():
                hits.setdefault(f"{metric} {name}", []).append(low <= truth[metric] <= high)
    return hits


def sensitivities(design: Design, options: argparse.Namespace) -> Hits:
    hits: Hits = {}
    thresholds_T = design.shift - stats.norm.ppf([0.7, 0.9, 0.95])
    for rng, labels_N, patient_N, smaller, draws_RP in cohorts(design, options):
        scores_N = design.shift * labels_N + noise(rng, patient_N, 1.0)
        flagged_NT = labels_N[:, None] * (scores_N[:, None] > thresholds_T)
        sums_RV = sum_replicates(np.column_stack([labels_N, flagged_NT]), patient_N, draws_RP)
        with np.errstate(invalid="ignore"):
            value_RT = sums_RV[:, 1:] / sums_RV[:, :1]
        for truth, value_R in zip((0.7, 0.9, 0.95), value_RT.T, strict=True):
            value = float(value_R[0])
            ours = bootstrap_interval(
                value, value_R[1:], metric="sensitivity", num_patients=smaller
            )
            low, high = np.nanquantile(value_R[1:], [0.025, 0.975])
            hits.setdefault(f"{truth} ours", []).append(ours["low"] <= truth <= ours["high"])
            hits.setdefault(f"{truth} percentile", []).append(low <= truth <= high)
    return hits


def two_models(design: Design, options: argparse.Namespace) -> Hits:
    """Coverage for two models: the AUROC of the second is 0.03 lower; they share half the noise."""
    hits: Hits = {}
    worse = Design(patients=design.patients, auroc=design.auroc - 0.03)
    auprc = [true_auprc(shift, design.share) for shift in (design.shift, worse.shift)]
    truth = {"auroc": 0.03, "auprc": auprc[0] - auprc[1]}
    for rng, labels_N, patient_N, smaller, draws_RP in cohorts(design, options):
        common_N = noise(rng, patient_N, 0.5)
        scores = [
            shift * labels_N + common_N + noise(rng, patient_N, 0.5)
            for shift in (design.shift, worse.shift)
        ]
        replicates = [ranking_replicates(labels_N, s, patient_N, draws_RP) for s in scores]
        for metric in METRICS:
            pair = {
                name: SeedScores(value={0: r[metric][0]}, replicate_R={0: r[metric][1:]})
                for name, r in zip("ab", replicates, strict=True)
            }
            (comparison,) = compare_strategies(pair, smaller)
            sign = 1 if comparison.first == "a" else -1
            limits = [sign * comparison.estimate.low, sign * comparison.estimate.high]
            inside = min(limits) <= truth[metric] <= max(limits)
            hits.setdefault(f"{metric} ours", []).append(inside)
        exact = delong_difference(labels_N, scores[0], scores[1], patient_N)
        inside = exact["low"] <= truth["auroc"] <= exact["high"]
        hits.setdefault("auroc DeLong", []).append(inside)
    return hits


def _delong_limits(value: float, error: float, patients: int) -> tuple[float, float]:
    if value in (0, 1):
        return value, value
    half = float(stats.t.ppf(0.975, patients - 1)) * error / (value * (1 - value))
    return tuple(special.expit(special.logit(value) + np.array([-half, half])).tolist())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
