"""The report's numbers as CSV: name → rows. What differs from run to run, time and cost, is in
cost.csv alone; all other files are the same however often a sweep was interrupted."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import nan
from typing import Any

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.cost import Cost
from hpc_ecg.comparison.curve_figures import Curves
from hpc_ecg.comparison.figures import Learning
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.model_tables import (
    Rows,
    flow_rows,
    run_rows,
    selected_rows,
    subgroup_rows,
    threshold_rows,
    tuning_rows,
)
from hpc_ecg.evaluation.comparisons import Difference, Estimate


def tables_of(
    comparison: Comparison,
    curves: Mapping[str, Curves],
    learning: Mapping[str, Learning],
    flow: CohortFlow | str,
    tuning: Mapping[str, Any],
) -> dict[str, Rows]:
    """`curves`: by label; `tuning`: tuning.json. Tables that are empty are left out."""
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
        "baselines": _differences([*comparison.baselines, *comparison.gains], comparison.metric),
        "non_inferiority": comparison.non_inferior,
        "delong": comparison.delong,
        "flow": [] if isinstance(flow, str) else flow_rows(flow),
        "cohort": [{"label": label} | n for label, n in comparison.counts.items()],
        "chosen": selected_rows(comparison),
        "thresholds": threshold_rows(comparison),
        "subgroups": subgroup_rows(comparison),
        "curves": [row for label, own in curves.items() for row in _curves(label, own)],
        "learning": _learning(comparison, learning),
        "runs": run_rows(comparison),
        "tuning": tuning_rows(tuning),
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
    for reference in comparison.reference_models:
        rows.append(
            {"name": reference.name, "kind": reference.kind} | _estimates(reference.estimates)
        )
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
        {"strategy": s.name, "seed": seed, "chosen": seed == selected.run.seed}
        | {metric: s.per_seed[metric][seed] for metric in comparison.metrics}
        for s, selected in zip(comparison.strategies, comparison.selected, strict=True)
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
        {"curve": name, "strategy": run.strategy, "seed": run.seed, "step": step, "value": value}
        for name, by_run in learning.items()
        for run in comparison.runs
        for step, value in zip(*by_run.get((run.strategy, run.seed), ([], [])), strict=True)
    ]


def as_json(
    comparison: Comparison, flow: CohortFlow | str, tuning: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything of the page: the comparison, what the chosen models' evaluations say, the way from
    the table to the splits (a text where it is not known), how runs went, and what tuning chose."""
    chosen = {
        c.strategy: {"seed": c.run.seed, "evaluation": c.evaluation, "points": c.points}
        for c in comparison.selected
    }
    whole = comparison.to_dict()
    varies = whole.pop("varies")
    more = {
        "chosen_models": chosen,
        "flow": flow if isinstance(flow, str) else asdict(flow),
        "runs": run_rows(comparison),
        "tuning": tuning_rows(tuning),
    }
    return whole | more | {"varies": varies}
