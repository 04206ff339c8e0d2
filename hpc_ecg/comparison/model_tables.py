"""Rows of the report's tables on cohort, runs, tuning and selected models."""

from collections.abc import Iterator, Mapping
from typing import Any

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.selected import SelectedModel
from hpc_ecg.hashing import read_record

Rows = list[dict[str, Any]]


def flow_rows(flow: CohortFlow) -> Rows:
    """From all ECGs to the table, where its flow is known, and from the table to the splits."""
    rows: Rows = []
    if s := flow.selection:
        counts = [(s.start, 1), *((c, -1) for c in s.left_out)]
        counts += [(c, 1) for c in (s.labelled, *s.labels)]
        rows += [
            {"part": f"cohort: {c.text}", "records": sign * c.ecgs, "patients": sign * c.patients}
            for c, sign in counts
        ]
    rows += [{"part": "in the table", "records": flow.in_table}]
    rows += [{"part": f"left out: {why}", "records": n} for why, n in flow.left_out.items()]
    for split in flow.splits:
        row: dict[str, Any] = {"part": split["split"]}
        for name, value in split.items():
            if isinstance(value, dict):  # the counts of a label
                row |= {f"{name}_{kind}": n for kind, n in value.items()}
            elif name != "split":
                row[name] = value
        rows.append(row)
    return rows


def selected_rows(comparison: Comparison) -> Rows:
    """Each selected model's evaluation, without thresholds and subgroups."""
    rows = []
    for model, label in _selected_labels(comparison):
        evaluation = model.label(label)
        row = {"strategy": model.strategy, "seed": model.run.seed, "label": label}
        row |= flatten(evaluation) | scaled_brier(evaluation)
        for part in ("calibration", "one_ecg_per_patient"):
            values = flatten(evaluation.get(part) or {})
            row |= {f"{part}_{name}": value for name, value in values.items()}
        rows.append(row)
    return rows


def scaled_brier(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The Brier score of a model that gives everybody the test set's prevalence, and how much of
    it this model saves (Steyerberg 2010); {} without a Brier score."""
    brier, prevalence = evaluation.get("brier"), evaluation.get("prevalence") or 0.0
    value = brier.get("value") if isinstance(brier, Mapping) else brier
    reference = prevalence * (1 - prevalence)
    if value is None or not reference:
        return {}
    return {"brier_reference": reference, "brier_scaled": 1 - value / reference}


def threshold_rows(comparison: Comparison) -> Rows:
    """Each selected model at each threshold that was fitted on validation."""
    return [
        {"strategy": model.strategy, "seed": model.run.seed, "label": label, "method": method}
        | flatten(point)
        | point.get("counts", {})
        for model, label in _selected_labels(comparison)
        for method, point in model.at_thresholds(label).items()
    ]


def calibration_rows(comparison: Comparison) -> Rows:
    """The bins of each selected model's calibration curve, with the number of records in each."""
    return [
        {"strategy": model.strategy, "label": label} | point
        for model, label in _selected_labels(comparison)
        for point in model.label(label).get("calibration", {}).get("curve", [])
    ]


def subgroup_rows(comparison: Comparison) -> Rows:
    rows = []
    for model, label in _selected_labels(comparison):
        for level in model.label(label).get("subgroups", []):
            row = {"strategy": model.strategy, "label": label}
            row |= {name: value for name, value in level.items() if not isinstance(value, dict)}
            auroc = level.get("auroc") or {}
            rows.append(row | {f"auroc_{end}": auroc.get(end) for end in ("value", "low", "high")})
    return rows


def run_rows(comparison: Comparison) -> Rows:
    """Each run: tensors by origin, and how far training went. Without times, which vary."""
    rows = []
    for run in comparison.runs:
        counts = read_record(run.folder.init_report)["counts"]
        row: dict[str, Any] = {"strategy": run.strategy, "seed": run.seed}
        row |= {f"tensors_{k}": counts[f"tensors_{k}"] for k in ("loaded", "fresh", "frozen")}
        outcome = ("steps", "best_step", "metric", "best_score", "stopped")
        rows.append(row | {key: run.finished.get(key) for key in outcome})
    return rows


def tuning_rows(tuning: Mapping[str, Any]) -> Rows:
    """Each trial: its values, its validation score (None: it failed) and whether it was chosen."""
    return [
        {"strategy": name}
        | trial["values"]
        | {"score": trial["score"], "chosen": trial["values"] == tuned["chosen"]}
        for name, tuned in tuning.items()
        for trial in tuned["trials"]
    ]


def _selected_labels(comparison: Comparison) -> Iterator[tuple[SelectedModel, str]]:
    """Each selected model with each label that its evaluation holds."""
    for model in comparison.selected:
        for label in comparison.labels:
            if model.label(label):
                yield model, label


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep numbers, and estimates as value, low and high."""
    row: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, int | float):
            row[name] = value
        elif isinstance(value, dict) and "value" in value:
            row[name] = value["value"]
            row |= {f"{name}_{end}": value.get(end) for end in ("low", "high")}
    return row
