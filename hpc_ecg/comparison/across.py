"""`hpc-ecg report --across`: one model at several sites, and what to expect at the next one.

In: folders of evaluations (`hpc-ecg evaluate --out`, or runs that left out one site each). Out:
index.html, across.json and across.csv.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_ecg.atomic_io import check_may_write, write_json, write_text
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.evaluation.metrics import count_label, has_label
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.sites import OF_PRIOR, site_interval, site_values, summarize_sites
from hpc_ecg.hashing import check_record
from hpc_ecg.reporting.escape import csv_text
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.plots import ForestRow, forest_plot
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.folder import read_optional

MEASURES = {"auroc": "AUROC", "slope": "calibration slope"}
MEASURES |= {"observed_expected": "observed/expected"}
OF_SUMMARY = {"": "mean over sites", "new_": "a new site"}
BLACK = 6


def write_across(folders: Sequence[Path], out: Path) -> Path:
    """Summarize the evaluations and write the page into `out`; returns its path. ValueError: no
    evaluation, a site twice, other labels, no probabilities, or files of others in `out`."""
    is_ours = "sites" in read_optional(out / "across.json")
    for name in ("index.html", "across.csv", "across.json"):
        check_may_write(out / name, is_ours)
    sites = _read_sites(folders)
    names = next(iter(sites.values())).labels
    labels = {name: _summarize(sites, k) for k, name in enumerate(names)}
    rows = [{"label": name} | row for name, label in labels.items() for row in label["table"]]
    values = {"sites": [*sites], "labels": labels}
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


def _summarize(sites: dict[str, Predictions], k: int) -> dict[str, Any]:
    """A row for each site, for their mean and for a new one; and the summary by measure."""
    table: list[dict[str, Any]] = []
    values: dict[str, list[tuple[float, float]]] = {}
    for name, site in sites.items():
        known_N = has_label(site.label_NK[:, k])
        label_N, patient_N = site.label_NK[known_N, k], site.patient_N[known_N]
        assert site.probability_NK is not None
        table.append({"site": name} | count_label(label_N, patient_N))
        outputs = site.logit_NK[known_N, k], site.probability_NK[known_N, k]
        try:
            found = site_values(label_N, *outputs, patient_N)
        except ValueError as error:
            raise ValueError(f"{name}, {site.labels[k]}: {error}") from None
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
