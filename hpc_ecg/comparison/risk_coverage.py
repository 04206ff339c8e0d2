"""What it gains to leave out the records on which the best strategy's model is in doubt.

Several seeds are an ensemble, and disagree on some records. A single run is far from its training
on some, which `predict RUN --fit-abstention` has measured.
"""

# M members of the ensemble

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.model_tables import Rows, flatten
from hpc_ecg.comparison.reference_models import mean_prediction
from hpc_ecg.comparison.run_records import ABSTENTION, read_abstention
from hpc_ecg.evaluation.abstention import curve_rows, fit_rule, spreads
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.scores import fit_operating_points
from hpc_ecg.reporting.plots import Group, line_plot


def describe_abstention(
    comparison: Comparison, labels: Mapping[str, str]
) -> tuple[Rows | str, dict[str, str]]:
    """The curve's rows, or why there is none, and figures. `labels`: label → suffix of its name."""
    best = comparison.selected[0].strategy
    runs = [run for run in comparison.runs if run.strategy == best]
    record, rows = runs[0].folder.path / ABSTENTION, list[dict[str, Any]]()
    if not labels:
        return "it is for yes/no labels", {}
    if len(runs) > 1:
        files = [run.folder.predictions / "valid.parquet" for run in runs]
        if not all(file.exists() for file in files):
            return "it needs each seed’s predictions of validation", {}
        valid = [read_predictions(file).sorted() for file in files]
        if rule := rule_of_ensemble(valid):
            doubts = spreads(np.stack([run.test.logit_NK for run in runs], axis=1))
            data = mean_prediction([r.test for r in runs]), labels, doubts[rule["score"]], rule
            points = fit_operating_points(mean_prediction(valid))
            rows = curve_rows(*data, points, comparison.replicates, comparison.seed)
    elif (found := read_abstention(record.parent)) is not None:
        rows = found
    else:
        return f"measure it: hpc-ecg predict {record.parent} --fit-abstention", {}
    figures = {}
    for label, end in labels.items():
        known = [row for row in rows if row["label"] == label and "auroc" in row]
        if len(known) > 1:
            figures[f"abstention{end}"] = _draw(known, f"abstention{end}")
    texts = ("label", "score", "reason")
    table = [{n: row[n] for n in texts if n in row} | flatten(row) for row in rows]
    return table or "no score of doubt tells the records apart", figures


def rule_of_ensemble(valid: Sequence[Predictions]) -> dict[str, Any]:
    """As `fit_rule`, from the members' predictions of validation."""
    doubts = spreads(np.stack([member.logit_NK for member in valid], axis=1))
    return fit_rule(mean_prediction(list(valid)), doubts)


def _draw(rows: Rows, name: str) -> str:
    kept = [row["kept"] for row in rows]
    value, low, high = ([row["auroc"][end] for row in rows] for end in ("value", "low", "high"))
    random = Group(name="as many at random", bold=(kept, [value[0]] * len(kept)))
    chosen = Group(name="least doubt", bold=(kept, value), band=(kept, low, high))
    xlabel, ylabel = "share of the records kept", "AUROC of those kept"
    return line_plot([chosen, random], name=name, xlabel=xlabel, ylabel=ylabel)
