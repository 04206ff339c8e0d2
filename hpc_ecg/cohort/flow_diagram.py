"""The numbers of a cohort as a flow diagram (CONSORT): a table for a terminal, a picture, JSON.

Comes in: a Flow, whose steps add up. From top to bottom what is left; at the right what left, and
why; at the end the labels.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

import hpc_ecg
from hpc_ecg.atomic_io import sha256_of, write_json, write_text
from hpc_ecg.cohort.rules import Count, Flow, Rules
from hpc_ecg.cohort.source_tables import SourceTables
from hpc_ecg.reporting.plots import INK, new_figure, to_svg

FORMAT = "hpc_ecg cohort flow 1"

# inches: the line down, what branches off, a line of text, around it in a box, between boxes
LINE_X, BRANCH_X, TEXT_HEIGHT, PAD, GAP = 1.7, 2.4, 0.19, 0.07, 0.16
WRAP = 44


def flow_text(flow: Flow, notes: Sequence[str]) -> str:
    rows = [("ECGs", "patients", ""), _row(flow.start)]
    rows += [(f"{-c.ecgs:,}", f"{-c.patients:,}", c.text) for c in flow.left_out]
    rows += [_row(flow.labelled), *(_row(label, "  ") for label in flow.labels)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{e:>{widths[0]}}  {p:>{widths[1]}}  {text}".rstrip() for e, p, text in rows]
    return "\n".join([*lines, "", *notes]) + "\n"


def flow_svg(flow: Flow) -> str:
    """Each box is as wide as its text; the picture is as wide as its boxes."""
    out = [_branch(c, " left out", " lost") for c in flow.left_out]
    labels = [_branch(c) for c in flow.labels]
    texts = [_trunk(flow.start), *out, _trunk(flow.labelled), *labels]
    heights_N = TEXT_HEIGHT * np.array([text.count("\n") + 1 for text in texts]) + 2 * PAD
    bottoms_N = -np.cumsum(heights_N + GAP)
    middles_N, middle = bottoms_N + heights_N / 2, len(out) + 1
    with new_figure(7, -bottoms_N[-1]) as (figure, axes):
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, 7), ylim=(bottoms_N[-1], 0))
        axes.axis("off")
        ends = [bottoms_N[0], middles_N[middle] + heights_N[middle] / 2]
        axes.vlines([LINE_X] * 2, [ends[0], bottoms_N[middle]], [ends[1], middles_N[-1]], INK, lw=1)
        for n, text in enumerate(texts):
            if n in (0, middle):
                _box(axes, LINE_X, middles_N[n], text, "center")
            else:
                _draw_branch(axes, middles_N[n], text)
        for n, text in enumerate(_remaining(flow)[:-1], start=1):
            y = bottoms_N[n] - GAP / 2
            axes.text(LINE_X - 0.1, y, text, ha="right", va="center", fontsize=8)
        return to_svg(figure, "flow")


def write_flow(
    out: Path, flow: Flow, notes: Sequence[str], rules: Rules, sources: SourceTables
) -> list[Path]:
    """Beside the table `out`: .flow.txt, .flow.svg and .flow.json with rules and digests."""
    about = {
        "format": FORMAT,
        "tool": f"hpc_ecg {hpc_ecg.__version__}",
        "table": _without_folder(out),
        "rules": asdict(rules),
        "sources": {name: _without_folder(value) for name, value in asdict(sources).items()},
        "flow": asdict(flow),
        "notes": list(notes),
    }
    text, picture, data = (out.with_suffix(f".flow.{end}") for end in ("txt", "svg", "json"))
    write_text(text, flow_text(flow, notes))
    write_text(picture, flow_svg(flow))
    write_json(data, about)
    return [text, picture, data]


def _without_folder(value: Any) -> Any:
    """Of a path the file and its digest: a folder's name may be a person's."""
    return {"file": value.name, "sha256": sha256_of(value)} if isinstance(value, Path) else value


def _remaining(flow: Flow) -> list[str]:
    """After each step; the last is the cohort."""
    ecgs_N = flow.start.ecgs - np.cumsum([count.ecgs for count in flow.left_out])
    patients_N = flow.start.patients - np.cumsum([count.patients for count in flow.left_out])
    return [
        f"{_many(e, 'ECG')}\n{_many(p, 'patient')}" for e, p in zip(ecgs_N, patients_N, strict=True)
    ]


def _row(count: Count, indent: str = "") -> tuple[str, str, str]:
    return f"{count.ecgs:,}", f"{count.patients:,}", indent + count.text


def _trunk(count: Count) -> str:
    return f"{_many(count.ecgs, 'ECG')} of {_many(count.patients, 'patient')}\n{count.text}"


def _branch(count: Count, of_ecgs: str = "", of_patients: str = "") -> str:
    ecgs, patients = _many(count.ecgs, "ECG"), _many(count.patients, "patient")
    return "\n".join([f"{ecgs}{of_ecgs}, {patients}{of_patients}", *wrap(count.text, WRAP)])


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _draw_branch(axes: Axes, y: float, text: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (BRANCH_X - 0.08, y), (LINE_X, y), arrowprops=arrow)
    _box(axes, BRANCH_X, y, text, "left")


def _box(axes: Axes, x: float, y: float, text: str, align: str) -> None:
    """Matplotlib draws the frame around the text, whatever its width."""
    frame = {"boxstyle": "square,pad=0.5", "facecolor": "none", "edgecolor": INK, "linewidth": 1}
    axes.text(x, y, text, ha=align, va="center", bbox=frame, linespacing=1.35)
