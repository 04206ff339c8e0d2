"""Draw figures as SVG text (matplotlib without a display). The same numbers give the same bytes.

The colours are those of Okabe & Ito, which readers with the common kinds of colour blindness can
tell apart. Each has its own line style, for grey prints. Axes and text are drawn in `INK`, which a
page replaces by its text colour.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

INK = "#1a1a1a"
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
LINE_STYLES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (1, 1)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "hpc_ecg",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a $ in a name is a $
}
Line = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """A row of a forest plot: a value with its interval, and the single values behind it."""

    name: str
    value: float
    low: float
    high: float
    points: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Lines in one colour and style: a `thin` one for each run, a `bold` one for all runs."""

    name: str
    thin: list[Line] = field(default_factory=list)
    bold: Line | None = None
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None
    """Positions, lower and upper edges of a shaded area."""


def forest_plot(
    rows: Sequence[ForestRow], xlabel: str, *, name: str, reference: float | None = None
) -> str:
    """Draw values with their intervals, the first row on top; `reference` is a vertical line."""
    with new_figure(6.4, 0.9 + 0.36 * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            color = _color(row.style)
            axes.plot([row.low, row.high], [y, y], color=color, linewidth=2)
            axes.plot(row.points, [y + 0.22] * len(row.points), "|", color=color, markersize=6)
            axes.plot([row.value], [y], "o", color=color, markersize=7)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return to_svg(figure, name)


def line_plot(
    groups: Sequence[Group],
    *,
    name: str,
    xlabel: str,
    ylabel: str,
    unit_square: bool = False,
    reference: Line | None = None,
    ylim: tuple[float, float] | None = None,
    log_x: bool = False,
) -> str:
    """Draw groups of lines. `unit_square`: both axes run from 0 to 1. `log_x`: a logarithmic axis
    with a tick at each position of a bold line."""
    with new_figure(4.4, 3.9 if unit_square else 3.2) as (figure, axes):
        if reference is not None:
            axes.plot(*reference, color=INK, linewidth=1, alpha=0.5)
        for style, group in enumerate(groups):
            _draw_group(axes, group, style)
        if unit_square:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        if ylim:
            axes.set_ylim(ylim)
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({x for group in groups if group.bold for x in group.bold[0]})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid()
        columns = 1 if max(len(g.name) for g in groups) > 22 else 2
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.45, -0.16),
            ncol=columns,
            frameon=False,
            handlelength=3,
            fontsize=9,
        )
        return to_svg(figure, name)


def histogram(
    values_N: np.ndarray, *, name: str, xlabel: str, ylabel: str, expected: tuple[float, float]
) -> str:
    """Draw counts of positive values on a logarithmic axis; the `expected` range is shaded."""
    low, high = min(values_N.min(), expected[0] / 2), max(values_N.max(), expected[1] * 2)
    with new_figure(5.2, 2.2) as (figure, axes):
        axes.axvspan(*expected, color=OKABE_ITO[2], alpha=0.2, linewidth=0)
        axes.hist(values_N, bins=np.geomspace(low, high, 41).tolist(), color=OKABE_ITO[0])
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        return to_svg(figure, name)


def _draw_group(axes: Axes, group: Group, style: int) -> None:
    """Draw thin lines faintly if there is a bold one; else they have the group's line style."""
    # when the colours repeat, each comes with its next line style
    color, line = _color(style), LINE_STYLES[(style + style // len(LINE_STYLES)) % len(LINE_STYLES)]
    thin = {"linewidth": 0.7, "alpha": 0.4} if group.bold else {"linewidth": 1.3, "linestyle": line}
    for x, y in group.thin:
        axes.plot(x, y, color=color, **thin)
    if group.band:
        axes.fill_between(*group.band, color=color, alpha=0.15, linewidth=0)
    x, y = group.bold or ([], [])  # without a bold line: only the entry of the legend
    axes.plot(x, y, color=color, linestyle=line, linewidth=2, label=group.name)


def _color(style: int) -> str:
    return OKABE_ITO[style % len(OKABE_ITO)]


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure and its axes, sizes in inches; the style holds inside the `with` block."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG text without a date. Identifiers start with `name`, so that one page can
    hold several figures."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        metadata={"Date": None, "Creator": None},
    )
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
