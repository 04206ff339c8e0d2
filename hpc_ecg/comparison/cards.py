"""Two Markdown files that travel with each selected model: MODEL_CARD.md says what it is for and
how well it does, RUN_CARD.md how exactly it was made."""

from pathlib import Path
from typing import Any

from hpc_ecg.atomic_io import write_text
from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.cost import plain_text
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.run_records import read_combined, read_update
from hpc_ecg.comparison.selected import SelectedModel
from hpc_ecg.comparison.verdict import verdict_sentences
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.reporting.html import render_text
from hpc_ecg.sweep.folder import read_optional


def write_cards(
    comparison: Comparison, flow: CohortFlow | str, folder: Path, single: bool = False
) -> list[Path]:
    """Write both cards into a folder per strategy; returns their paths. `single`: of one run."""
    paths = []
    for model in comparison.selected:
        values = _values(comparison, model, flow) | {"single": single}
        for name in ("MODEL_CARD", "RUN_CARD"):
            path = folder / model.strategy / f"{name}.md"
            write_text(path, render_text(f"{name.lower()}.md.jinja", **values))
            paths.append(path)
    return paths


def _values(comparison: Comparison, model: SelectedModel, flow: CohortFlow | str) -> dict[str, Any]:
    folder, settings = model.run.folder, model.run.settings
    init_report = read_optional(folder.init_report)
    return FORMATS | {
        "c": comparison,
        "selected": model,
        "run": model.run,
        "init": init_report,
        "combined": read_combined(folder.path),
        "calibration": read_optional(folder.best / "calibration.json", {"*": dict}),
        "update": read_update(folder),
        "labels": {name: model.label(name) for name in comparison.labels},
        "signal": init_report.get("signal") or {},
        "settings": sorted((k, v) for k, v in settings.items() if v not in (None, {}, [])),
        "environment": read_optional(folder.environment),
        "index_sha256": settings.get("data_index_sha256", ""),
        "flow": flow,
        "verdict": verdict_sentences(comparison),
        "names": METRIC_NAMES,
        "plain_text": plain_text,
    }
