"""Draw a 12-lead ECG on standard paper as SVG text, true to scale when printed.

Three rows of four leads, one after the other in time, and below them lead II over the whole time;
25 mm/s, 10 mm/mV, squares of 1 and 5 mm. COMPACT is half as large in both directions.

Samples that paper cannot show are dropped: in each column as wide as the pen only the lowest and
the highest sample are kept, at their own place, so peaks keep height and time. The grid has one
colour that can be read on white and on black; the curve is in `INK`, which a page replaces by its
text colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from markupsafe import escape

from hpc_ecg.reporting.escape import xml_text
from hpc_ecg.reporting.plots import INK

# L leads, S samples of a lead

LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
Point = tuple[float, float]
SECONDS, MIN_SECONDS = 10.0, 5.0
PEN_MM, UNITS_PER_MM = 0.25, 20
GRID, CUT, RAISES, LOWERS = "#d9534f", "#d55e00", "#e69f00", "#0072b2"
OFFSET_MV = 0.5
"""A lead is drawn about its median; its label states a median that is further from zero."""
EM, LABEL_AT = 0.64, (-0.3, -0.36, -0.42, -0.24, -0.18, -0.12)
"""Width of a letter for its height; heights of a label on the base line, for the row's height."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    mm_per_s: float
    row_mm: float
    rhythm: str | None
    """The lead that is drawn over the whole time, in a row of its own."""
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
    shade_LS: np.ndarray | None = None,
) -> str:
    """Draw the first 10 s of an ECG in mV, on a ground of LOWERS to RAISES for shades of -1 to 1.

    Samples that are not finite leave a gap; curves that leave the paper are cut off and marked.
    Leads other than the twelve are named in the title and not drawn.
    """
    seconds = min(ecg_LS.shape[1] / sample_rate_hz, SECONDS)
    strips, margin = _strips(leads, paper), 0.28 * paper.mm_per_s
    width = margin + paper.mm_per_s * max(seconds, MIN_SECONDS) + 1
    others = [name for name in leads if name not in sum(LAYOUT, ())]
    header = title + (f"; not drawn: {', '.join(others)}" if others else "")
    scale = f"{paper.mm_per_s:g} mm/s, {paper.mm_per_mv:g} mm/mV"
    room = int((width - 2) / (EM * paper.text_mm))
    lines = wrap(header, room - len(scale) - 2)
    top = 1.4 * paper.text_mm * max(len(lines), 1) + 1
    first_y = top + 5 / 6 * paper.row_mm
    height = first_y + (strips[-1][1] + 2 / 3) * paper.row_mm
    body = [_text(1, 1.4 * paper.text_mm * n, line) for n, line in enumerate(lines, 1)]
    body.append(_text(width - 1, 1.4 * paper.text_mm, scale, "end"))
    curves, labels, notes = [], [], {}
    for name, row, start, end in strips:
        x_mm, y_mm = margin + start * seconds * paper.mm_per_s, first_y + row * paper.row_mm
        mv_S = None
        if name in leads:
            span = slice(*(round(part * seconds * sample_rate_hz) for part in (start, end)))
            mv_S = ecg_LS[leads.index(name), span]
            if shade_LS is not None:
                shade_S = shade_LS[leads.index(name), span]
                body.append(_shade(shade_S, sample_rate_hz, x_mm, y_mm, paper))
        tick = _path(f"M{x_mm:g} {y_mm - 2:g}v4", 0.2, INK)
        body.append(tick if start else _calibration_pulse(y_mm, paper))
        at, limits = (x_mm, y_mm), (top, height - 0.5)
        drawn, note, curve = _draw_lead(name, mv_S, sample_rate_hz, at, limits, paper)
        body.append(drawn)
        curves.append(curve)
        labels.append((name if len(curve) else note, *at))
        notes[note] = len(curve)
    pairs = np.concatenate([np.stack([curve[:-1], curve[1:]]) for curve in curves], axis=1)
    body += [_label(*label, pairs, paper) for label in labels]
    for line in wrap("; ".join(note for note, drawn in notes.items() if note and drawn), room):
        height += 1.4 * paper.text_mm
        body.append(_text(1, height - 0.4 * paper.text_mm, line))
    body.insert(0, _grid(width, height, margin, paper))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}mm" height="{height:g}mm" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" '
        f'font-size="{paper.text_mm:g}" fill="{INK}">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _strips(leads: Sequence[str], paper: Paper) -> list[tuple[str, int, float, float]]:
    """Lead, row, and the fractions of the time at which its strip starts and ends."""
    rows = enumerate(LAYOUT)
    strips = [(name, y, x / 4, (x + 1) / 4) for y, row in rows for x, name in enumerate(row)]
    if paper.rhythm is not None and paper.rhythm in leads:
        strips.append((paper.rhythm, len(LAYOUT), 0.0, 1.0))
    return strips


