"""Curves of one label on the test set: ROC and precision-recall over all seeds; calibration and
decision curves of each strategy's selected model, from its evaluation.json."""

# G grid points, S seeds

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.results import by_strategy
from hpc_ecg.evaluation.bands import Band, precision_recall_band, roc_band
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.reporting.plots import Group, Line, line_plot

BAND_REPLICATES = 200
MAX_BANDS = 3
"""With more strategies, only the best has a band: the eye cannot separate more."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The curves of one label by strategy. A selected model without an evaluation has no line."""

    roc: list[Group]
    precision_recall: list[Group]
    calibration: list[Group]
    decision: list[Group]
    treat_all: Group
    """Net benefit if everybody is treated."""
    prevalence: float


def compute_curves(comparison: Comparison, label: str) -> Curves:
    test = comparison.runs[0].test
    k = test.labels.index(label)
    draws = draw_resamples(test.patient_N, BAND_REPLICATES, comparison.seed)
    runs = by_strategy(comparison.runs)
    roc, precision_recall = [], []
    for strategy in comparison.strategies:
        scores = [run.test.logit_NK[:, k] for run in runs[strategy.name]]
        drawn = draws.patient_N, draws.multiplicity_RP, test.weights(k)
        data = test.label_NK[:, k], scores, *drawn
        roc.append(_group(strategy.name, roc_band(*data)))
        precision_recall.append(_group(strategy.name, precision_recall_band(*data)))
    evaluations = {model.strategy: model.label(label) for model in comparison.selected}
    known = [e["decision_curve"] for e in evaluations.values() if e.get("decision_curve")]
    treat_all = (known[0]["threshold"], known[0]["treat_all"]) if known else None
    return Curves(
        roc=roc,
        precision_recall=precision_recall,
        calibration=[_calibration(name, e) for name, e in evaluations.items()],
        decision=[_decision(name, e) for name, e in evaluations.items()],
        treat_all=Group(name="everybody is treated", bold=treat_all),
        prevalence=comparison.counts[label]["prevalence"],
    )


def draw_curves(curves: Curves, suffix: str) -> dict[str, str]:
    """Draw all curves that have a line: name, which ends in `suffix` → SVG."""
    diagonal, level = ([0, 1], [0, 1]), ([0, 1], [curves.prevalence, curves.prevalence])
    plots: dict[str, tuple[list[Group], str, str, Line]] = {
        "roc": (curves.roc, "1 − specificity", "sensitivity", diagonal),
        "precision_recall": (
            curves.precision_recall,
            "recall (sensitivity)",
            "precision (PPV)",
            level,
        ),
        "calibration": (curves.calibration, "predicted probability", "observed share", diagonal),
    }
    figures = {}
    for kind, (groups, xlabel, ylabel, reference) in plots.items():
        if any(group.bold for group in groups):
            figures[kind + suffix] = line_plot(
                _limit_bands(groups),
                name=kind + suffix,
                xlabel=xlabel,
                ylabel=ylabel,
                unit_square=True,
                reference=reference,
            )
    if curves.treat_all.bold:
        figures[f"decision{suffix}"] = _draw_decision(curves, f"decision{suffix}")
    return figures


def _group(name: str, band: Band) -> Group:
    """The mean over seeds bold, single seeds thin."""
    x = band.x_G.tolist()
    seeds: list[Line] = [(x, y.tolist()) for y in band.seed_SG]
    return Group(
        name=name,
        thin=seeds if len(seeds) > 1 else [],
        bold=(x, band.seed_SG.mean(axis=0).tolist()),
        band=(x, band.low_G.tolist(), band.high_G.tolist()),
    )


def _limit_bands(groups: list[Group]) -> list[Group]:
    if len(groups) <= MAX_BANDS:
        return groups
    return [groups[0], *(replace(group, band=None) for group in groups[1:])]


def _calibration(name: str, evaluation: dict[str, Any]) -> Group:
    curve = evaluation.get("calibration", {}).get("curve", [])
    if not curve:
        return Group(name=name)
    keys = ("predicted", "observed", "low", "high")
    x, y, low, high = ([part[key] for part in curve] for key in keys)
    return Group(name=name, bold=(x, y), band=(x, low, high))


def _decision(name: str, evaluation: dict[str, Any]) -> Group:
    curve = evaluation.get("decision_curve", {})
    if not curve:
        return Group(name=name)
    x = curve["threshold"]
    return Group(name=name, bold=(x, curve["net_benefit"]), band=(x, curve["low"], curve["high"]))


def _draw_decision(curves: Curves, name: str) -> str:
    highest = [max(group.bold[1]) for group in curves.decision if group.bold]
    return line_plot(
        [*_limit_bands(curves.decision), curves.treat_all],
        name=name,
        xlabel="probability at which one would act",
        ylabel="net benefit",
        reference=([0, 1], [0, 0]),
        ylim=(-0.25 * curves.prevalence, 1.1 * float(np.max([*highest, curves.prevalence]))),
    )
