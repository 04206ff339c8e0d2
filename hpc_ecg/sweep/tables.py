"""The report's numbers as CSV: name → rows. What differs from run to run, time and cost, is in
cost.csv alone; all other files are the same however often a sweep was interrupted."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import nan
from typing import Any

from hpc_ecg.evaluation.comparisons import Difference, Estimate
from hpc_ecg.sweep.comparison import Comparison
from hpc_ecg.sweep.cost import Cost
from hpc_ecg.sweep.curve_figures import Curves
from hpc_ecg.sweep.figures import Learning
from hpc_ecg.sweep.flow import CohortFlow

Rows = list[dict[str, Any]]


def tables_of(
    comparison: Comparison,
    curves: Mapping[str, Curves],
    learning: Mapping[str, Learning],
    flow: CohortFlow | str,
) -> dict[str, Rows]:
    """`curves`: by label. Tables that are empty are left out."""
    tables = {
        "table": _strategies(comparison),
        "seeds": _seeds(comparison),
        "pairs": [
            row
            for metric, pairs in comparison.pairs_of.items()
            for row in _differences(pairs, metric, comparison.detectable)
        ],
        "labels": _labels(comparison),
        "pairs_by_label": [
            {"label": own.label} | row
            for own in comparison.by_label
            for row in _differences(own.pairs, comparison.metric)
        ],
        "baselines": _differences([*comparison.baselines, *comparison.adds], comparison.metric),
        "non_inferiority": comparison.non_inferior,
        "delong": comparison.delong,
        "flow": [] if isinstance(flow, str) else _flow(flow),
        "cohort": [{"label": label} | n for label, n in comparison.counts.items()],
        "chosen": _chosen(comparison),
        "thresholds": _thresholds(comparison),
        "subgroups": _subgroups(comparison),
        "curves": [row for label, own in curves.items() for row in _curves(label, own)],
        "learning": _learning(comparison, learning),
        "cost": [_cost(name, cost) for name, cost in comparison.cost.items()],
    }
    return {name: rows for name, rows in tables.items() if rows}


def _strategies(comparison: Comparison) -> Rows:
    rows = []
    for strategy in comparison.strategies:
        row: dict[str, Any] = {"name": strategy.name, "kind": "strategy"}
        row["num_seeds"] = len(strategy.seeds)
        row["seeds"] = " ".join(str(s) for s in strategy.seeds)
        row["probability_best"] = comparison.probability_best.get(strategy.name)
        rows.append(row | _estimates(strategy.estimates))
    for rival in comparison.rivals:
        rows.append({"name": rival.name, "kind": rival.kind} | _estimates(rival.estimates))
    return rows


def _cost(name: str, cost: Cost) -> dict[str, Any]:
    hours = {unit.replace(" ", "_"): value for unit, value in cost.hours.items()}
    own = {"energy_kwh": cost.energy_kwh, "ecg_per_s": cost.ecg_per_s}
    return {"strategy": name} | hours | own


def _estimates(estimates: dict[str, Estimate]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric, e in estimates.items():
        row |= {
            metric: e.value,
            f"{metric}_low": e.low,
            f"{metric}_high": e.high,
            f"{metric}_standard_error": e.standard_error,
            f"{metric}_sampling_sd": e.sampling_sd,
            f"{metric}_seed_sd": e.seed_sd,
        }
    return row


def _seeds(comparison: Comparison) -> Rows:
    return [
        {"strategy": s.name, "seed": seed, "chosen": seed == chosen.cell.seed}
        | {metric: s.per_seed[metric][seed] for metric in comparison.metrics}
        for s, chosen in zip(comparison.strategies, comparison.chosen, strict=True)
        for seed in s.seeds
    ]


def _labels(comparison: Comparison) -> Rows:
    return [
        {"label": own.label, "strategy": name} | _estimates(estimates)
        for own in comparison.by_label
        for name, estimates in own.estimates.items()
    ]


def _differences(
    pairs: Iterable[Difference], metric: str, detectable: dict[str, float] | None = None
) -> Rows:
    rows = []
    for pair in pairs:
        e = pair.estimate
        row: dict[str, Any] = {"first": pair.first, "second": pair.second, "metric": metric}
        row["seeds"] = " ".join(str(s) for s in pair.seeds)
        row |= {"difference": e.value, "low": e.low, "high": e.high}
        row |= {"standard_error": e.standard_error, "degrees_of_freedom": e.degrees_of_freedom}
        row |= {"p_value": e.p_value, "p_holm": pair.p_holm}
        if detectable is not None:
            row["detectable"] = detectable.get(f"{pair.first} - {pair.second}")
        rows.append(row)
    return rows


def _flow(flow: CohortFlow) -> Rows:
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


def _chosen(comparison: Comparison) -> Rows:
    """What its own evaluation says of each chosen model, without thresholds and subgroups."""
    rows = []
    for chosen in comparison.chosen:
        for label in comparison.labels:
            if own := chosen.label(label):
                row: dict[str, Any] = {"strategy": chosen.strategy, "seed": chosen.cell.seed}
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


def _thresholds(comparison: Comparison) -> Rows:
    """Of the chosen models, at each threshold that was fitted on validation."""
    rows = []
    for chosen in comparison.chosen:
        for label in comparison.labels:
            for method, point in chosen.at_thresholds(label).items():
                row: dict[str, Any] = {
                    "strategy": chosen.strategy,
                    "seed": chosen.cell.seed,
                    "label": label,
                }
                row |= {"method": method} | _values(point)
                rows.append(row | point.get("counts", {}))
    return rows


def _subgroups(comparison: Comparison) -> Rows:
    rows = []
    for chosen in comparison.chosen:
        for label in comparison.labels:
            for level in chosen.label(label).get("subgroups", []):
                auroc = level.get("auroc") or {}
                rows.append(
                    {"strategy": chosen.strategy, "label": label}
                    | {k: v for k, v in level.items() if not isinstance(v, dict)}
                    | {f"auroc_{k}": auroc.get(k) for k in ("value", "low", "high")}
                )
    return rows


def _curves(label: str, curves: Curves) -> Rows:
    """The points of the lines and bands; of ROC and precision-recall the mean over seeds."""
    drawn = {
        "roc": curves.roc,
        "precision_recall": curves.precision_recall,
        "calibration": curves.calibration,
        "decision": [*curves.decision, curves.treat_all],
    }
    rows = []
    for curve, groups in drawn.items():
        for group in groups:
            x, y = group.bold or ([], [])
            _, low, high = group.band or (x, [nan] * len(x), [nan] * len(x))
            about = {"label": label, "curve": curve, "strategy": group.name}
            points = zip(x, y, low, high, strict=True)
            rows += [about | dict(zip(("x", "y", "low", "high"), p, strict=True)) for p in points]
    return rows


def _learning(comparison: Comparison, learning: Mapping[str, Learning]) -> Rows:
    """The points that are drawn: of long runs the means of blocks of steps."""
    return [
        {"curve": name, "strategy": cell.strategy, "seed": cell.seed, "step": step, "value": value}
        for name, by_cell in learning.items()
        for cell in comparison.cells
        for step, value in zip(*by_cell.get((cell.strategy, cell.seed), ([], [])), strict=True)
    ]


def as_json(comparison: Comparison, flow: CohortFlow | str) -> dict[str, Any]:
    """Everything of the page: the comparison, what the chosen models' evaluations say, and the way
    from the table to the splits (a text where it is not known)."""
    chosen = {
        c.strategy: {"seed": c.cell.seed, "evaluation": c.evaluation, "points": c.points}
        for c in comparison.chosen
    }
    whole = comparison.to_dict()
    varies = whole.pop("varies")
    way = flow if isinstance(flow, str) else asdict(flow)
    return whole | {"chosen_models": chosen, "flow": way, "varies": varies}
