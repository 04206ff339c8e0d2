"""Rows of the report's tables on whom and what was run: cohort, runs, tuning, chosen models."""

from collections.abc import Mapping
from typing import Any

from hpc_ecg.atomic_io import read_json
from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.flow import CohortFlow

Rows = list[dict[str, Any]]


def flow_rows(flow: CohortFlow) -> Rows:
    """From the table to the splits."""
    rows: Rows = [{"part": "in the table", "records": flow.in_table}]
    rows += [{"part": f"left out: {why}", "records": n} for why, n in flow.left_out.items()]
    for split in flow.splits:
        row: dict[str, Any] = {"part": split["split"]}
        for name, value in split.items():
            if isinstance(value, dict):  # of a label
                row |= {f"{name}_{kind}": n for kind, n in value.items()}
            elif name != "split":
                row[name] = value
        rows.append(row)
    return rows


def selected_rows(comparison: Comparison) -> Rows:
    """What its own evaluation says of each chosen model, without thresholds and subgroups."""
    rows = []
    for selected in comparison.selected:
        for label in comparison.labels:
            if own := selected.label(label):
                row: dict[str, Any] = {"strategy": selected.strategy, "seed": selected.run.seed}
                row |= {"label": label} | _values(own)
                for part in ("calibration", "one_ecg_per_patient"):
                    values = _values(own.get(part) or {})
                    row |= {f"{part}_{name}": value for name, value in values.items()}
                rows.append(row)
    return rows


def _values(found: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and estimates with their intervals, flat."""
    row: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, int | float):
            row[name] = value
        elif isinstance(value, dict) and "value" in value:
            row[name] = value["value"]
            row |= {f"{name}_{end}": value.get(end) for end in ("low", "high")}
    return row


def threshold_rows(comparison: Comparison) -> Rows:
    """Of the chosen models, at each threshold that was fitted on validation."""
    rows = []
    for selected in comparison.selected:
        for label in comparison.labels:
            for method, point in selected.at_thresholds(label).items():
                row: dict[str, Any] = {
                    "strategy": selected.strategy,
                    "seed": selected.run.seed,
                    "label": label,
                }
                row |= {"method": method} | _values(point)
                rows.append(row | point.get("counts", {}))
    return rows


def subgroup_rows(comparison: Comparison) -> Rows:
    rows = []
    for selected in comparison.selected:
        for label in comparison.labels:
            for level in selected.label(label).get("subgroups", []):
                auroc = level.get("auroc") or {}
                rows.append(
                    {"strategy": selected.strategy, "label": label}
                    | {k: v for k, v in level.items() if not isinstance(v, dict)}
                    | {f"auroc_{k}": auroc.get(k) for k in ("value", "low", "high")}
                )
    return rows


def run_rows(comparison: Comparison) -> Rows:
    """Each run: tensors by where they came from, and how far it went. No time: that varies."""
    rows = []
    for run in comparison.runs:
        counts = read_json(run.folder.init_report)["counts"]
        row: dict[str, Any] = {"strategy": run.strategy, "seed": run.seed}
        row |= {f"tensors_{k}": counts[f"tensors_{k}"] for k in ("loaded", "fresh", "frozen")}
        ends = ("steps", "best_step", "metric", "best_score", "stopped")
        rows.append(row | {key: run.finished.get(key) for key in ends})
    return rows


def tuning_rows(tuning: Mapping[str, Any]) -> Rows:
    """Each trial: its values, its score on validation (None: it failed) and whether they were
    chosen."""
    return [
        {"strategy": name}
        | trial["values"]
        | {"score": trial["score"], "chosen": trial["values"] == own["chosen"]}
        for name, own in tuning.items()
        for trial in own["trials"]
    ]
