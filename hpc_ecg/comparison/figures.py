"""The figures of a sweep's report: a `Comparison` in, SVG texts by name out.

A figure that makes no sense for the task is left out: no ROC curve for a regression, no differences
with one strategy, no learning curves without events. Of several labels each has its own curves.
"""

import re
from collections.abc import Mapping

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.curve_figures import Curves, draw_curves
from hpc_ecg.comparison.results import RunResult
from hpc_ecg.evaluation.metrics import METRIC_NAMES
from hpc_ecg.reporting.plots import ForestRow, Group, Line, forest_plot, line_plot
from hpc_ecg.sweep.folder import read_events

FRACTION = "data.label_fraction"
MAX_POINTS = 300
MAX_PAIRS = 28  # all pairs of eight strategies
MOST_LABELS = 8
"""With more labels, the first ones have curves; tables and JSON have all."""
Learning = dict[tuple[str, int], Line]
"""By strategy and seed."""


def draw_figures(
    comparison: Comparison, curves: Mapping[str, Curves], learning: Mapping[str, Learning]
) -> dict[str, str]:
    """Name → SVG; `curves`: of each of `drawn_labels`; `learning`: `learning_curves`. Strategies
    keep their colour and line style through all of them."""
    figures: dict[str, str | None] = {"strategies": draw_strategies(comparison)}
    if comparison.pairs:
        figures["differences"] = draw_differences(comparison)
    for label, end in drawn_labels(comparison).items():
        figures |= draw_curves(curves[label], end)
        figures[f"subgroups{end}"] = draw_subgroups(comparison, label, f"subgroups{end}")
    figures["efficiency"] = draw_efficiency(comparison)
    ylabels = {"validation": f"validation {_selection(comparison.cells)}", "loss": "training loss"}
    for name, by_cell in learning.items():
        groups = [
            Group(name=s.name, thin=[by_cell[s.name, k] for k in s.seeds if (s.name, k) in by_cell])
            for s in comparison.strategies
        ]
        figures[name] = line_plot(groups, name=name, xlabel="step", ylabel=ylabels[name])
    return {name: svg for name, svg in figures.items() if svg}


def drawn_labels(comparison: Comparison) -> dict[str, str]:
    """Label → how the names of its figures end: "" for a single one, else "-" and its name."""
    if comparison.task == "regression":
        return {}
    if len(comparison.labels) == 1:
        return {comparison.labels[0]: ""}
    ends: dict[str, str] = {}
    for number, label in enumerate(comparison.labels[:MOST_LABELS], 1):
        end = "-" + re.sub(r"[^\w.-]+", "-", label)
        ends[label] = end if end not in ends.values() else f"{end}-{number}"
    return ends


def draw_strategies(comparison: Comparison) -> str:
    rows = []
    for style, strategy in enumerate(comparison.strategies):
        estimate = strategy.estimates[comparison.metric]
        points = list(strategy.per_seed[comparison.metric].values())
        rows.append(
            ForestRow(
                name=strategy.name,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                points=points,
                style=style,
            )
        )
    for reference in comparison.reference_models:
        if reference.estimates:
            e = reference.estimates[comparison.metric]
            name = (
                reference.name
                if reference.kind == "baseline"
                else f"{reference.name}, {reference.kind}"
            )
            rows.append(ForestRow(name=name, value=e.value, low=e.low, high=e.high, style=6))
    return forest_plot(rows, f"{comparison.metric_name}, 95 % interval", name="strategies")


def draw_differences(comparison: Comparison) -> str:
    """Pairs by the order of their first strategy; with many strategies, the first ones only."""
    rows = [
        ForestRow(
            name=f"{pair.first} − {pair.second}",
            value=pair.estimate.value,
            low=pair.estimate.low,
            high=pair.estimate.high,
            style=6,
        )
        for pair in comparison.pairs[:MAX_PAIRS]
    ]
    label = f"difference in {comparison.metric_name}, 95 % interval"
    return forest_plot(rows, label, name="differences", reference=0.0)


def draw_efficiency(comparison: Comparison) -> str | None:
    """Metric by share of the training patients, a line per strategy; None if no grid varied it."""
    groups = []
    for base in dict.fromkeys(s.base for s in comparison.strategies):
        arms = [s for s in comparison.strategies if s.base == base and list(s.varied) == [FRACTION]]
        arms.sort(key=lambda s: s.varied[FRACTION])
        if len(arms) > 1:
            x = [100 * float(s.varied[FRACTION]) for s in arms]
            estimates = [s.estimates[comparison.metric] for s in arms]
            bold = x, [e.value for e in estimates]
            band = x, [e.low for e in estimates], [e.high for e in estimates]
            groups.append(Group(name=base, bold=bold, band=band))
    if not groups:
        return None
    return line_plot(
        groups,
        name="efficiency",
        xlabel="training patients used (%)",
        ylabel=comparison.metric_name,
        log_x=True,
    )


def draw_subgroups(comparison: Comparison, name: str, figure: str) -> str | None:
    """AUROC of the best strategy's chosen model by subgroup; None if there are none."""
    chosen = comparison.chosen[0]
    label = chosen.label(name)
    found = [level for level in label.get("subgroups", []) if level.get("auroc")]
    if not found:
        return None
    levels = [("all", label["auroc"])]
    levels += [(f"{level['group']}: {level['level']}", level["auroc"]) for level in found]
    rows = [
        ForestRow(
            name=name, value=a["value"], low=a["low"], high=a["high"], style=6 * (name == "all")
        )
        for name, a in levels
    ]
    label_x = f"AUROC of {chosen.cell.name}, 95 % interval"
    return forest_plot(rows, label_x, name=figure, reference=label["auroc"]["value"])


def learning_curves(comparison: Comparison) -> dict[str, Learning]:
    """The validation metric and the training loss by step, of each strategy and seed that has
    them."""
    found = {}
    for name, event, key in (("validation", "eval", "score"), ("loss", "step", "loss")):
        lines = {(c.strategy, c.seed): _series(c, event, key) for c in comparison.cells}
        if known := {cell: line for cell, line in lines.items() if line[0]}:
            found[name] = known
    return found


def _selection(cells: list[RunResult]) -> str:
    """The metric that chose the best step, as the runs call it."""
    names = {str(cell.finished.get("metric", "metric")) for cell in cells}
    return " or ".join(sorted(METRIC_NAMES.get(name, name) for name in names))


def _series(cell: RunResult, event: str, key: str) -> Line:
    """Value by step; long series are averaged in blocks."""
    events = [e for e in read_events(cell.run.metrics) if e.get("event") == event]
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if not points:
        return [], []
    blocks = np.array_split(np.array(points, dtype=float), min(len(points), MAX_POINTS))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0].tolist(), means[:, 1].tolist()
