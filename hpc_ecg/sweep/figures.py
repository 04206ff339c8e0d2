"""The figures of a sweep's report: a `Comparison` in, SVG texts by name out.

A figure that makes no sense for the task is left out: no ROC curve for a regression or for many
labels, no differences with one strategy, no learning curves without events.
"""

from collections.abc import Callable

import numpy as np

from hpc_ecg.evaluation.curves import precision_recall_on_grid, roc_on_grid
from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.plots import Group, Line, Row, forest_plot, line_plot
from hpc_ecg.sweep.cells import CellResult, read_events
from hpc_ecg.sweep.compare import METRIC_NAMES, Comparison

MAX_POINTS = 300
MAX_PAIRS = 28  # all pairs of eight strategies
Curve = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]


def draw_figures(comparison: Comparison) -> dict[str, str]:
    """Name → SVG. Strategies keep their colour and line style through all of them."""
    figures = {"strategies": draw_strategies(comparison)}
    if comparison.pairs:
        figures["differences"] = draw_differences(comparison)
    if comparison.task != "regression" and len(comparison.labels) == 1:
        figures["roc"] = draw_roc(comparison)
        figures["precision_recall"] = draw_precision_recall(comparison)
    for name, event, key, ylabel in (
        ("validation", "eval", "score", f"validation {_selection(comparison.cells)}"),
        ("loss", "step", "loss", "training loss"),
    ):
        groups = _learning(comparison, event, key)
        if any(group.thin for group in groups):
            figures[name] = line_plot(groups, name=name, xlabel="step", ylabel=ylabel)
    return figures


def draw_strategies(comparison: Comparison) -> str:
    rows = []
    for style, strategy in enumerate(comparison.strategies):
        estimate = strategy.estimates[comparison.metric]
        points = list(strategy.per_seed[comparison.metric].values())
        rows.append(
            Row(
                name=strategy.name,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                points=points,
                style=style,
            )
        )
    return forest_plot(rows, f"{comparison.metric_name}, 95 % interval", name="strategies")


def draw_differences(comparison: Comparison) -> str:
    """Pairs by the order of their first strategy; with many strategies, the first ones only."""
    rows = [
        Row(
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


def draw_roc(comparison: Comparison) -> str:
    groups = _curves(comparison, roc_on_grid)
    return line_plot(
        groups,
        name="roc",
        xlabel="1 − specificity",
        ylabel="sensitivity",
        unit_square=True,
        reference=([0, 1], [0, 1]),
    )


def draw_precision_recall(comparison: Comparison) -> str:
    (counts,) = comparison.counts.values()
    groups = _curves(comparison, precision_recall_on_grid)
    prevalence = counts["prevalence"]
    return line_plot(
        groups,
        name="precision_recall",
        xlabel="recall (sensitivity)",
        ylabel="precision (PPV)",
        unit_square=True,
        reference=([0, 1], [prevalence, prevalence]),
    )


def _curves(comparison: Comparison, curve: Curve) -> list[Group]:
    """Seeds thin, their mean at each grid point bold."""
    groups = []
    for strategy in comparison.strategies:
        lines = [
            _curve_of(cell, comparison.labels[0], curve)
            for cell in comparison.cells
            if cell.strategy == strategy.name
        ]
        mean = (lines[0][0], np.mean([y for _, y in lines], axis=0))
        thin: list[Line] = [(x.tolist(), y.tolist()) for x, y in lines] if len(lines) > 1 else []
        groups.append(
            Group(name=strategy.name, thin=thin, bold=(mean[0].tolist(), mean[1].tolist()))
        )
    return groups


def _curve_of(cell: CellResult, label: str, curve: Curve) -> tuple[FloatArray, FloatArray]:
    k = cell.test.labels.index(label)
    return curve(cell.test.label_NK[:, k], cell.test.logit_NK[:, k])


def _learning(comparison: Comparison, event: str, key: str) -> list[Group]:
    groups = []
    for strategy in comparison.strategies:
        cells = [cell for cell in comparison.cells if cell.strategy == strategy.name]
        lines = [_series(cell, event, key) for cell in cells]
        groups.append(Group(name=strategy.name, thin=[line for line in lines if line[0]]))
    return groups


def _selection(cells: list[CellResult]) -> str:
    """The metric that chose the best step, as the runs call it."""
    names = {str(cell.finished.get("metric", "metric")) for cell in cells}
    return " or ".join(sorted(METRIC_NAMES.get(name, name) for name in names))


def _series(cell: CellResult, event: str, key: str) -> Line:
    """Value by step; long series are averaged in blocks."""
    events = [e for e in read_events(cell.run.metrics) if e.get("event") == event]
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if not points:
        return [], []
    blocks = np.array_split(np.array(points, dtype=float), min(len(points), MAX_POINTS))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0].tolist(), means[:, 1].tolist()
