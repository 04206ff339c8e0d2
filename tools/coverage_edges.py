"""Tables of tools/coverage_tables.py where intervals and tests are hardest (1 to 5 ECGs a patient).

edges        coverage of 95 % intervals, before (rates: Wilson's with the bootstrap's variance;
             others: percentiles, as before but for AUPRC and ECE) and now; at the end the lowest
             row of each metric. Logits are those of the true risk, times 1 at AUROC 0.8 and 1.5
             above
interaction  p < 0.05 where the levels of a subgroup do not differ, before (on the logit scale, no
             bound near 1) and now
update       updates that closed testing makes (evaluation/closed_testing.py) of a model that is
             right, one whose prevalence is wrong, one that is too extreme, and one whose score
             misses half of what 16 features say; `naive`: the same tests on all ECGs, for none
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from coverage_before import beside, quoted
from scipy import special, stats
from simulated_cohorts import noise

from hpc_ecg.evaluation import intervals
from hpc_ecg.evaluation.averages import macro
from hpc_ecg.evaluation.closed_testing import METHODS, UpdateSample, choose_update
from hpc_ecg.evaluation.decision import decision_curve
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import auprc, auroc, brier, log_loss
from hpc_ecg.evaluation.reliability import assess_calibration
from hpc_ecg.evaluation.resampling import draw_multiplicities
from hpc_ecg.evaluation.subgroups import MIN_PATIENTS, heterogeneity
from hpc_ecg.evaluation.thresholds import apply_operating_point, confusion_counts, rates

# N records, P patients, R replicates, L levels or labels

DESIGNS = ((200, 0.05), (200, 0.2), (400, 0.03), (400, 0.1), (600, 0.03), (600, 0.2))
ACT = np.array([0.1, 0.5, 0.8])
Row = tuple[str, str, float, float]
Found = dict[str, tuple[Sequence[float] | np.ndarray, dict]]
LOGITS, RISKS = {"auroc": auroc, "auprc": auprc}, {"brier": brier, "log_loss": log_loss}


def draw(
    rng: np.random.Generator, patients: int, prevalence: float, area: float, replicates: int = 2
) -> LabelSample:
    patient_N = np.repeat(np.arange(patients), rng.permutation(np.arange(patients) % 5 + 1))
    label_N = (rng.random(patients) < prevalence).astype(float)[patient_N]
    shift, slope = np.sqrt(2) * stats.norm.ppf(area), 1.0 if area < 0.9 else 1.5
    score_N = shift * label_N + noise(rng, patient_N, 1.0)
    logit_N = slope * (shift * score_N - shift**2 / 2 + special.logit(prevalence))
    draws_RP = draw_multiplicities(patients, replicates, int(rng.integers(4)))
    names = ("record_N", "labels_N", "logits_N", "probabilities_N", "patient_N")
    arrays = patient_N, label_N, logit_N, special.expit(logit_N), patient_N
    named = dict(zip(names, arrays, strict=True))
    return LabelSample(
        **named, multiplicity_RP=draws_RP, groups={}, weights_N=np.ones(len(label_N))
    )


def edges_table(options: argparse.Namespace) -> Iterator[str]:
    rows: list[Row] = []
    for (patients, prevalence), area in product(DESIGNS, (0.8, 0.95, 0.99)):
        big = draw(np.random.default_rng(9), 100_000, prevalence, area)
        p_N, y_N = big.probabilities_N, big.labels_N
        cuts = {f"sens. {s}": np.quantile(p_N[y_N == 1], 1 - s) for s in (0.9, 0.97, 0.99)}
        cuts |= {f"spec. {s}": np.quantile(p_N[y_N == 0], s) for s in (0.97, 0.99)}
        truth = {name: now["value"] for name, (_, now) in _measure(big, cuts).items()}
        truth["ece"] *= area > 0.9
        rng, design = np.random.default_rng(options.seed), (patients, prevalence, area)
        found = [
            _measure(draw(rng, *design, options.replicates), cuts)
            for _ in range(options.simulations)
        ]
        rows += _rows(f"{patients} patients, {prevalence:3.0%}, AUROC {area}", truth, found)
        yield from _lines(rows[-len(truth) :])
    for positives in (7, 10, 20):
        rng, share = np.random.default_rng(options.seed), positives / 300
        truth = {k: now["value"] for k, (_, now) in _means(rng, 30_000, share, 2).items()}
        found = [_means(rng, 300, share, options.replicates) for _ in range(options.simulations)]
        rows += _rows(f"300 patients, 5 labels, {positives} positive", truth, found)
        yield from _lines(rows[-len(truth) :])
    metrics = [name.split(" at ")[0] for _, name, *_ in rows]
    for metric in dict.fromkeys(metrics):
        same = [row for row, name in zip(rows, metrics, strict=True) if name == metric]
        yield from _lines(
            [("lowest of all", metric, *np.nanmin([row[2:] for row in same], axis=0))]
        )


def _lines(rows: list[Row]) -> Iterator[str]:
    for design, name, before, now in rows:
        old = quoted(("edges", name), figures=True) if design == "lowest of all" else ""
        yield f"{design}, {name:22s} {beside(now, computed=before)}{old}"


def _rows(design: str, truth: dict[str, float], found: list[Found]) -> Iterator[Row]:
    """Design, metric, and the coverage before and now of the intervals that are not withheld."""
    for name, true in truth.items():
        pairs = [one[name] for one in found if name in one and one[name][1]["low"] is not None]
        before = 100 * np.mean([low <= true <= high for (low, high), _ in pairs])
        now = 100 * np.mean([now["low"] <= true <= now["high"] for _, now in pairs])
        yield design, name, float(before), float(now)


def _measure(sample: LabelSample, cuts: dict[str, float]) -> Found:
    """By name: the limits before, and the interval now; {} with fewer than 2 positive patients."""
    if sample.patients_in_smaller_class() < 2:
        return {}
    y_N, values_R = sample.labels_N, sample.replicates()
    values = {name: compute(y_N, sample.logits_N) for name, compute in LOGITS.items()}
    values |= {name: compute(y_N, sample.probabilities_N) for name, compute in RISKS.items()}
    found: Found = {
        name: (np.nanquantile(values_R[name], intervals.TAILS), now)
        for name, now in metric_intervals(values, values_R, sample).items()
    }
    curve, worth_NT = decision_curve(sample, ACT), np.where(y_N[:, None] == 1, 1, -ACT / (1 - ACT))
    worth_NT = worth_NT * (sample.probabilities_N[:, None] >= ACT)
    sums_RV = sample.sum_replicates(np.column_stack([worth_NT, np.ones(len(sample))]))
    plain_2T = np.quantile(sums_RV[:, :-1] / sums_RV[:, -1:], intervals.TAILS, axis=0)
    for t, act in enumerate(ACT):
        now = {end: curve[end][t] for end in ("low", "high")} | {"value": curve["net_benefit"][t]}
        found[f"net benefit {act}"] = plain_2T[:, t], now
    fit, kept = assess_calibration(sample), intervals.METHODS
    intervals.METHODS = {}  # percentiles
    plain = assess_calibration(sample)
    intervals.METHODS = kept
    for name in ("slope", "intercept", "ece"):
        found[name] = (plain[name]["low"], plain[name]["high"]), fit[name]
    for name, cut in cuts.items():
        point = apply_operating_point(sample, {"threshold": cut})
        rates_R = rates(confusion_counts(sample, cut)[1])
        for rate in ("sensitivity", "specificity", "ppv", "npv"):
            now, variance = point[rate], float(np.nanvar(rates_R[rate]))
            ends: Sequence[float] = (now["low"], now["high"])
            if now["value"] not in (0, 1, None):
                ends = intervals.bounded_limits(now["value"], variance, 1.96, None).tolist()
            found[f"{rate} at {name}"] = ends, now
    return found


def _means(rng: np.random.Generator, patients: int, share: float, replicates: int) -> Found:
    """5 labels of AUROC 0.75 to 0.95."""
    rows = [draw(rng, patients, share, area, replicates) for area in (0.75, 0.8, 0.85, 0.9, 0.95)]
    few = [row.patients_in_smaller_class() for row in rows]
    if min(few) < 2:
        return {}
    values_R = {str(k): row.ranking_replicates() for k, row in enumerate(rows)}
    labels = {
        str(k): {m: {"value": f(row.labels_N, row.logits_N)} for m, f in LOGITS.items()}
        for k, row in enumerate(rows)
    }
    means_R = {m: np.nanmean([one[m] for one in values_R.values()], axis=0) for m in LOGITS}
    now = macro(labels, values_R, few)
    return {f"macro {m}": (np.nanquantile(means_R[m], intervals.TAILS), now[m]) for m in LOGITS}


def interaction_table(options: argparse.Namespace) -> Iterator[str]:
    shares_of = ((0.5, 0.5), (0.15, 0.85), (0.2, 0.2, 0.6))
    for area, patients, shares in product((0.7, 0.9, 0.98, 0.995), (300, 1000), shares_of):
        rng, p = np.random.default_rng(options.seed), list[list[float]]()
        while len(p) < options.simulations:
            sample = draw(rng, patients, 0.3, area, options.replicates)
            level_N = rng.choice(len(shares), size=patients, p=shares)[sample.patient_N]
            levels = [sample.take(level_N == level) for level in range(len(shares))]
            levels = [s for s in levels if s.patients_in_smaller_class() >= MIN_PATIENTS]
            if len(levels) > 1:
                value_L = np.array([auroc(s.labels_N, s.logits_N) for s in levels])
                value_LR = np.array([s.ranking_replicates()["auroc"] for s in levels])
                few_L = np.array([s.patients_in_smaller_class() for s in levels])
                now = heterogeneity(value_L, value_LR, few_L)[1]
                p.append([_on_logit_scale(value_L, value_LR), now])
        before, now = 100 * (np.array(p) < 0.05).mean(axis=0)
        design = f"AUROC {area:5.3f}, {patients:4d} patients, levels {shares!s:16s}"
        old = quoted(("interaction", area), figures=True)
        yield f"{design} {beside(now, computed=before)}{old}"


def _on_logit_scale(value_L: np.ndarray, replicate_LR: np.ndarray) -> float:
    x_L, x_LR = intervals.logit(value_L), intervals.logit(replicate_LR)
    difference_K, change_KR = x_L[1:] - x_L[0], x_LR[1:] - x_LR[:1]
    change_KR = change_KR[:, np.isfinite(change_KR).all(axis=0)]
    precision_KK = np.linalg.pinv(np.atleast_2d(np.cov(change_KR)))
    return float(stats.chi2.sf(difference_K @ precision_KK @ difference_K, len(difference_K)))


def update_table(options: argparse.Namespace) -> Iterator[str]:
    cells = (*product(((100, 0.1), (200, 0.1), (1000, 0.02), (500, 0.2)), (0.75, 0.9)),)
    cases = {"right": (0.0, 1.0, 0.0), "prevalence": (0.7, 1.0, 0.0)}
    cases |= {"extreme": (0.0, 2.0, 0.0), "head": (0.0, 1.0, 1.0)}
    for case, wrong in cases.items():
        for (patients, prevalence), area in cells if case == "right" else (cells[2], cells[6]):
            rng = np.random.default_rng(options.seed)
            made: list[tuple[str, bool]] = []
            while len(made) < options.simulations:
                sample = _new_hospital(rng, patients, prevalence, area, *wrong)
                if len(np.unique(sample.patient_N[sample.labels_N == 1])) < 10:
                    continue
                each_N = np.arange(len(sample.labels_N))
                naive = choose_update(replace(sample, patient_N=each_N), METHODS[2], "")[0]
                update = choose_update(sample, METHODS[3], case)[0]
                made.append((update["method"], naive["p_values"]["none"] < 0.05))
            methods, naive_S = (np.array(column) for column in zip(*made, strict=True))
            shares = "  ".join(f"{m} {100 * np.mean(methods == m):5.1f}" for m in METHODS[:4])
            cell = f"{patients:5d} patients, {prevalence:4.0%}, AUROC {area:.2f}"
            yield f"{case:10} {cell}  {shares}  naive {100 * naive_S.mean():5.1f}"


def _new_hospital(
    rng: np.random.Generator,
    patients: int,
    prevalence: float,
    area: float,
    shift: float,
    slope: float,
    missed: float,
) -> UpdateSample:
    """The old logits are right, or `shift` too low, or `slope` times too extreme; or a feature
    that they leave out separates the classes by `missed` standard deviations."""
    drawn = draw(rng, patients, prevalence, min(area, 0.8))
    patient_N, label_N = drawn.patient_N, drawn.labels_N
    distance = np.sqrt(2) * stats.norm.ppf(area)
    score_N = distance * label_N + noise(rng, patient_N, 1.0)
    right_N = distance * score_N - distance**2 / 2 + special.logit(prevalence)
    others = [noise(rng, patient_N, 1.0) + missed * label_N * (n == 0) for n in range(15)]
    ones_N, features_ND = np.ones(len(label_N)), np.column_stack([score_N, *others])
    logit_N = slope * right_N - shift
    return UpdateSample(label_N, logit_N, patient_N, ones_N, features_ND, np.nan * ones_N)
