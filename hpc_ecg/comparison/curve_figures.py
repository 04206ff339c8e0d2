"""Curves of a label on the test set: ROC and precision-recall over all seeds; calibration and
decision curves of each strategy's chosen model, from its evaluation.json."""

# N records, G grid points, S seeds, R replicates

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.evaluation.bands import Band, precision_recall_band, roc_band
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.reporting.plots import Group, Line, line_plot

BAND_REPLICATES = 200
MOST_BANDS = 3
"""With more strategies, only the best has a band: more cannot be told apart by eye."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Of one label, by strategy; those of chosen models have no line where nothing is known."""

    roc: list[Group]
    precision_recall: list[Group]
    calibration: list[Group]
    decision: list[Group]
    treat_all: Group
    """Net benefit if everybody is treated."""
    prevalence: float


def curves_of(comparison: Comparison, label: str) -> Curves:
    roc, precision_recall = _bands(comparison, label)
    chosen = [(c.strategy, c.label(label)) for c in comparison.selected]
    known = [own["decision_curve"] for _, own in chosen if own.get("decision_curve")]
    everybody = (known[0]["threshold"], known[0]["treat_all"]) if known else None
    return Curves(
        roc=_groups(roc),
        precision_recall=_groups(precision_recall),
        calibration=[_calibration(*own) for own in chosen],
        decision=[_decision(*own) for own in chosen],
        treat_all=Group(name="everybody is treated", bold=everybody),
        prevalence=comparison.counts[label]["prevalence"],
    )


def draw_curves(curves: Curves, end: str) -> dict[str, str]:
    """Name → SVG; each name ends in `end`."""
    figures = {
        f"roc{end}": line_plot(
            _with_few_bands(curves.roc),
            name=f"roc{end}",
            xlabel="1 − specificity",
            ylabel="sensitivity",
            unit_square=True,
            reference=([0, 1], [0, 1]),
        ),
        f"precision_recall{end}": line_plot(
            _with_few_bands(curves.precision_recall),
            name=f"precision_recall{end}",
            xlabel="recall (sensitivity)",
            ylabel="precision (PPV)",
            unit_square=True,
            reference=([0, 1], [curves.prevalence, curves.prevalence]),
        ),
    }
    if any(group.bold for group in curves.calibration):
        figures[f"calibration{end}"] = line_plot(
            _with_few_bands(curves.calibration),
            name=f"calibration{end}",
            xlabel="predicted probability",
            ylabel="observed share",
            unit_square=True,
            reference=([0, 1], [0, 1]),
        )
    if curves.treat_all.bold:
        figures[f"decision{end}"] = _draw_decision(curves, f"decision{end}")
    return figures


def _bands(comparison: Comparison, label: str) -> tuple[dict[str, Band], dict[str, Band]]:
    test = comparison.runs[0].test
    k = test.labels.index(label)
    draws = draw_resamples(test.patient_N, BAND_REPLICATES, comparison.seed)
    found: tuple[dict[str, Band], dict[str, Band]] = {}, {}
    for strategy in comparison.strategies:
        runs = [run for run in comparison.runs if run.strategy == strategy.name]
        scores = [run.test.logit_NK[:, k] for run in runs]
        common = test.label_NK[:, k], scores, draws.patient_N, draws.multiplicity_RP
        found[0][strategy.name] = roc_band(*common)
        found[1][strategy.name] = precision_recall_band(*common)
    return found


def _groups(bands: dict[str, Band]) -> list[Group]:
    """Mean over seeds bold, seeds thin."""
    groups = []
    for name, band in bands.items():
        x = band.x_G.tolist()
        thin: list[Line] = [(x, y.tolist()) for y in band.seed_SG] if len(band.seed_SG) > 1 else []
        groups.append(
            Group(
                name=name,
                thin=thin,
                bold=(x, band.seed_SG.mean(axis=0).tolist()),
                band=(x, band.low_G.tolist(), band.high_G.tolist()),
            )
        )
    return groups


def _with_few_bands(groups: list[Group]) -> list[Group]:
    if len(groups) <= MOST_BANDS:
        return groups
    return [groups[0], *(replace(group, band=None) for group in groups[1:])]


def _calibration(name: str, label: dict[str, Any]) -> Group:
    curve = label.get("calibration", {}).get("curve", [])
    if not curve:
        return Group(name=name)
    keys = ("predicted", "observed", "low", "high")
    x, y, low, high = ([part[key] for part in curve] for key in keys)
    return Group(name=name, bold=(x, y), band=(x, low, high))


def _decision(name: str, label: dict[str, Any]) -> Group:
    curve = label.get("decision_curve", {})
    if not curve:
        return Group(name=name)
    x = curve["threshold"]
    return Group(name=name, bold=(x, curve["net_benefit"]), band=(x, curve["low"], curve["high"]))


def _draw_decision(curves: Curves, name: str) -> str:
    tops = [max(group.bold[1]) for group in curves.decision if group.bold]
    return line_plot(
        [*_with_few_bands(curves.decision), curves.treat_all],
        name=name,
        xlabel="probability at which one would act",
        ylabel="net benefit",
        reference=([0, 1], [0, 0]),
        ylim=(-0.25 * curves.prevalence, 1.1 * float(np.max([*tops, curves.prevalence]))),
    )
