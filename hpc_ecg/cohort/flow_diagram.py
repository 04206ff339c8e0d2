"""A cohort's numbers as a CONSORT flow diagram: a table for the terminal, an SVG, JSON.

The trunk shows, from top to bottom, what is left after each step; branches to the right show what
was left out and why, and at the end the labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hpc_ecg.atomic_io import write_json, write_text
from hpc_ecg.cohort.censoring import censoring_of, describe_censoring
from hpc_ecg.cohort.rules import Count, Flow, Rules
from hpc_ecg.cohort.source_tables import SourceTables
from hpc_ecg.log import printable
from hpc_ecg.reporting.numbers import count
from hpc_ecg.reporting.plots import INK, new_figure, to_svg
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.version import __version__

FORMAT = "hpc_ecg cohort flow 1"

# inches: x of trunk and branches, height of a line of text, padding in a box, gap between boxes
TRUNK_X, BRANCH_X, TEXT_HEIGHT, PAD, GAP = 1.7, 2.4, 0.19, 0.07, 0.16
WRAP = 44
PATIENTS_LOST = "A patient is lost with the last of their ECGs."
PATIENTS_TWICE = "Patients with ECGs in several boxes of labels count in each, so those numbers add"
ARROW = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}


def flow_text(flow: Flow, notes: Sequence[str]) -> str:
    """The flow as an aligned table, followed by the notes."""
    steps = [(flow.start, 1, ""), *((step, -1, "") for step in flow.left_out)]
    steps += [(flow.labelled, 1, ""), *((step, 1, "  ") for step in flow.labels)]
    rows = [("ECGs", "patients", "")]
    rows += [(f"{s * c.ecgs:,}", f"{s * c.patients:,}", indent + c.text) for c, s, indent in steps]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{e:>{widths[0]}}  {p:>{widths[1]}}  {text}".rstrip() for e, p, text in rows]
    return "".join(printable(line).replace("\n", " ") + "\n" for line in [*lines, "", *notes])


def flow_svg(flow: Flow, warning: str = "") -> str:
    """The flow as a picture; each box is as wide as its text. Under it the warning, what has no box
    as nothing was counted, and why numbers do not add up."""
    flow, notes = _without_zeros(flow)
    left_out = [_branch_text(c, " left out", " lost") for c in flow.left_out]
    labels = [_branch_text(c) for c in flow.labels]
    texts = [_trunk_text(flow.start), *left_out, _trunk_text(flow.labelled), *labels]
    heights_N = TEXT_HEIGHT * np.array([text.count("\n") + 1 for text in texts]) + 2 * PAD
    bottoms_N = -np.cumsum(heights_N + GAP)
    middles_N, labelled = bottoms_N + heights_N / 2, len(left_out) + 1
    lines = [line for note in [*notes, warning] for line in wrap(note, 100)]
    end = bottoms_N[-1] - TEXT_HEIGHT * len(lines) - GAP * bool(lines)
    with new_figure(7, -end) as (figure, axes):
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, 7), ylim=(end, 0))
        axes.axis("off")
        tops = [bottoms_N[0], bottoms_N[labelled]]
        ends = [middles_N[labelled] + heights_N[labelled] / 2, middles_N[-1]]
        axes.vlines([TRUNK_X] * 2, tops, ends, INK, lw=1)
        for n, text in enumerate(texts):
            y = middles_N[n]
            if n in (0, labelled):
                _draw_box(axes, TRUNK_X, y, text, "center")
            else:
                axes.annotate("", (BRANCH_X - 0.08, y), (TRUNK_X, y), arrowprops=ARROW)
                _draw_box(axes, BRANCH_X, y, text, "left")
        for n, text in enumerate(_remaining(flow)[:-1], start=1):
            y = bottoms_N[n] - GAP / 2
            axes.text(TRUNK_X - 0.1, y, text, ha="right", va="center", fontsize=8)
        if lines:
            axes.text(
                0.1, bottoms_N[-1] - GAP, "\n".join(lines), va="top", fontsize=8, linespacing=1.35
            )
        return to_svg(figure, "flow")


def _without_zeros(flow: Flow) -> tuple[Flow, list[str]]:
    steps, labels = ([c for c in part if c.ecgs] for part in (flow.left_out, flow.labels))
    zeros = [c.text for c in flow.left_out + flow.labels if not c.ecgs]
    notes = ["Not drawn, as no ECG is in them: " + "; ".join(zeros) + "."] * bool(zeros)
    notes += [PATIENTS_LOST] * any(c.patients < c.ecgs for c in steps)
    twice = sum(c.patients for c in labels) - flow.labelled.patients
    notes += [f"{PATIENTS_TWICE} up to {twice:,} more than are in the cohort."] * (twice > 0)
    return replace(flow, left_out=steps, labels=labels), notes


def write_flow(
    out: Path,
    flow: Flow,
    notes: Sequence[str],
    rules: Rules,
    sources: SourceTables,
    weights: dict[str, Any] | None = None,
) -> list[Path]:
    """Write .flow.txt, .flow.svg and .flow.json (with rules and digests) beside the table `out`."""
    text, picture, data = (out.with_suffix(f".flow.{end}") for end in ("txt", "svg", "json"))
    censoring = {"rules": asdict(rules), "flow": asdict(flow), "weights": weights}
    warning = describe_censoring(censoring_of(censoring, sources.label))
    notes = [*notes, *[f"! {warning}"] * bool(warning)]
    write_text(text, flow_text(flow, notes))
    write_text(picture, flow_svg(flow, warning))
    about = {
        "format": FORMAT,
        "tool": f"hpc_ecg {__version__}",
        "table": _without_folder(out),
        "rules": asdict(rules),
        "sources": {
            name: _without_folder(value)
            for name, value in asdict(sources).items()
            if (name, value) != ("ids_as_written", False)
        },
        "flow": asdict(flow),
        "notes": list(notes),
    } | ({"weights": weights} if weights else {})
    write_json(data, about)
    return [text, picture, data]


def _without_folder(value: Any) -> Any:
    """A path becomes its file name and digest: the name of a folder may be a person's."""
    return {"file": value.name, "sha256": sha256_of(value)} if isinstance(value, Path) else value


def _remaining(flow: Flow) -> list[str]:
    """ECGs and patients left after each step; after the last one, the cohort."""
    ecgs_N = flow.start.ecgs - np.cumsum([step.ecgs for step in flow.left_out])
    patients_N = flow.start.patients - np.cumsum([step.patients for step in flow.left_out])
    pairs = zip(ecgs_N, patients_N, strict=True)
    return [f"{count(e, 'ECG')}\n{count(p, 'patient')}" for e, p in pairs]


def _trunk_text(step: Count) -> str:
    return f"{count(step.ecgs, 'ECG')} of {count(step.patients, 'patient')}\n{step.text}"


def _branch_text(step: Count, ecgs_suffix: str = "", patients_suffix: str = "") -> str:
    patients = f", {count(step.patients, 'patient')}{patients_suffix}" if step.patients else ""
    return "\n".join([count(step.ecgs, "ECG") + ecgs_suffix + patients, *wrap(step.text, WRAP)])


def _draw_box(axes: Axes, x: float, y: float, text: str, align: str) -> None:
    """Matplotlib fits the frame to the text."""
    frame = {"boxstyle": "square,pad=0.5", "facecolor": "none", "edgecolor": INK, "linewidth": 1}
    axes.text(x, y, text, ha=align, va="center", bbox=frame, linespacing=1.35)
