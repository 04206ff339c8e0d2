"""Tables of tools/coverage_tables.py where intervals and tests are hardest; 1 to 5 ECGs per patient.

edges        coverage of 95 % intervals, before (Wilson's with the bootstrap's variance for rates,
             t on the logit scale for AUPRC, the basic bootstrap for ECE, percentiles for others)
             and now: rates near 0 and 1, losses, net benefit, calibration, AUPRC near 1, and the
             means over 5 labels. Logits are those of the true risk, times `slope`
interaction  p < 0.05 where the levels of a subgroup do not differ, before (on the logit scale, no
             bound near 1) and now
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from scipy import special, stats
from simulated_cohorts import noise

from hpc_ecg.evaluation import intervals
from hpc_ecg.evaluation.averages import macro
from hpc_ecg.evaluation.decision import decision_curve
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import auprc, auroc, brier, log_loss
from hpc_ecg.evaluation.reliability import assess_calibration, quantile_bins
from hpc_ecg.evaluation.resampling import draw_multiplicities
from hpc_ecg.evaluation.subgroups import MIN_PATIENTS, heterogeneity
from hpc_ecg.evaluation.thresholds import apply_operating_point, confusion_counts, rates

# N records, P patients, R replicates, L levels or labels

DESIGNS = ((200, 0.05), (200, 0.2), (400, 0.03), (400, 0.1), (600, 0.03), (600, 0.2))
ACT = np.array([0.1, 0.5, 0.8])
METRICS = {"auroc": auroc, "auprc": auprc, "brier": brier, "log_loss": log_loss}
Ends = tuple[float, float]
Measures = dict[str, tuple[float, Ends, dict]]
"""By name: value, limits before, and the interval now."""


def draw(
    rng: np.random.Generator, patients: int, prevalence: float, area: float, options: int
) -> LabelSample:
    patient_N = np.repeat(np.arange(patients), rng.permutation(np.arange(patients) % 5 + 1))
    label_N = (rng.random(patients) < prevalence).astype(float)[patient_N]
    shift = np.sqrt(2) * stats.norm.ppf(area)
    score_N = shift * label_N + noise(rng, patient_N, 1.0)
    return _of_logits(
        LabelSample(
            record_N=patient_N,
            labels_N=label_N,
            logits_N=shift * score_N - shift**2 / 2 + special.logit(prevalence),
            probabilities_N=label_N,
            patient_N=patient_N,
            multiplicity_RP=draw_multiplicities(patients, options, int(rng.integers(4))),
            groups={},
        ),
        1.0,
    )


def _of_logits(sample: LabelSample, slope: float) -> LabelSample:
    logits_N = slope * sample.logits_N
    return replace(sample, logits_N=logits_N, probabilities_N=special.expit(logits_N))


def edges_table(options: argparse.Namespace) -> Iterator[str]:
    for (patients, prevalence), area in product(DESIGNS, (0.8, 0.95, 0.99)):
        slope = 1.0 if area == 0.8 else 1.5
        big = _of_logits(draw(np.random.default_rng(9), 100_000, prevalence, area, 2), slope)
        p_N, y_N = big.probabilities_N, big.labels_N
        cuts = {f"sens. {s}": np.quantile(p_N[y_N == 1], 1 - s) for s in (0.9, 0.97, 0.99)}
        cuts |= {f"spec. {s}": np.quantile(p_N[y_N == 0], s) for s in (0.97, 0.99)}
        truth = {name: value for name, (value, *_) in _measure(big, cuts).items()}
        truth["ece"] *= slope != 1
        rng, hits = np.random.default_rng(options.seed), {name: [] for name in truth}
        for _ in range(options.simulations):
            sample = _of_logits(draw(rng, patients, prevalence, area, options.replicates), slope)
            if sample.patients_in_smaller_class() < 2:
                continue
            for name, (_, before, now) in _measure(sample, cuts).items():
                if now["value"] is not None:
                    now = now["low"], now["high"]
                    hits[name].append([e[0] <= truth[name] <= e[1] for e in (before, now)])
        yield from _lines(f"{patients} patients, {prevalence:3.0%}, AUROC {area}", hits)
    for positives in (7, 10, 20):
        yield from _lines(
            f"300 patients, 5 labels, {positives} positive", _means(positives, options)
        )


def _lines(design: str, hits: dict[str, list]) -> Iterator[str]:
    for name, held in hits.items():
        before, now = 100 * np.mean(held, axis=0)
        yield f"{design}, {name:22s} before {before:5.1f}  now {now:5.1f}"


def _measure(sample: LabelSample, cuts: dict[str, float]) -> Measures:
    few, values = sample.patients_in_smaller_class(), {}
    found: Measures = {}
    values_R = sample.replicates()
    for name, compute in METRICS.items():
        score_N = sample.logits_N if name in ("auroc", "auprc") else sample.probabilities_N
        values[name] = compute(sample.labels_N, score_N)
    for name, now in metric_intervals(values, values_R, sample).items():
        before: Ends = tuple(np.nanquantile(values_R[name], intervals.TAILS))
        if name == "auprc":
            before = _on_logits(values[name], values_R[name], few)
        if name != "auroc":
            found[name] = values[name], before, now
    curve, plain = decision_curve(sample, ACT), _benefits(sample)
    for t, act in enumerate(ACT):
        now = {"value": curve["net_benefit"][t], "low": curve["low"][t], "high": curve["high"][t]}
        found[f"net benefit {act}"] = now["value"], tuple(plain[t]), now
    fit = assess_calibration(sample)
    with_percentiles = dict.fromkeys(("slope", "intercept"), "percentile")
    kept, intervals.METHODS = intervals.METHODS, intervals.METHODS | with_percentiles
    plain_fit, intervals.METHODS = assess_calibration(sample), kept
    for name in ("slope", "intercept"):
        ends = plain_fit[name]["low"], plain_fit[name]["high"]
        found[name] = fit[name]["value"], ends, fit[name]
    found["ece"] = fit["ece"]["value"], _basic_ece(sample), fit["ece"]
    for name, cut in cuts.items():
        point, (_, counts_R4) = (
            apply_operating_point(sample, {"threshold": cut}),
            confusion_counts(sample, cut),
        )
        for rate in ("sensitivity", "specificity", "ppv", "npv"):
            now, variance = point[rate], float(np.nanvar(rates(counts_R4)[rate]))
            before = now["low"], now["high"]
            if now["value"] not in (0, 1, None):
                before = tuple(intervals.bounded_limits(now["value"], variance, 1.96, None))
            found[f"{rate} at {name}"] = now["value"], before, now
    return found


def _on_logits(value: float, value_R: np.ndarray, num_patients: float) -> Ends:
    quantile, growth = intervals.quantile_and_growth(num_patients)
    half = quantile * growth * float(np.nanstd(intervals.logit(value_R), ddof=1))
    return tuple(special.expit(intervals.logit(value) + np.array([-half, half])))


def _benefits(sample: LabelSample) -> np.ndarray:
    worth_NT = np.where(sample.labels_N[:, None] == 1, 1.0, -ACT / (1 - ACT))
    worth_NT *= sample.probabilities_N[:, None] >= ACT
    sums_RV = sample.sum_replicates(np.column_stack([worth_NT, np.ones(len(sample))]))
    return np.quantile(sums_RV[:, :-1] / sums_RV[:, -1:], intervals.TAILS, axis=0).T


def _basic_ece(sample: LabelSample) -> Ends:
    member_NB = quantile_bins(sample.probabilities_N)[:, None] == np.arange(10)
    gap_NB = (sample.labels_N - sample.probabilities_N)[:, None] * member_NB
    sums_RV = sample.sum_replicates(np.column_stack([gap_NB, np.ones(len(sample))]))
    gap_B, gap_RB = gap_NB.mean(axis=0), sums_RV[:, :-1] / sums_RV[:, -1:]
    value, chance = np.abs(gap_B).sum(), np.quantile(np.abs(gap_RB - gap_B).sum(axis=1), 0.95)
    low, high = np.quantile(np.abs(gap_RB).sum(axis=1), intervals.TAILS)
    return max(0.0, 2 * value - high) if value > chance else 0.0, max(value, 2 * value - low)


def _means(positives: int, options: argparse.Namespace) -> dict[str, list]:
    """5 labels of AUROC 0.75 to 0.95 on the same patients."""
    hits: dict[str, list] = {"macro auroc": [], "macro auprc": []}
    rng, areas, share = np.random.default_rng(options.seed), (0.75, 0.8, 0.85, 0.9, 0.95), positives
    of = lambda sample: {
        m: METRICS[m](sample.labels_N, sample.logits_N) for m in METRICS if "au" in m
    }
    big = [of(draw(np.random.default_rng(9), 100_000, share / 300, a, 2)) for a in areas]
    for _ in range(options.simulations):
        rows = [draw(rng, 300, share / 300, area, options.replicates) for area in areas]
        few = [row.patients_in_smaller_class() for row in rows]
        if min(few) < 2:
            continue
        values_R = {str(k): row.ranking_replicates() for k, row in enumerate(rows)}
        labels = {
            str(k): {m: {"value": v} for m, v in of(row).items()} for k, row in enumerate(rows)
        }
        now = macro(labels, values_R, few)
        for name, held in hits.items():
            metric = name.removeprefix("macro ")
            truth = np.mean([b[metric] for b in big])
            mean_R = np.nanmean([one[metric] for one in values_R.values()], axis=0)
            ends = (
                np.nanquantile(mean_R, intervals.TAILS),
                (now[metric]["low"], now[metric]["high"]),
            )
            held.append([low <= truth <= high for low, high in ends])
    return hits


def interaction_table(options: argparse.Namespace) -> Iterator[str]:
    shares_of = ((0.5, 0.5), (0.15, 0.85), (0.2, 0.2, 0.6))
    for area, patients, shares in product((0.7, 0.9, 0.98, 0.995), (300, 1000), shares_of):
        rng, p = np.random.default_rng(options.seed), []
        while len(p) < options.simulations:
            sample = draw(rng, patients, 0.3, area, options.replicates)
            level_N = rng.choice(len(shares), size=patients, p=shares)[sample.patient_N]
            levels = [sample.take(level_N == level) for level in range(len(shares))]
            levels = [s for s in levels if s.patients_in_smaller_class() >= MIN_PATIENTS]
            if len(levels) > 1:
                value_L = np.array([auroc(s.labels_N, s.logits_N) for s in levels])
                value_LR = np.array([s.ranking_replicates()["auroc"] for s in levels])
                few_L = np.array([s.patients_in_smaller_class() for s in levels])
                p.append(
                    [_on_logit_scale(value_L, value_LR), heterogeneity(value_L, value_LR, few_L)[1]]
                )
        before, now = 100 * (np.array(p) < 0.05).mean(axis=0)
        yield (
            f"AUROC {area:5.3f}, {patients:4d} patients, levels {shares!s:16s} "
            f"before {before:4.1f}  now {now:4.1f}"
        )


def _on_logit_scale(value_L: np.ndarray, replicate_LR: np.ndarray) -> float:
    x_L, x_LR = intervals.logit(value_L), intervals.logit(replicate_LR)
    difference_K, change_KR = x_L[1:] - x_L[0], x_LR[1:] - x_LR[:1]
    change_KR = change_KR[:, np.isfinite(change_KR).all(axis=0)]
    precision_KK = np.linalg.pinv(np.atleast_2d(np.cov(change_KR)))
    return float(stats.chi2.sf(difference_K @ precision_KK @ difference_K, len(difference_K)))
