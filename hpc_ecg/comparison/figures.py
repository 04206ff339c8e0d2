"""The figures of a sweep's report: name → SVG.

A figure that makes no sense for the task is left out: no ROC curve for a regression, no differences
with one strategy, no learning curves without events. Each of several labels has its own curves.
"""

import re
from collections.abc import Mapping

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.curve_figures import Curves, draw_curves
from hpc_ecg.comparison.grid_arms import FRACTION
from hpc_ecg.comparison.results import RunResult
from hpc_ecg.evaluation.comparisons import Estimate
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.reporting.plots import ForestRow, Group, Line, forest_plot, line_plot
from hpc_ecg.sweep.folder import read_events

MAX_POINTS = 300
MAX_PAIRS = 28  # all pairs of eight strategies
MAX_LABELS = 8
"""With more labels, only the first ones have curves; tables and JSON have all."""
BLACK = 6
"""The style of all that is not one strategy."""
Learning = dict[tuple[str, int], Line]
"""By strategy and seed."""


def draw_figures(
    comparison: Comparison, curves: Mapping[str, Curves], learning: Mapping[str, Learning]
) -> dict[str, str]:
    """Draw all figures; `curves` holds those of each of `labels_with_curves`.

    A strategy keeps its colour and line style through all figures.
    """
    figures: dict[str, str | None] = {"strategies": draw_strategies(comparison)}
    figures["references"] = _draw_references(comparison)
    figures["differences"] = _draw_differences(comparison)
    for label, suffix in labels_with_curves(comparison).items():
        figures |= draw_curves(curves[label], suffix)
        figures[f"subgroups{suffix}"] = _draw_subgroups(comparison, label, f"subgroups{suffix}")
    figures["efficiency"] = _draw_efficiency(comparison)
    for name, by_run in learning.items():
        figures[name] = _draw_learning(comparison, name, by_run)
    return {name: svg for name, svg in figures.items() if svg}


def labels_with_curves(comparison: Comparison) -> dict[str, str]:
    """Label → suffix of its figures' names: "" for a single label, else "-" and its name."""
    if comparison.task == "regression":
        return {}
    if len(comparison.labels) == 1:
        return {comparison.labels[0]: ""}
    suffixes: dict[str, str] = {}
    for number, label in enumerate(comparison.labels[:MAX_LABELS], 1):
        suffix = "-" + re.sub(r"[^\w.-]+", "-", label)[:60]
        suffixes[label] = suffix if suffix not in suffixes.values() else f"{suffix}-{number}"
    return suffixes


def learning_curves(comparison: Comparison) -> dict[str, Learning]:
    """Validation metric and training loss by step, for each run that logged them."""
    curves = {}
    for name, event, key in (("validation", "eval", "score"), ("loss", "step", "loss")):
        lines = {(r.strategy, r.seed): _series(r, event, key) for r in comparison.runs}
        if known := {run: line for run, line in lines.items() if line[0]}:
            curves[name] = known
    return curves


def draw_strategies(comparison: Comparison) -> str:
    metric = comparison.metric
    rows = [
        _row(s.name, s.estimates[metric], style, tuple(s.per_seed[metric].values()))
        for style, s in enumerate(comparison.strategies)
    ]
    rows += _reference_rows(comparison, ("baseline",))
    return forest_plot(rows, f"{comparison.metric_name}, 95 % interval", name="strategies")


def _draw_references(comparison: Comparison) -> str | None:
    rows = _reference_rows(comparison, ("ensemble", "soup"))
    label = f"{comparison.metric_name}, 95 % interval"
    return forest_plot(rows, label, name="references") if rows else None


def _reference_rows(comparison: Comparison, kinds: tuple[str, ...]) -> list[ForestRow]:
    return [
        _row(model.title, model.estimates[comparison.metric], BLACK)
        for model in comparison.reference_models
        if model.estimates and model.kind in kinds
    ]


def _draw_differences(comparison: Comparison) -> str | None:
    """Pairs by the order of their first strategy; with many strategies, the first pairs only."""
    pairs = comparison.pairs[:MAX_PAIRS]
    if not pairs:
        return None
    rows = [_row(f"{pair.first} − {pair.second}", pair.estimate, BLACK) for pair in pairs]
    label = f"difference in {comparison.metric_name}, 95 % interval"
    return forest_plot(rows, label, name="differences", reference=0.0)


def _row(name: str, e: Estimate, style: int, points: tuple[float, ...] = ()) -> ForestRow:
    return ForestRow(name=name, value=e.value, low=e.low, high=e.high, points=points, style=style)


def _draw_efficiency(comparison: Comparison) -> str | None:
    """Metric by share of the training patients, a line per strategy; None if no grid varied it."""
    groups = []
    for base in dict.fromkeys(s.base for s in comparison.strategies):
        arms = [s for s in comparison.strategies if s.base == base and list(s.varied) == [FRACTION]]
        arms.sort(key=lambda s: s.varied[FRACTION])
        if len(arms) > 1:
            x = [100 * float(s.varied[FRACTION]) for s in arms]
            estimates = [s.estimates[comparison.metric] for s in arms]
            line = x, [e.value for e in estimates]
            band = x, [e.low for e in estimates], [e.high for e in estimates]
            groups.append(Group(name=base, bold=line, band=band))
    if not groups:
        return None
    return line_plot(
        groups,
        name="efficiency",
        xlabel="training patients used (%)",
        ylabel=comparison.metric_name,
        log_x=True,
    )


def _draw_subgroups(comparison: Comparison, label: str, figure: str) -> str | None:
    """AUROC of the best strategy's selected model by subgroup; None if there are none."""
    model = comparison.selected[0]
    evaluation = model.label(label)
    levels = [level for level in evaluation.get("subgroups", []) if level.get("auroc")]
    if not levels:
        return None
    named = [("all", evaluation["auroc"])]
    named += [(f"{level['group']}: {level['level']}", level["auroc"]) for level in levels]
    rows = [
        ForestRow(
            name=name, value=a["value"], low=a["low"], high=a["high"], style=BLACK * (name == "all")
        )
        for name, a in named
    ]
    xlabel = f"AUROC of {model.run.name}, 95 % interval"
    return forest_plot(rows, xlabel, name=figure, reference=evaluation["auroc"]["value"])


def _draw_learning(comparison: Comparison, name: str, by_run: Learning) -> str:
    groups = [
        Group(name=s.name, thin=[by_run[s.name, k] for k in s.seeds if (s.name, k) in by_run])
        for s in comparison.strategies
    ]
    metrics = {str(run.finished.get("metric", "metric")) for run in comparison.runs}
    names = " or ".join(sorted(METRIC_NAMES.get(metric, metric) for metric in metrics))
    ylabel = "training loss" if name == "loss" else f"validation {names}"
    return line_plot(groups, name=name, xlabel="step", ylabel=ylabel)


def _series(run: RunResult, event: str, key: str) -> Line:
    """Values by step; long series are averaged in blocks."""
    events = [e for e in read_events(run.folder.metrics) if e.get("event") == event]
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if not points:
        return [], []
    blocks = np.array_split(np.array(points, dtype=float), min(len(points), MAX_POINTS))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0].tolist(), means[:, 1].tolist()
