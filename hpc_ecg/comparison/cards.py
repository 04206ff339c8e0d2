"""Two Markdown files for each chosen model, to travel with it: what it is for and how well it does
(MODEL_CARD.md), and how exactly it was made (RUN_CARD.md)."""

from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import write_text
from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.cost import plain
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.selected import Chosen
from hpc_ecg.comparison.verdict import verdict_sentences
from hpc_ecg.comparison.wording import fitted_for, show_part
from hpc_ecg.evaluation.metrics import METRIC_NAMES
from hpc_ecg.reporting.html import render_text
from hpc_ecg.reporting.numbers import format_number, format_percent
from hpc_ecg.sweep.folder import read_optional

NAMES = METRIC_NAMES | {"brier": "Brier score", "log_loss": "log loss", "rmse": "RMSE"}


def write_cards(comparison: Comparison, flow: CohortFlow | str, folder: Path) -> list[Path]:
    """A folder per strategy; returns the files."""
    paths = []
    for chosen in comparison.chosen:
        values = _values(comparison, chosen, flow)
        for name in ("MODEL_CARD", "RUN_CARD"):
            path = folder / chosen.strategy / f"{name}.md"
            write_text(path, render_text(f"{name.lower()}.md.jinja", **values))
            paths.append(path)
    return paths


def _values(comparison: Comparison, chosen: Chosen, flow: CohortFlow | str) -> dict[str, Any]:
    run = chosen.cell.run
    init = read_optional(run.init_report)
    environment = read_optional(run.environment)
    settings = chosen.cell.settings
    return {
        "c": comparison,
        "chosen": chosen,
        "init": init,
        "weights": read_optional(run.best / "weights.json"),
        "calibration": read_optional(run.best / "calibration.json"),
        "labels": {name: chosen.label(name) for name in comparison.labels},
        "signal": init.get("signal") or {},
        "settings": sorted((k, v) for k, v in settings.items() if v not in (None, {}, [])),
        "environment": environment,
        "index_sha256": settings.get("data_index_sha256", ""),
        "flow": flow,
        "has_flow": isinstance(flow, CohortFlow),
        "verdict": verdict_sentences(comparison),
        "names": NAMES,
        "fitted_for": fitted_for,
        "plain": plain,
        "format_number": format_number,
        "format_percent": format_percent,
        "show_part": show_part,
    }