def _draw_lead(
    name: str, mv_S: np.ndarray | None, rate_hz: float, at: Point, limits: Point, paper: Paper
) -> tuple[str, str, np.ndarray]:
    """The curve, which may reach as far as the neighbouring base lines; a note; its points."""
    is_finite_S = np.isfinite(mv_S) if mv_S is not None else np.zeros(0, bool)
    if mv_S is None or not is_finite_S.any():
        return "", f"{name}: {'absent' if mv_S is None else 'no samples'}", np.zeros((0, 2))
    median = float(np.median(mv_S[is_finite_S]))
    up_S = np.where(is_finite_S, mv_S - median, 0) * paper.mm_per_mv
    (x_mm, y_mm), (top, bottom) = at, limits
    low, high = -min(paper.row_mm, bottom - y_mm), min(paper.row_mm, y_mm - top)
    is_cut_S = is_finite_S & ((up_S < low) | (up_S > high))
    x_S = x_mm + np.arange(len(up_S)) / rate_hz * paper.mm_per_s
    y_S = y_mm - np.clip(up_S, low, high)
    note = ""
    if is_cut_S.any():
        finite_mv = mv_S[is_finite_S].round(1)
        note = f"{name} cut: {finite_mv.min():.4g} to {finite_mv.max():.4g} mV"
    elif abs(median) > OFFSET_MV:
        note = f"{name} at {median:+.2g} mV"
    drawn = _path(_polyline(x_S, y_S, is_finite_S), PEN_MM, INK, UNITS_PER_MM)
    if is_cut_S.any():
        drawn += _path(_polyline(x_S, y_S, is_cut_S), 3 * PEN_MM, CUT, UNITS_PER_MM)
    points = np.stack([x_S, np.where(is_finite_S, y_S, np.nan)], axis=1)
    return drawn, note.replace("-", "−"), points


def _label(name: str, x_mm: float, y_mm: float, pairs: np.ndarray, paper: Paper) -> str:
    """The name of a lead where no curve runs, as near to its usual place as can be."""
    em, width, end = paper.text_mm, EM * paper.text_mm * len(name), x_mm + 2.4 * paper.mm_per_s
    pairs = pairs[:, (pairs[0, :, 0] > x_mm - 1) & (pairs[0, :, 0] < end)]
    low_N2, high_N2 = pairs.min(axis=0) - PEN_MM, pairs.max(axis=0) + PEN_MM
    rows = y_mm + paper.row_mm * np.array(LABEL_AT)
    spots = [(x, y) for x in np.arange(x_mm + 1, max(end - width, x_mm + 2), 1) for y in rows]
    boxes = (((x, y - 0.8 * em), (x + width, y + 0.25 * em)) for x, y in spots)
    is_hit = (((low_N2 < box[1]) & (high_N2 > box[0])).all(axis=1).any() for box in boxes)
    place = next((at for at, hit in zip(spots, is_hit, strict=True) if not hit), spots[0])
    return _text(*place, name)


