"""A 12-lead ECG on standard paper: an array in mV in, SVG text out, true to scale when printed.

Three rows of four leads, one after the other in time, and lead II below for as long as the four
together; 25 mm/s, 10 mm/mV, squares of 1 and 5 mm. COMPACT is half as large in both directions.

What paper cannot show is left away: of the samples in a column as wide as the pen, the lowest and
the highest are kept where they are, so peaks keep height and time. The grid has one tone that reads
on white and on black, the curve is in `INK`, which a page replaces by its text colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import escape

from hpc_ecg.reporting.plots import INK

# L leads, S samples of a lead

LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
SECONDS, MIN_SECONDS = 10.0, 5.0
PEN_MM, UNITS_PER_MM = 0.25, 20
GRID, CUT = "#d9534f", "#d55e00"
OFFSET_MV = 0.5
"""A lead is drawn about its median; if that is further off zero, its name says so."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    mm_per_s: float
    row_mm: float
    rhythm: str | None
    squares: tuple[tuple[float, float, float], ...]
    """Side in mm, opacity, pen in mm; the finer the fainter."""
    text_mm: float

    @property
    def mm_per_mv(self) -> float:
        return 0.4 * self.mm_per_s


FULL = Paper(
    mm_per_s=25, row_mm=30, rhythm="II", squares=((1, 0.3, 0.1), (5, 0.55, 0.15)), text_mm=3.2
)
COMPACT = Paper(mm_per_s=12.5, row_mm=15, rhythm=None, squares=((2.5, 0.55, 0.15),), text_mm=2.6)


def draw_ecg(
    ecg_LS: np.ndarray,
    leads: Sequence[str],
    sample_rate_hz: float,
    title: str,
    paper: Paper = FULL,
) -> str:
    """The first 10 s. What is not finite is a gap; what leaves the paper is cut off and marked;
    leads of other names than the twelve are named, not drawn."""
    seconds = min(ecg_LS.shape[1] / sample_rate_hz, SECONDS)
    places = _places(leads, paper)
    margin, first_y = 0.28 * paper.mm_per_s, 5 / 6 * paper.row_mm
    width = margin + paper.mm_per_s * max(seconds, MIN_SECONDS) + 1
    height = first_y + (places[-1][1] + 2 / 3) * paper.row_mm
    others = [name for name in leads if name not in sum(LAYOUT, ())]
    words = title + (f"; not drawn: {', '.join(others)}" if others else "")
    scale = f"{paper.mm_per_s:g} mm/s, {paper.mm_per_mv:g} mm/mV"
    body = [_grid(width, height, margin, paper), _text(1, 1.5 * paper.text_mm, words)]
    body.append(_text(width - 1, 1.5 * paper.text_mm, scale, "end"))
    for name, row, begin, end in places:
        x_mm, y_mm = margin + begin * seconds * paper.mm_per_s, first_y + row * paper.row_mm
        mv_S = None
        if name in leads:
            span = slice(*(round(part * seconds * sample_rate_hz) for part in (begin, end)))
            mv_S = ecg_LS[leads.index(name), span]
        tick = _path(f"M{x_mm:g} {y_mm - 2:g}v4", 0.2, INK)
        body.append(tick if begin else _pulse(y_mm, paper))
        body.append(_draw_lead(name, mv_S, sample_rate_hz, x_mm, y_mm, height, paper))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}mm" height="{height:g}mm" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" '
        f'font-size="{paper.text_mm:g}" fill="{INK}">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _places(leads: Sequence[str], paper: Paper) -> list[tuple[str, int, float, float]]:
    """Lead, row, and which part of the time is shown there."""
    rows = enumerate(LAYOUT)
    places = [(name, y, x / 4, (x + 1) / 4) for y, row in rows for x, name in enumerate(row)]
    if paper.rhythm is not None and paper.rhythm in leads:
        places.append((paper.rhythm, len(LAYOUT), 0.0, 1.0))
    return places


