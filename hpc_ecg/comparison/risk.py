"""The predicted risks of one model, for patients with and without the outcome, and by year.

With AUROC, calibration plot and net benefit these are what Van Calster et al. (Lancet Digit Health
2025) would have every paper show. All of the selected model of the best strategy, on the test set.
"""

# N records

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.subgroups import MAX_LEVELS, score_level
from hpc_ecg.reporting.plots import OKABE_ITO, new_figure, to_svg

NUM_BINS = 20
MAX_REPLICATES = 500
"""Enough for a standard error, and quick for 100,000 records."""
TIMES = ("time", "date", "year")
SHIFTED_AFTER = 2100
"""Data sets that hide dates by moving them put them into the next century."""
Rows = list[dict[str, Any]]


def describe_risks(comparison: Comparison, labels: Iterable[str]) -> dict[str, Any]:
    """Rows of `risk` and of `periods`; a text says why there are no periods."""
    risk, periods, reason = [], [], "a regression has no AUROC"
    test = comparison.selected[0].run.test
    replicates = min(comparison.replicates, MAX_REPLICATES) if {*TIMES} & {*test.groups} else 2
    draws = draw_resamples(test.patient_N, replicates, comparison.seed)
    for label in labels:
        sample = LabelSample.from_predictions(test, test.labels.index(label), draws)
        risk += [{"label": label} | row for row in risk_rows(sample)]
        found = period_rows(sample)
        if isinstance(found, str):
            reason = found
        else:
            periods += [{"label": label} | row for row in found]
    return {"risk": risk, "periods": periods or reason}


def risk_rows(sample: LabelSample) -> Rows:
    """By bin of predicted probability: records with and without the outcome."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    counts = [
        np.histogram(sample.probabilities_N[sample.labels_N == value], edges)[0] for value in (0, 1)
    ]
    names = ("from", "to", "without", "with")
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), *np.stack(counts).tolist(), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def draw_risks(rows: Rows, name: str) -> str:
    """Both distributions as steps, each as shares of its own patients: outcomes may be rare."""
    edges = [row["from"] for row in rows] + [1.0]
    with new_figure(4.4, 3.2) as (figure, axes):
        for kind, color, line in (("without", 0, "solid"), ("with", 1, (0, (5, 1.5)))):
            counts = np.array([row[kind] for row in rows])
            text = f"{kind} the outcome ({counts.sum():,} ECGs)"
            share = counts / counts.sum()
            axes.stairs(share, edges, color=OKABE_ITO[color], lw=2, linestyle=line, label=text)
        axes.set(xlim=(0, 1), xlabel="predicted probability", ylabel="share of these ECGs")
        axes.grid()
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.18), frameon=False, fontsize=9)
        return to_svg(figure, name)


def period_rows(sample: LabelSample) -> Rows | str:
    """Counts, AUROC, observed and predicted risk by calendar period, or why there are none."""
    name = next((name for name in TIMES if name in sample.groups), None)
    if name is None:
        return f"the shards hold no column {', '.join(TIMES[:-1])} or {TIMES[-1]}"
    year_N = _years(sample.groups[name])
    known_N = np.isfinite(year_N)
    if not known_N.any():
        return f"no value of {name} can be read as a date"
    first, last = int(np.nanmin(year_N)), int(np.nanmax(year_N))
    if last > SHIFTED_AFTER:
        return f"dates run from {first} to {last}: they were shifted to protect patients"
    if first == last:
        return f"all ECGs are of {first}"
    step, rows = ceil((last - first + 1) / MAX_LEVELS), []
    for start in range(first, last + 1, step):
        end = min(start + step - 1, last)
        is_in_N = known_N & (year_N >= start) & (year_N <= end)
        if is_in_N.any():
            text = f"{start}" if start == end else f"{start}–{end}"
            rows.append({"period": text} | score_level(sample.take(is_in_N))[0])
    if num_unknown := int((~known_N).sum()):
        rows.append({"period": "not known", "n": num_unknown, "reason": "no date"})
    return rows


def _years(values_N: np.ndarray) -> np.ndarray:
    if values_N.dtype.kind == "f":
        return values_N
    times = pd.to_datetime(pd.Series(values_N), format="ISO8601", errors="coerce", utc=True)
    return times.dt.year.to_numpy(np.float64)
