"""What to expect at the next site: one model at several sites (`hpc-ecg report --across`), or the
strategies of a sweep that leaves out one site at a time (`hpc-ecg report SWEEP`).

In: folders of `hpc-ecg evaluate --out`, or runs. Out: index.html, across.json and two tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.atomic_io import check_may_write, write_json, write_text
from hpc_ecg.comparison.reference_models import read_site_baselines
from hpc_ecg.comparison.results import Problem, RunResult
from hpc_ecg.comparison.scoring import against_best
from hpc_ecg.comparison.verdict import baseline_sentence, non_inferior_sentences, rank_sentences
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.evaluation.comparisons import Difference, SeedScores
from hpc_ecg.evaluation.events import MIN_EVENTS, count_events, scarce
from hpc_ecg.evaluation.families import Pair, judge_estimates, within_bounds
from hpc_ecg.evaluation.intervals import t_quantile
from hpc_ecg.evaluation.metrics import count_label, has_label
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.sites import (
    OF_PRIOR,
    mean_difference,
    mean_over_seeds,
    site_differences,
    site_interval,
    site_values,
    summarize_sites,
)
from hpc_ecg.hashing import check_record
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page, render_text
from hpc_ecg.reporting.numbers import format_number, format_range, format_with_interval
from hpc_ecg.reporting.plots import ForestRow, forest_plot
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.arms import LEFT_OUT_SITE
from hpc_ecg.sweep.folder import read_note, read_optional
from hpc_ecg.sweep.protocol import protocol_note

MEASURES = {"auroc": "AUROC", "slope": "calibration slope"}
MEASURES |= {"observed_expected": "observed/expected"}
OF_SUMMARY = {"": "mean over sites", "new_": "a new site"}
FEW_SITES, BLACK, TESTS = 5, 6, "non_inferiority.csv"
PERFECT = {"value": 1.0, "low": None, "high": None}
Results = tuple[Sequence[RunResult], Sequence[Problem]]
SiteTests = dict[str, dict[str, list[Predictions]]]
SiteDifferences = list[tuple[Difference, dict[str, Any]]]
"""The mean, and what `mean_difference` has beside it."""


def write_across(folders: Sequence[Path], out: Path) -> Path:
    """Summarize the evaluations and write the page into `out`; returns its path. ValueError: no
    evaluation, a site twice, other labels, no probabilities, or files of others in `out`."""
    _check_folder(out)
    sites = _read_sites(folders)
    names = next(iter(sites.values())).labels
    models = {name: [site] for name, site in sites.items()}
    return _write(out, [*sites], {name: _summarize(models, k) for k, name in enumerate(names)})


def write_left_out_sites(
    sweep_dir: Path, read: Results, with_baselines: bool, margin: float
) -> Path:
    """Summarize each strategy and baseline over the sites that were left out, as the mean over its
    seeds, compare them, and write page and cards into the sweep's report/; returns the page's path.
    ValueError as `write_across`."""
    (runs, problems), out = read, sweep_dir / "report"
    if out.is_symlink():
        raise ValueError(f"{out} is a link: nothing is replaced in the folder that it leads to")
    _check_folder(out)
    baselines, missing = read_site_baselines(sweep_dir, runs) if with_baselines else ({}, [])
    models: SiteTests = {run.base: {} for run in runs}
    seeds = {run.base: SeedScores(value={}, replicate_R={}, is_fixed=run.is_fixed) for run in runs}
    seeds |= {name: SeedScores(value={}, replicate_R={}, is_fixed=True) for name in baselines}
    for run in runs:
        models[run.base].setdefault(run.varied[LEFT_OUT_SITE], []).append(run.test)
        seeds[run.base].value[run.seed] = 0.0
    every, num_labels = models | baselines, len(runs[0].test.labels)
    labels, comparisons, tests = dict[str, Any](), dict[str, Any](), list[dict[str, Any]]()
    for k, label in enumerate(runs[0].test.labels):
        of = {name: _summarize(sites, k, MIN_EVENTS) for name, sites in every.items()}
        labels |= {f"{name}, {label}": summary for name, summary in of.items()}
        auroc = {m: about["summary"].get("auroc", PERFECT) for m, about in of.items()}
        order = sorted(models, key=lambda name: -auroc[name]["value"])
        pairs = [*combinations(order, 2)], [(a, b) for b in baselines for a in order]
        families = [_compare(every, p, k, seeds, num_labels) for p in pairs]
        rows = [asdict(pair) | more for family in families for pair, more in family]
        found = against_best([pair for pair, _ in families[0]], margin)
        tests += [{"label": label} | test for test in found]
        verdict = _sentences(auroc, *families) + non_inferior_sentences(found, "mean AUROC")
        comparisons[label] = {"models": [*order, *baselines], "pairs": rows, "verdict": verdict}
    about = protocol_note(sweep_dir, margin, "auroc", [run.name for run in runs])
    notes = [read_note(sweep_dir), about["text"], *(f"{p.name}: {p.reason}" for p in problems)]
    more: dict[str, Any] = {"margin": margin, "non_inferior": tests, "comparisons": comparisons}
    more["strategies"] = [*models]
    more["notes"] = [note for note in (*notes, *missing) if note]
    for base in models:
        mine = [run for run in runs if run.base == base]
        about = more | {"init": read_optional(mine[0].folder.init_report), "labels": labels}
        card = render_text("site_card.md.jinja", strategy=base, runs=mine, **about, **FORMATS)
        write_text(out / "cards" / base / "MODEL_CARD.md", card)
    return _write(out, [*dict.fromkeys(s for at in models.values() for s in at)], labels, more)


def _check_folder(out: Path) -> None:
    """ValueError if it holds files of others."""
    is_ours = "sites" in read_optional(out / "across.json")
    for name in ("index.html", "across.csv", "across.json", TESTS):
        check_may_write(out / name, is_ours)
    (out / TESTS).unlink(missing_ok=True)


def _write(out: Path, sites: list[str], labels: dict, more: dict[str, Any] | None = None) -> Path:
    """`more` of a sweep: `notes` for the top, `comparisons` by label, `margin` and its tests."""
    rows = [{"label": name} | row for name, label in labels.items() for row in label["table"]]
    values = {"sites": sites, "labels": labels} | (more or {})
    about = values | {"measures": MEASURES, "of_prior": OF_PRIOR, "draw": _draw}
    write_text(out / "index.html", render_page("across.html.jinja", **about, **FORMATS))
    for name, table in (("across.csv", rows), (TESTS, values.get("non_inferior"))):
        if table:
            write_text(out / name, csv_text(pd.DataFrame(table, dtype=object)))
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


def _compare(
    models: SiteTests, pairs: Sequence[Pair], k: int, seeds: Mapping[str, SeedScores], families: int
) -> SiteDifferences:
    """The differences of these pairs on label k, as one of so many families; pairs with fewer than
    two sites in common are left out. `seeds` says which seeds a model has, or that it is fixed."""
    at: dict[Pair, dict[str, tuple[float, float]]] = {pair: {} for pair in pairs}
    for site in dict.fromkeys(site for tests in models.values() for site in tests):
        tests = {name: sites[site] for name, sites in models.items() if site in sites}
        first = next(iter(tests.values()))[0]
        keep_N = has_label(first.label_NK[:, k])
        data = first.label_NK[keep_N, k], first.patient_N[keep_N], first.weights(k)[keep_N]
        if scarce(count_events(*data[:2]), MIN_EVENTS):
            continue
        logits = {name: [test.logit_NK[keep_N, k] for test in tests[name]] for name in tests}
        both = [pair for pair in pairs if {*pair} <= tests.keys()]
        for pair, value in site_differences(logits, both, *data).items():
            at[pair][site] = value
    means = {
        pair: mean_difference(values, all(seeds[name].includes_seeds for name in pair))
        for pair, values in at.items()
        if len(values) > 1
    }
    judged = judge_estimates(seeds, [*means], [mean for mean, _ in means.values()], families)
    more = [about for _, about in means.values()]
    return list(zip(map(within_bounds, judged), more, strict=True))


def _sentences(
    auroc: dict[str, Any], found: SiteDifferences, against: SiteDifferences
) -> list[str]:
    """The verdict, from each model's AUROC over sites and the differences between strategies (the
    best comes first) and to baselines; with what few sites cannot tell."""
    sentences = ["Strategies are not compared: that takes two of them, at two sites or more."]
    if found:
        best = found[0][0].first
        of_best = [(pair, more) for pair, more in found if pair.first == best]
        value = format_with_interval(auroc[best])
        sentences = rank_sentences(best, "mean AUROC", value, [pair for pair, _ in of_best])
        num = min(len(more["sites"]) for _, more in of_best)
        sentences[0] = f"Over {num} sites: {sentences[0]}"
        new = "; ".join(
            f"{format_range(more['new_low'], more['new_high'])} against {pair.second}"
            for pair, more in of_best
        )
        if num > OF_PRIOR:
            sentences.append(f"At a new site, {best} differs by {new} (95 % prediction interval).")
        if num < FEW_SITES:
            reach = f"intervals reach {t_quantile(num - 1):.1f} standard errors to each side"
            nothing = ", and what to expect at a new site cannot be said" * (num <= OF_PRIOR)
            sentences.append(f"{num} sites show little of how sites differ: {reach}{nothing}.")
    for name in dict.fromkeys(pair.second for pair, _ in against):
        pairs = [pair for pair, _ in against if pair.second == name]
        title = f"{name} alone (mean AUROC {format_number(auroc[name]['value'])})"
        sentences.append(baseline_sentence(title, pairs))
    return sentences


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