def _shade(shade_S: np.ndarray, rate_hz: float, x_mm: float, y_mm: float, paper: Paper) -> str:
    """A rectangle for each run of one shade, which is rounded to tenths."""
    shade_S = np.clip(shade_S, -1, 1).round(1)
    starts = np.r_[0, np.flatnonzero(np.diff(shade_S)) + 1]
    edges_mm = x_mm + np.r_[starts, len(shade_S)] / rate_hz * paper.mm_per_s
    box = f'y="{y_mm - 0.45 * paper.row_mm:g}" height="{0.8 * paper.row_mm:g}"'
    return "".join(
        f'<rect x="{left:.5g}" width="{right - left:.4g}" {box} '
        f'fill="{RAISES if shade > 0 else LOWERS}" fill-opacity="{0.8 * abs(shade):.2f}"/>'
        for left, right, shade in zip(edges_mm[:-1], edges_mm[1:], shade_S[starts], strict=True)
        if shade
    )


def _polyline(x_S: np.ndarray, y_S: np.ndarray, mask_S: np.ndarray) -> str:
    """Path data in whole units; a gap wherever the mask has one."""
    edges = np.flatnonzero(np.diff(mask_S, prepend=False, append=False))
    parts = []
    for start, end in edges.reshape(-1, 2):
        kept = start + _lowest_and_highest(x_S[start:end], y_S[start:end])
        points = np.rint(np.stack([x_S[kept], y_S[kept]], axis=1) * UNITS_PER_MM).astype(int)
        steps = np.diff(points, axis=0)
        # h0: a single sample is a dot
        line = "l" + " ".join(f"{dx} {dy}" for dx, dy in steps.tolist()) if len(steps) else "h0"
        parts.append(f"M{points[0, 0]} {points[0, 1]}{line}".replace(" -", "-"))
    return "".join(parts)


def _lowest_and_highest(x_S: np.ndarray, y_S: np.ndarray) -> np.ndarray:
    """Positions, in order: lowest and highest sample of each pen-wide column, and the two ends."""
    column_S = np.floor(x_S / PEN_MM).astype(int)
    by_height_S = np.lexsort((y_S, column_S))
    is_new_S = np.diff(column_S[by_height_S], prepend=-1) != 0
    lowest, highest = by_height_S[is_new_S], by_height_S[np.roll(is_new_S, -1)]
    return np.unique([*lowest, *highest, 0, len(x_S) - 1])


def _grid(width: float, height: float, margin: float, paper: Paper) -> str:
    """Squares, with lines where the curves start and on the base lines."""
    paths = []
    for step, opacity, pen in paper.squares:
        first = margin % step
        columns, rows = int((width - first) / step) + 1, int(height / step) + 1
        lines = f"M{first:g} 0v{height:g}" + f"m{step:g}-{height:g}v{height:g}" * (columns - 1)
        lines += f"M0 0h{width:g}" + f"m-{width:g} {step:g}h{width:g}" * (rows - 1)
        paths.append(f'<g opacity="{opacity}">{_path(lines, pen, GRID)}</g>')
    return "\n".join(paths)


def _calibration_pulse(y_mm: float, paper: Paper) -> str:
    """1 mV for 0.2 s."""
    long, high, foot = 0.2 * paper.mm_per_s, paper.mm_per_mv, 0.02 * paper.mm_per_s
    data = f"M{foot:g} {y_mm:g}h{foot:g}v-{high:g}h{long:g}v{high:g}h{foot:g}"
    return _path(data, PEN_MM, INK)


def _path(data: str, width_mm: float, color: str, units_per_mm: int = 1) -> str:
    scale = f' transform="scale({1 / units_per_mm:g})"' if units_per_mm > 1 else ""
    return (
        f'<path d="{data}" fill="none" stroke="{color}" stroke-width="{width_mm * units_per_mm:g}" '
        f'stroke-linecap="round" stroke-linejoin="round"{scale}/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(xml_text(text))}</text>'
