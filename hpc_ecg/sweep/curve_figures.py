"""Curves of one label on the test set: ROC and precision-recall over all seeds; calibration and
decision curves of each strategy's chosen model, from its evaluation.json."""

# N records, G grid points, S seeds, R replicates

from dataclasses import replace
from typing import Any

import numpy as np

from hpc_ecg.evaluation.bands import Band, precision_recall_band, roc_band
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.plots import Group, Line, line_plot
from hpc_ecg.sweep.comparison import Comparison

BAND_REPLICATES = 200
MOST_BANDS = 3
"""With more strategies, only the best has a band: more cannot be told apart by eye."""


def draw_curves(comparison: Comparison, label: str, end: str) -> dict[str, str]:
    """Name → SVG; each name ends in `end`."""
    roc, precision_recall = _bands(comparison, label)
    prevalence = comparison.counts[label]["prevalence"]
    figures = {
        f"roc{end}": line_plot(
            _groups(roc),
            name=f"roc{end}",
            xlabel="1 − specificity",
            ylabel="sensitivity",
            unit_square=True,
            reference=([0, 1], [0, 1]),
        ),
        f"precision_recall{end}": line_plot(
            _groups(precision_recall),
            name=f"precision_recall{end}",
            xlabel="recall (sensitivity)",
            ylabel="precision (PPV)",
            unit_square=True,
            reference=([0, 1], [prevalence, prevalence]),
        ),
    }
    chosen = [(c.strategy, c.label(label)) for c in comparison.chosen]
    calibration = _with_few_bands([_calibration(*own) for own in chosen])
    if any(group.bold for group in calibration):
        figures[f"calibration{end}"] = line_plot(
            calibration,
            name=f"calibration{end}",
            xlabel="predicted probability",
            ylabel="observed share",
            unit_square=True,
            reference=([0, 1], [0, 1]),
        )
    decision = _with_few_bands([_decision(*own) for own in chosen])
    if any(group.bold for group in decision):
        (curve, *_) = (own["decision_curve"] for _, own in chosen if own.get("decision_curve"))
        figures[f"decision{end}"] = _draw_decision(decision, curve, prevalence, f"decision{end}")
    return figures


def _bands(comparison: Comparison, label: str) -> tuple[dict[str, Band], dict[str, Band]]:
    test = comparison.cells[0].test
    k = test.labels.index(label)
    draws = draw_resamples(test.patient_N, BAND_REPLICATES, comparison.seed)
    found: tuple[dict[str, Band], dict[str, Band]] = {}, {}
    for strategy in comparison.strategies:
        cells = [cell for cell in comparison.cells if cell.strategy == strategy.name]
        scores = [cell.test.logit_NK[:, k] for cell in cells]
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
    return _with_few_bands(groups)


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


def _draw_decision(groups: list[Group], curve: dict[str, Any], prevalence: float, name: str) -> str:
    everybody = Group(name="everybody is treated", bold=(curve["threshold"], curve["treat_all"]))
    tops = [max(group.bold[1]) for group in groups if group.bold]
    return line_plot(
        [*groups, everybody],
        name=name,
        xlabel="probability at which one would act",
        ylabel="net benefit",
        reference=([0, 1], [0, 0]),
        ylim=(-0.25 * prevalence, 1.1 * float(np.max([*tops, prevalence]))),
    )
