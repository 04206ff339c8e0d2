"""What to expect at the next site: one model at several sites (`hpc-ecg report --across`), or the
strategies of a sweep that leaves out one site at a time (`hpc-ecg report SWEEP`).

In: folders of `hpc-ecg evaluate --out`, or runs. Out: index.html, across.json and across.csv.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.atomic_io import check_may_write, write_json, write_text
from hpc_ecg.comparison.reference_models import read_site_baselines
from hpc_ecg.comparison.results import Problem, RunResult
from hpc_ecg.comparison.site_comparison import SiteTests, compare_over_sites, site_sentences
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.evaluation.comparisons import SeedScores
from hpc_ecg.evaluation.events import MIN_EVENTS, count_events, scarce
from hpc_ecg.evaluation.metrics import count_label, has_label
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.sites import (
    OF_PRIOR,
    mean_over_seeds,
    site_interval,
    site_values,
    summarize_sites,
)
from hpc_ecg.hashing import check_record
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page, render_text
from hpc_ecg.reporting.plots import ForestRow, forest_plot
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.arms import LEFT_OUT_SITE
from hpc_ecg.sweep.folder import read_note, read_optional
from hpc_ecg.sweep.protocol import locked_content, protocol_note, read_protocol

MEASURES = {"auroc": "AUROC", "slope": "calibration slope"}
MEASURES |= {"observed_expected": "observed/expected"}
OF_SUMMARY = {"": "mean over sites", "new_": "a new site"}
BLACK = 6


def write_across(folders: Sequence[Path], out: Path) -> Path:
    """Summarize the evaluations and write the page into `out`; returns its path. ValueError: no
    evaluation, a site twice, other labels, no probabilities, or files of others in `out`."""
    _check_folder(out)
    sites = _read_sites(folders)
    names = next(iter(sites.values())).labels
    models = {name: [site] for name, site in sites.items()}
    return _write(out, [*sites], {name: _summarize(models, k) for k, name in enumerate(names)})


def write_left_out_sites(
    sweep_dir: Path,
    runs: Sequence[RunResult],
    problems: Sequence[Problem],
    with_baselines: bool = True,
) -> Path:
    """Summarize each strategy and baseline over the sites that were left out, as the mean over its
    seeds, compare them, and write page and cards into the sweep's report/; returns the page's path.
    ValueError as `write_across`."""
    out = sweep_dir / "report"
    if out.is_symlink():
        raise ValueError(f"{out} is a link: nothing is replaced in the folder that it leads to")
    _check_folder(out)
    baselines, missing = read_site_baselines(sweep_dir, runs) if with_baselines else ({}, [])
    models: SiteTests = {run.base: {} for run in runs}
    seeds = {run.base: _no_scores(run.is_fixed) for run in runs}
    seeds |= {name: _no_scores(True) for name in baselines}
    for run in runs:
        models[run.base].setdefault(run.varied[LEFT_OUT_SITE], []).append(run.test)
        seeds[run.base].value[run.seed] = 0.0
    every, names = models | baselines, runs[0].test.labels
    labels: dict[str, Any] = {}
    comparisons: dict[str, Any] = {}
    for k, label in enumerate(names):
        about = {name: _summarize(tests, k, MIN_EVENTS) for name, tests in every.items()}
        labels |= {f"{name}, {label}": summary for name, summary in about.items()}
        auroc = {name: summary["summary"].get("auroc", {}) for name, summary in about.items()}
        order = sorted(models, key=lambda name: -auroc[name].get("value", 1.0))
        pairs = [*combinations(order, 2)], [(a, b) for b in baselines for a in order]
        families = [compare_over_sites(every, p, k, seeds, len(names)) for p in pairs]
        comparisons[label] = {
            "verdict": site_sentences(auroc, *families),
            "models": [*order, *baselines],
            "pairs": [asdict(pair) | more for family in families for pair, more in family],
        }
    margin = locked_content(protocol)["margin"] if (protocol := read_protocol(sweep_dir)) else 0.0
    protocol_text = protocol_note(sweep_dir, margin, "auroc", [run.name for run in runs])["text"]
    notes = [read_note(sweep_dir), protocol_text, *(f"{p.name}: {p.reason}" for p in problems)]
    notes = [note for note in (*notes, *missing) if note]
    sites = [*dict.fromkeys(name for tests in models.values() for name in tests)]
    values = FORMATS | {"labels": labels, "comparisons": comparisons, "notes": notes}
    for base in models:
        mine = [run for run in runs if run.base == base]
        init = read_optional(mine[0].folder.init_report)
        card = render_text("site_card.md.jinja", strategy=base, runs=mine, init=init, **values)
        write_text(out / "cards" / base / "MODEL_CARD.md", card)
    return _write(out, sites, labels, notes, comparisons)


def _no_scores(is_fixed: bool) -> SeedScores:
    return SeedScores(value={}, replicate_R={}, is_fixed=is_fixed)


def _check_folder(out: Path) -> None:
    """ValueError if it holds files of others."""
    is_ours = "sites" in read_optional(out / "across.json")
    for name in ("index.html", "across.csv", "across.json"):
        check_may_write(out / name, is_ours)


def _write(
    out: Path,
    sites: list[str],
    labels: dict[str, Any],
    notes: Sequence[str] | None = None,
    comparisons: dict[str, Any] | None = None,
) -> Path:
    """`notes` of a sweep stand at the top, then its comparisons by label."""
    rows = [{"label": name} | row for name, label in labels.items() for row in label["table"]]
    values = {"sites": sites, "labels": labels} | ({} if notes is None else {"notes": notes})
    values |= {"comparisons": comparisons} if comparisons else {}
    about = values | {"measures": MEASURES, "of_prior": OF_PRIOR, "draw": _draw}
    write_text(out / "index.html", render_page("across.html.jinja", **about, **FORMATS))
    write_text(out / "across.csv", csv_text(pd.DataFrame(rows, dtype=object)))
    write_json(out / "across.json", values)
    return out / "index.html"


def _read_sites(folders: Sequence[Path]) -> dict[str, Predictions]:
    """Predictions by the folder of each site."""
    sites: dict[str, Predictions] = {}
    digests: dict[str, str] = {}
    for name, folder in zip(map(str, folders), folders, strict=True):
        paths = [folder / "predictions.parquet", folder / "predictions/test.parquet"]
        path = next((path for path in paths if path.exists()), paths[0])
        if not path.exists() or not (folder / "evaluation.json").exists():
            raise ValueError(f"{folder} is no evaluation; give folders of hpc-ecg evaluate --out")
        check_record(folder / "evaluation.json")
        if (digest := sha256_of(path)) in digests:
            twins = f"{digests[digest]} and {name}"
            raise ValueError(f"{twins} hold the same predictions; give each site once")
        digests[digest] = name
        site = sites[name] = read_predictions(path)
        labels = sites[str(folders[0])].labels
        if site.labels != labels or site.probability_NK is None:
            what = f"{folder} predicts {site.labels}, {folders[0]} {labels}"
            raise ValueError(f"{what}; --across needs one model's yes/no labels")
    return sites


def _summarize(sites: dict[str, list[Predictions]], k: int, least: int = 0) -> dict[str, Any]:
    """From each site's models (seeds): a row for each site, for their mean and for a new one; and
    the summary by measure. A site with fewer patients of an outcome than `least` has no values."""
    table: list[dict[str, Any]] = []
    values: dict[str, list[tuple[float, float]]] = {}
    for name, models in sites.items():
        known_N = has_label(models[0].label_NK[:, k])
        label_N, patient_N = models[0].label_NK[known_N, k], models[0].patient_N[known_N]
        table.append({"site": name} | count_label(label_N, patient_N))
        if least and scarce(count_events(label_N, patient_N), least):
            continue
        try:
            both = [(m.logit_NK[known_N, k], m.probability_NK[known_N, k]) for m in models]  # type: ignore[index]
            who = patient_N, models[0].weights(k)[known_N]
            found = mean_over_seeds([site_values(label_N, *pair, *who) for pair in both])
        except ValueError as error:
            raise ValueError(f"{name}, {models[0].labels[k]}: {error}") from None
        for measure, (value, variance) in found.items():
            low, high = site_interval(measure, value, variance)
            table[-1] |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
            values.setdefault(measure, []).append((value, variance))
    summary = {m: summarize_sites(m, v) | {"sites": len(v)} for m, v in values.items()}
    for prefix, name in OF_SUMMARY.items():
        row: dict[str, Any] = {"site": name}
        for m, mean in summary.items():
            row |= {m: mean["value"], f"{m}_low": mean[f"{prefix}low"]}
            row |= {f"{m}_high": mean[f"{prefix}high"]}
        table.append(row)
    return {"table": table, "summary": summary}


def _draw(label: dict[str, Any], measure: str) -> str:
    """A forest plot: sites, their mean, and a new site."""
    rows = []
    for row in label["table"]:
        value, low, high = (row.get(f"{measure}{end}") for end in ("", "_low", "_high"))
        style = BLACK * (row["site"] in OF_SUMMARY.values())
        if low is not None:
            rows.append(ForestRow(name=row["site"], value=value, low=low, high=high, style=style))
    title, reference = MEASURES[measure], None if measure == "auroc" else 1.0
    svg = forest_plot(rows, f"{title}, 95 % interval", name=measure, reference=reference)
    return inline_svg(svg, f"{title} by site; values in the table above")
