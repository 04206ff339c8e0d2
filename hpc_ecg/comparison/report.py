"""The report of a sweep, or of one run, written to `report/` in its folder.

    index.html          one file that needs no network, light and dark, readable on paper
    comparison.json     every number of the page
    *.csv               the tables;  figures/*.svg  the figures, for a paper
    cards/<strategy>/   MODEL_CARD.md and RUN_CARD.md of each selected model

The page answers a reader's questions in their order: which strategy is best, by how much, whom was
it tested on, what was run. What few readers need is folded. What differs when the same sweep is run
again (time, cost, machines) stands in the protocol's line at the top, in one block at the end and
in cost.csv alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from hpc_ecg.atomic_io import check_may_write, remove_made, write_json, write_text
from hpc_ecg.cohort.flow_diagram import flow_svg
from hpc_ecg.comparison.cards import write_cards
from hpc_ecg.comparison.checklist import fill_checklists, read_checklists
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.cost import summarize_environments
from hpc_ecg.comparison.curve_figures import compute_curves
from hpc_ecg.comparison.errors import describe_errors
from hpc_ecg.comparison.figures import draw_figures, labels_with_curves, learning_curves
from hpc_ecg.comparison.flow import CohortFlow, read_flow
from hpc_ecg.comparison.headline import headline, run_sentences
from hpc_ecg.comparison.model_tables import scaled_brier
from hpc_ecg.comparison.reference_models import BASELINES
from hpc_ecg.comparison.results import RunResult, by_strategy, is_run
from hpc_ecg.comparison.risk import describe_risks, draw_risks
from hpc_ecg.comparison.risk_coverage import describe_abstention
from hpc_ecg.comparison.run_records import read_combined, read_update
from hpc_ecg.comparison.run_settings import compare_settings
from hpc_ecg.comparison.tables import as_json, build_tables
from hpc_ecg.comparison.verdict import (
    sentences_on_baselines,
    sentences_on_chance,
    verdict_sentences,
)
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.hashing import read_record
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.sweep.folder import read_optional, read_tuning
from hpc_ecg.training.open_run import read_resolved_settings

TABLES: tuple[str, ...] = ("table", "seeds", "pairs", "labels", "pairs_by_label", "baselines")
TABLES += ("non_inferiority", "delong", "flow", "cohort", "chosen", "thresholds", "subgroups")
TABLES += ("calibration_bins", "risk", "periods", "errors", "checklist", "abstention")
TABLES += ("curves", "learning", "runs", "tuning", "cost")
FIGURES: tuple[str, ...] = ("strategies.svg", "differences.svg", "efficiency.svg", "loss.svg")
FIGURES += ("validation.svg", "roc*.svg", "precision_recall*.svg", "calibration*.svg")
FIGURES += (
    "decision*.svg",
    "subgroups*.svg",
    "references.svg",
    "flow.svg",
    "risk*.svg",
    "abstention*.svg",
)
"""What reports of any sweep are made of, to know an earlier one's files from the user's."""


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    page: Path
    comparison: Path
    tables: dict[str, Path]
    figures: list[Path]
    cards: list[Path]


def write_report(
    sweep_dir: Path, replicates: int = 2000, seed: int = 0, margin: float | None = None
) -> ReportPaths:
    """Compare the runs of a sweep and write the report. Raises as `compare` does."""
    sweep_dir = Path(sweep_dir)
    return write_comparison(compare(sweep_dir, replicates, seed, margin), sweep_dir)


def write_comparison(
    comparison: Comparison, sweep_dir: Path, allow_pipe: bool = False
) -> ReportPaths:
    """Write the report of a comparison; it replaces an earlier one, and nothing else in its folder.

    ValueError if a file that is not of a report stands where one would be written, or if report/ is
    a link.
    """
    folder = sweep_dir / "report"
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link: nothing is replaced in the folder that it leads to")
    _remove_earlier(folder)
    curves = {label: compute_curves(comparison, label) for label in labels_with_curves(comparison)}
    learning = learning_curves(comparison)
    figures = draw_figures(comparison, curves, learning)
    settings = read_resolved_settings(comparison.runs[0].folder)
    flow = read_flow(settings, allow_pipe)
    if not isinstance(flow, str) and flow.selection:
        figures["flow"] = flow_svg(flow.selection)
    if not isinstance(flow, str) and flow.on_censoring:
        comparison = replace(comparison, warnings=[*comparison.warnings, flow.on_censoring + "."])
    tuning = read_tuning(sweep_dir)
    more, drawn = describe_risks(comparison, curves), labels_with_curves(comparison)
    for label, end in drawn.items():
        rows = [row for row in more["risk"] if row["label"] == label]
        figures[f"risk{end}"] = draw_risks(rows, f"risk{end}")
    more["abstention"], abstention_figures = describe_abstention(comparison, drawn)
    figures |= abstention_figures
    more["errors"], error_page = describe_errors(comparison, settings, allow_pipe)
    found = {m.run.name: read_combined(m.run.folder.path) for m in comparison.selected}
    if combined := {name: record for name, record in found.items() if record}:
        more["combined"] = combined
    more["checklist"] = fill_checklists(comparison, flow)
    tables = build_tables(comparison, curves, learning, flow, tuning, more)
    paths = ReportPaths(
        page=folder / "index.html",
        comparison=folder / "comparison.json",
        tables={name: folder / f"{name}.csv" for name in tables},
        figures=[folder / "figures" / f"{name}.svg" for name in figures],
        cards=write_cards(comparison, flow, folder / "cards", is_run(sweep_dir)),
    )
    for path, svg in zip(paths.figures, figures.values(), strict=True):
        write_text(path, svg)
    write_json(paths.comparison, as_json(comparison, flow, tuning, more))
    for name, rows in tables.items():
        frame = pd.DataFrame(rows, dtype=object)  # keeps counts whole where other rows have none
        write_text(paths.tables[name], csv_text(frame))
    write_text(
        paths.page, render_report(comparison, figures, sweep_dir, flow, tuning, tables, more)
    )
    if error_page:
        write_text(folder / "errors.html", error_page, about_people=True)
    return paths


def _remove_earlier(folder: Path) -> None:
    """Delete what an earlier report may have left and this one does not write again."""
    is_report = "chosen_models" in read_optional(folder / "comparison.json")
    optional = ["errors.html", *(f"{table}.csv" for table in TABLES)]
    for name in ("index.html", "comparison.json", *optional):
        check_may_write(folder / name, is_report)
    if is_report:
        for name in optional:
            (folder / name).unlink(missing_ok=True)
    remove_made(folder / "figures", *FIGURES)
    for cards in folder.glob("cards/*"):
        remove_made(cards, "MODEL_CARD.md", "RUN_CARD.md")


def render_report(
    comparison: Comparison,
    figures: Mapping[str, str],
    sweep_dir: Path,
    flow: CohortFlow | str,
    tuning: Mapping[str, Any],
    files: Iterable[str] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """`files`: the names of the tables; `more` as `tables.as_json` has it."""
    runs, single = by_strategy(comparison.runs), is_run(sweep_dir)
    in_order = {s.name: runs[s.name] for s in comparison.strategies}
    settings, shared = compare_settings({name: r[-1].settings for name, r in in_order.items()})
    return render_page(
        "sweep_report.html.jinja",
        title=sweep_dir.resolve().name,
        comparison=comparison,
        single=single,
        update=read_update(comparison.runs[0].folder),
        headline=run_sentences(comparison) if single else headline(comparison),
        sentences=verdict_sentences(comparison),
        on_baselines=sentences_on_baselines(comparison),
        on_chance=sentences_on_chance(comparison),
        figures=figures,
        inline_svg=inline_svg,
        drawn=labels_with_curves(comparison),
        starts=[_start(name, group) for name, group in in_order.items()],
        environment=summarize_environments(comparison.runs),
        settings=settings,
        shared_settings=shared,
        cells={m: {(p.first, p.second): p for p in ps} for m, ps in comparison.pairs_of.items()},
        against={(p.first, p.second): p for p in (*comparison.baselines, *comparison.gains)},
        files=[f"{name}.csv" for name in files] + ["comparison.json"],
        flow=flow,
        tuning=tuning,
        more=more,
        names=METRIC_NAMES,
        scaled_brier=scaled_brier,
        checklists=read_checklists()["lists"],
        baseline_names=BASELINES,
        **FORMATS,
    )


def _start(strategy: str, runs: Sequence[RunResult]) -> dict[str, Any]:
    """What a strategy started from (its first run's init_report) and how far its runs went."""
    report = read_record(runs[0].folder.init_report)
    counts, checkpoint = report["counts"], report["checkpoint"]
    return {
        "name": strategy,
        "checkpoint": Path(checkpoint["path"]).name if checkpoint else "none (random weights)",
        "sha256": checkpoint["sha256"][:12] if checkpoint else "",
        "head": report["head"]["taken"],
        "tensors": {kind: counts[f"tensors_{kind}"] for kind in ("loaded", "fresh", "frozen")},
    } | {key: _by_seed(runs, key) for key in ("steps", "best_step", "stopped")}


def _by_seed(runs: Sequence[RunResult], key: str) -> str:
    """The values of all runs in the order of their seeds, or one value if they agree."""
    values = [str(run.finished.get(key, "–")) for run in runs]
    return values[0] if len(set(values)) == 1 else ", ".join(values)