def _draw_lead(
    name: str,
    mv_S: np.ndarray | None,
    rate_hz: float,
    x_mm: float,
    y_mm: float,
    height: float,
    paper: Paper,
) -> str:
    """The name and the curve, which may reach as far as the neighbouring base lines."""
    name_y = y_mm - 0.3 * paper.row_mm
    is_there_S = np.isfinite(mv_S) if mv_S is not None else np.zeros(0, bool)
    if mv_S is None or not is_there_S.any():
        return _text(x_mm + 1, name_y, f"{name}: {'absent' if mv_S is None else 'no samples'}")
    middle = float(np.median(mv_S[is_there_S]))
    up_S = np.where(is_there_S, mv_S - middle, 0) * paper.mm_per_mv
    low, high = -min(paper.row_mm, height - y_mm - 0.5), min(paper.row_mm, y_mm - 0.5)
    is_cut_S = is_there_S & ((up_S < low) | (up_S > high))
    x_S = x_mm + np.arange(len(up_S)) / rate_hz * paper.mm_per_s
    y_S = y_mm - np.clip(up_S, low, high)
    label = name
    if is_cut_S.any():
        seen = mv_S[is_there_S]
        label += f" cut: {seen.min().round(1):.4g} to {seen.max().round(1):.4g} mV"
    elif abs(middle) > OFFSET_MV:
        label += f" at {middle:+.2g} mV"
    curve, cut = (_polyline(x_S, y_S, mask_S) for mask_S in (is_there_S, is_cut_S))
    drawn = _path(curve, PEN_MM, INK, UNITS_PER_MM)
    if cut:
        drawn += _path(cut, 3 * PEN_MM, CUT, UNITS_PER_MM)
    return drawn + _text(x_mm + 1, name_y, label.replace("-", "−"))


def _polyline(x_S: np.ndarray, y_S: np.ndarray, mask_S: np.ndarray) -> str:
    """Path data in whole units; a gap wherever the mask has one."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask_S.astype(np.int8), [0]))))
    parts = []
    for begin, end in edges.reshape(-1, 2):
        kept = begin + _lowest_and_highest(x_S[begin:end], y_S[begin:end])
        points = np.rint(np.stack([x_S[kept], y_S[kept]], axis=1) * UNITS_PER_MM).astype(int)
        steps = np.diff(points, axis=0)
        # h0: a single sample is a dot
        line = "l" + " ".join(f"{dx} {dy}" for dx, dy in steps.tolist()) if len(steps) else "h0"
        parts.append(f"M{points[0, 0]} {points[0, 1]}{line}".replace(" -", "-"))
    return "".join(parts)


def _lowest_and_highest(x_S: np.ndarray, y_S: np.ndarray) -> np.ndarray:
    """Positions, in order, of both in each column of the pen's width, and of the two ends."""
    column_S = np.floor(x_S / PEN_MM).astype(int)
    by_height_S = np.lexsort((y_S, column_S))
    is_new_S = np.diff(column_S[by_height_S], prepend=-1) != 0
    lowest, highest = by_height_S[is_new_S], by_height_S[np.roll(is_new_S, -1)]
    return np.unique([*lowest, *highest, 0, len(x_S) - 1])


def _grid(width: float, height: float, margin: float, paper: Paper) -> str:
    """There are lines where the curves begin and on their base lines."""
    paths = []
    for step, opacity, pen in paper.squares:
        first = margin % step
        columns, rows = int((width - first) / step) + 1, int(height / step) + 1
        lines = f"M{first:g} 0v{height:g}" + f"m{step:g}-{height:g}v{height:g}" * (columns - 1)
        lines += f"M0 0h{width:g}" + f"m-{width:g} {step:g}h{width:g}" * (rows - 1)
        paths.append(f'<g opacity="{opacity}">{_path(lines, pen, GRID)}</g>')
    return "\n".join(paths)


def _pulse(y_mm: float, paper: Paper) -> str:
    """1 mV for 0.2 s."""
    long, high = 0.2 * paper.mm_per_s, paper.mm_per_mv
    foot = long / 10
    data = f"M{foot:g} {y_mm:g}h{foot:g}v-{high:g}h{long:g}v{high:g}h{foot:g}"
    return _path(data, PEN_MM, INK)


def _path(data: str, width_mm: float, color: str, units_per_mm: int = 1) -> str:
    scale = f' transform="scale({1 / units_per_mm:g})"' if units_per_mm > 1 else ""
    return (
        f'<path d="{data}" fill="none" stroke="{color}" stroke-width="{width_mm * units_per_mm:g}" '
        f'stroke-linecap="round" stroke-linejoin="round"{scale}/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
