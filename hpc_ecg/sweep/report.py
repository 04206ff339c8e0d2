"""The report of a sweep: a folder of finished cells in, `report/` with page and tables out.

    report/index.html       one file, no network, light and dark, readable on paper
    report/comparison.json  every number of the page
    report/table.csv        a row per strategy;  pairs.csv  a row per difference
    report/figures/*.svg    the figures, for a paper

The page's order is that of a reader's questions: which is best, by how much, what was run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.page import inline_svg, render_page
from hpc_ecg.sweep.cells import CellResult, read_optional
from hpc_ecg.sweep.compare import Comparison, StrategyResult, compare
from hpc_ecg.sweep.figures import draw_figures
from hpc_ecg.sweep.settings import tell_apart
from hpc_ecg.sweep.verdict import (
    format_table,
    number,
    show_hours,
    show_interval,
    show_p,
    verdict_sentences,
)
from hpc_ecg.writing import read_json, write_json, write_text

__all__ = ["ReportPaths", "format_table", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    page: Path
    comparison: Path
    table: Path
    pairs: Path
    figures: list[Path]


def write_report(sweep_dir: Path, replicates: int = 2000, seed: int = 0) -> ReportPaths:
    """Compare and write; files of an earlier report are replaced. Raises as `compare` does."""
    sweep_dir = Path(sweep_dir)
    return write_comparison(compare(sweep_dir, replicates, seed), sweep_dir)


def write_comparison(comparison: Comparison, sweep_dir: Path) -> ReportPaths:
    """For a caller that has the comparison already and shows `format_table` of it."""
    folder = sweep_dir / "report"
    figures = draw_figures(comparison)
    paths = ReportPaths(
        page=folder / "index.html",
        comparison=folder / "comparison.json",
        table=folder / "table.csv",
        pairs=folder / "pairs.csv",
        figures=[folder / "figures" / f"{name}.svg" for name in figures],
    )
    for path, svg in zip(paths.figures, figures.values(), strict=True):
        write_text(path, svg)
    write_json(paths.comparison, comparison.to_dict())
    write_text(paths.table, pd.DataFrame(_table_rows(comparison)).to_csv(index=False))
    write_text(paths.pairs, pd.DataFrame(_pair_rows(comparison)).to_csv(index=False))
    write_text(paths.page, render_report(comparison, figures, sweep_dir.resolve().name))
    return paths


def render_report(comparison: Comparison, figures: dict[str, str], title: str) -> str:
    by_strategy = {cell.strategy: cell.settings for cell in comparison.cells}
    settings, shared = tell_apart({s.name: by_strategy[s.name] for s in comparison.strategies})
    return render_page(
        "sweep_report.html.jinja",
        title=title,
        comparison=comparison,
        sentences=verdict_sentences(comparison),
        figures={n: inline_svg(svg, _describe(n, comparison)) for n, svg in figures.items()},
        cards=[_card(strategy, comparison.cells) for strategy in comparison.strategies],
        environment=_environment(comparison.cells),
        settings=settings,
        shared_settings=shared,
        number=number,
        show_interval=show_interval,
        show_p=show_p,
        show_hours=show_hours,
    )


def _describe(name: str, comparison: Comparison) -> str:
    """What a figure shows, for a reader who hears the page."""
    metric = comparison.metric_name
    return {
        "strategies": f"{metric} of each strategy with its interval; values in the table above",
        "differences": f"Differences in {metric} with intervals; values in the table above",
        "roc": "ROC curve of each strategy, seeds thin",
        "precision_recall": "Precision-recall curve of each strategy, seeds thin",
        "validation": "Validation metric by step, a line per run",
        "loss": "Training loss by step, a line per run",
    }[name]


def _table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for strategy in comparison.strategies:
        row: dict[str, Any] = {"strategy": strategy.name, "num_seeds": len(strategy.seeds)}
        row["seeds"] = " ".join(str(s) for s in strategy.seeds)
        for metric, e in strategy.estimates.items():
            row |= {
                metric: e.value,
                f"{metric}_low": e.low,
                f"{metric}_high": e.high,
                f"{metric}_standard_error": e.standard_error,
                f"{metric}_seed_sd": e.seed_sd,
            }
        rows.append(row | {unit.replace(" ", "_"): h for unit, h in strategy.hours.items()})
    return rows


def _pair_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "metric": comparison.metric,
            "seeds": " ".join(str(s) for s in pair.seeds),
            "difference": pair.estimate.value,
            "low": pair.estimate.low,
            "high": pair.estimate.high,
            "standard_error": pair.estimate.standard_error,
            "degrees_of_freedom": pair.estimate.degrees_of_freedom,
            "p_value": pair.estimate.p_value,
            "p_holm": pair.p_holm,
        }
        for pair in comparison.pairs
    ]


def _card(strategy: StrategyResult, cells: list[CellResult]) -> dict[str, Any]:
    """What a strategy started from (its first cell's init_report) and how its runs went."""
    own = [cell for cell in cells if cell.strategy == strategy.name]
    report = read_json(own[0].run.init_report)
    counts, checkpoint = report["counts"], report["checkpoint"]
    speeds = [c.finished["ecg_per_s"] for c in own if c.finished.get("ecg_per_s")]
    return {
        "name": strategy.name,
        "checkpoint": Path(checkpoint["path"]).name if checkpoint else "none (random weights)",
        "sha256": checkpoint["sha256"][:12] if checkpoint else "",
        "head": report["head"]["taken"],
        "tensors": {kind: counts[f"tensors_{kind}"] for kind in ("loaded", "fresh", "frozen")},
        "steps": _each(own, "steps"),
        "best_step": _each(own, "best_step"),
        "stopped": _each(own, "stopped"),
        "speed": f"{sum(speeds) / len(speeds):.0f}" if speeds else "–",
    }


def _each(cells: list[CellResult], key: str) -> str:
    """The values of all cells in the order of their seeds, one where they agree."""
    values = [str(cell.finished.get(key, "–")) for cell in cells]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def _environment(cells: list[CellResult]) -> list[tuple[str, str]]:
    """Facts of all cells; where they differ, each value that occurred (at most three)."""
    seen: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, value in read_optional(cell.run.environment).items():
            if value and key not in ("time", "command"):  # these differ by nature
                seen.setdefault(key, {})[_plain(value)] = None
    return [
        (key, " | ".join(list(values)[:3]) + (" | …" if len(values) > 3 else ""))
        for key, values in seen.items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    return value if isinstance(value, str) else json.dumps(value)
