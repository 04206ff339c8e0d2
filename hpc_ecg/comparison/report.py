"""The report of a sweep: a folder of finished cells in, `report/` with page and tables out.

    report/index.html       one file, no network, light and dark, readable on paper
    report/comparison.json  every number of the page
    report/*.csv            the tables;  report/figures/*.svg  the figures, for a paper
    report/cards/<strategy>/ MODEL_CARD.md and RUN_CARD.md of each chosen model

The page's order is that of a reader's questions: which is best, by how much, whom was it tested on,
what was run. What no two runs have in common (time, cost, machines) stands in one block at its end
and in cost.csv alone.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.atomic_io import read_json, write_json, write_text
from hpc_ecg.comparison.cards import write_cards
from hpc_ecg.comparison.checklist import checklist
from hpc_ecg.comparison.compare import MARGIN, compare
from hpc_ecg.comparison.comparison import Comparison, StrategyResult
from hpc_ecg.comparison.cost import environment_of
from hpc_ecg.comparison.curve_figures import curves_of
from hpc_ecg.comparison.figures import draw_figures, drawn_labels, learning_curves
from hpc_ecg.comparison.flow import CohortFlow, read_flow
from hpc_ecg.comparison.reference_models import BASELINES
from hpc_ecg.comparison.results import RunResult
from hpc_ecg.comparison.run_settings import tell_apart
from hpc_ecg.comparison.tables import as_json, tables_of
from hpc_ecg.comparison.verdict import (
    sentences_on_baselines,
    sentences_on_chance,
    verdict_sentences,
)
from hpc_ecg.comparison.wording import fitted_for, show_hours, show_interval
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_number, format_p, format_percent, format_range
from hpc_ecg.sweep.folder import read_optional


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    page: Path
    comparison: Path
    tables: dict[str, Path]
    figures: list[Path]
    cards: list[Path]


def write_report(
    sweep_dir: Path, replicates: int = 2000, seed: int = 0, margin: float = MARGIN
) -> ReportPaths:
    """Compare and write; files of an earlier report are replaced. Raises as `compare` does."""
    sweep_dir = Path(sweep_dir)
    return write_comparison(compare(sweep_dir, replicates, seed, margin), sweep_dir)


def write_comparison(comparison: Comparison, sweep_dir: Path) -> ReportPaths:
    """For a caller that has the comparison already and shows `format_table` of it."""
    folder = sweep_dir / "report"
    for part in ("figures", "cards"):  # what an earlier one had and this one has not
        shutil.rmtree(folder / part, ignore_errors=True)
    for table in folder.glob("*.csv"):
        table.unlink()
    curves = {label: curves_of(comparison, label) for label in drawn_labels(comparison)}
    learning = learning_curves(comparison)
    figures = draw_figures(comparison, curves, learning)
    flow = read_flow(comparison.cells[0].settings)
    tuning = read_optional(sweep_dir / "tuning.json")
    tables = tables_of(comparison, curves, learning, flow, tuning)
    paths = ReportPaths(
        page=folder / "index.html",
        comparison=folder / "comparison.json",
        tables={name: folder / f"{name}.csv" for name in tables},
        figures=[folder / "figures" / f"{name}.svg" for name in figures],
        cards=write_cards(comparison, flow, folder / "cards"),
    )
    for path, svg in zip(paths.figures, figures.values(), strict=True):
        write_text(path, svg)
    write_json(paths.comparison, as_json(comparison, flow, tuning))
    for name, rows in tables.items():
        whole = pd.DataFrame(rows, dtype=object)  # counts stay whole where others have none
        write_text(paths.tables[name], whole.to_csv(index=False))
    write_text(paths.page, render_report(comparison, figures, sweep_dir, flow, tuning))
    return paths


def render_report(
    comparison: Comparison,
    figures: dict[str, str],
    sweep_dir: Path,
    flow: CohortFlow | str,
    tuning: dict[str, Any],
) -> str:
    by_strategy = {cell.strategy: cell.settings for cell in comparison.cells}
    settings, shared = tell_apart({s.name: by_strategy[s.name] for s in comparison.strategies})
    return render_page(
        "sweep_report.html.jinja",
        title=sweep_dir.resolve().name,
        comparison=comparison,
        sentences=verdict_sentences(comparison),
        on_baselines=sentences_on_baselines(comparison),
        on_chance=sentences_on_chance(comparison),
        figures={n: inline_svg(svg, _describe(n, comparison)) for n, svg in figures.items()},
        drawn=drawn_labels(comparison),
        cards=[_card(strategy, comparison.cells) for strategy in comparison.strategies],
        environment=environment_of(comparison.cells),
        settings=settings,
        shared_settings=shared,
        flow=flow,
        has_flow=isinstance(flow, CohortFlow),
        tuning=tuning,
        checklist=checklist(comparison, flow),
        baseline_names=BASELINES,
        fitted_for=fitted_for,
        format_number=format_number,
        format_range=format_range,
        format_percent=format_percent,
        show_interval=show_interval,
        format_p=format_p,
        show_hours=show_hours,
    )


def _describe(name: str, comparison: Comparison) -> str:
    """What a figure shows, for a reader who hears the page."""
    metric = comparison.metric_name
    kind, dash, rest = name.partition("-")
    label_of = {end: f"{label}: " for label, end in drawn_labels(comparison).items() if end}
    return (
        label_of.get(dash + rest, "")
        + {
            "strategies": f"{metric} of each strategy with its interval; values in the table below",
            "differences": f"Differences in {metric} with intervals; values in the table above",
            "roc": "ROC curve of each strategy, seeds thin",
            "precision_recall": "Precision-recall curve of each strategy, seeds thin",
            "calibration": "Observed share by predicted probability, a line per chosen model",
            "decision": "Net benefit by threshold probability, a line per chosen model",
            "subgroups": "AUROC of the best strategy's chosen model by subgroup, with intervals",
            "efficiency": f"{metric} by share of the training patients, a line per strategy",
            "validation": "Validation metric by step, a line per run",
            "loss": "Training loss by step, a line per run",
        }[kind]
    )


def _card(strategy: StrategyResult, cells: list[RunResult]) -> dict[str, Any]:
    """What a strategy started from (its first cell's init_report) and how its runs went."""
    own = [cell for cell in cells if cell.strategy == strategy.name]
    report = read_json(own[0].run.init_report)
    counts, checkpoint = report["counts"], report["checkpoint"]
    return {
        "name": strategy.name,
        "checkpoint": Path(checkpoint["path"]).name if checkpoint else "none (random weights)",
        "sha256": checkpoint["sha256"][:12] if checkpoint else "",
        "head": report["head"]["taken"],
        "tensors": {kind: counts[f"tensors_{kind}"] for kind in ("loaded", "fresh", "frozen")},
        "steps": _each(own, "steps"),
        "best_step": _each(own, "best_step"),
        "stopped": _each(own, "stopped"),
    }


def _each(cells: list[RunResult], key: str) -> str:
    """The values of all cells in the order of their seeds, one where they agree."""
    values = [str(cell.finished.get(key, "–")) for cell in cells]
    return values[0] if len(set(values)) == 1 else ", ".join(values)
