"""The report's numbers as CSV tables: name → rows.

cost.csv alone holds what differs when a sweep is run again; all other tables stay the same,
however often a sweep was interrupted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import nan
from types import MappingProxyType
from typing import Any

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.cost import Cost
from hpc_ecg.comparison.curve_figures import Curves
from hpc_ecg.comparison.figures import Learning
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.model_tables import (
    Rows,
    calibration_rows,
    flow_rows,
    run_rows,
    scaled_brier,
    selected_rows,
    subgroup_rows,
    threshold_rows,
    tuning_rows,
)
from hpc_ecg.comparison.scoring import detectable
from hpc_ecg.evaluation.comparisons import Difference, Estimate


def build_tables(
    comparison: Comparison,
    curves: Mapping[str, Curves],
    learning: Mapping[str, Learning],
    flow: CohortFlow | str,
    tuning: Mapping[str, Any],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Rows]:
    """Build all tables that have a row; `curves` by label, `tuning` as in tuning.json, `more` as
    `as_json` has it."""
    tables = {
        "table": strategy_rows(comparison),
        "seeds": _seeds(comparison),
        "pairs": [
            row
            for metric, pairs in comparison.pairs_of.items()
            for row in _differences(pairs, metric, with_power=True)
        ],
        "labels": [
            {"label": result.label, "strategy": name} | _estimates(estimates)
            for result in comparison.by_label
            for name, estimates in result.estimates.items()
        ],
        "pairs_by_label": [
            {"label": result.label} | row
            for result in comparison.by_label
            for row in _differences(result.pairs, comparison.metric)
        ],
        "baselines": _differences([*comparison.baselines, *comparison.gains], comparison.metric),
        "non_inferiority": comparison.non_inferior,
        "delong": comparison.delong,
        "flow": [] if isinstance(flow, str) else flow_rows(flow),
        "cohort": [{"label": label} | n for label, n in comparison.counts.items()],
        "chosen": selected_rows(comparison),
        "thresholds": threshold_rows(comparison),
        "subgroups": subgroup_rows(comparison),
        "calibration_bins": calibration_rows(comparison),
        **{name: rows for name, rows in more.items() if isinstance(rows, list)},
        "curves": [row for label in curves for row in _curves(label, curves[label])],
        "learning": _learning(comparison, learning),
        "runs": run_rows(comparison),
        "tuning": tuning_rows(tuning),
        "cost": [_cost(name, cost) for name, cost in comparison.cost.items()],
    }
    return {name: rows for name, rows in tables.items() if rows}


def as_json(
    comparison: Comparison,
    flow: CohortFlow | str,
    tuning: Mapping[str, Any],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """All numbers of the page; `flow` is a text where the cohort's flow is not known, and so is
    what is not known in `more` (rows by name)."""
    values = comparison.to_dict()
    varies = values.pop("varies")
    values["chosen_models"] = {
        model.strategy: {
            "seed": model.run.seed,
            "evaluation": model.evaluation,
            "points": model.points,
            "scaled_brier": {name: scaled_brier(model.label(name)) for name in comparison.labels},
        }
        for model in comparison.selected
    }
    values["flow"] = flow if isinstance(flow, str) else asdict(flow)
    values["runs"] = run_rows(comparison)
    values["tuning"] = tuning_rows(tuning)
    return values | dict(more) | {"varies": varies}


def strategy_rows(comparison: Comparison) -> Rows:
    rows: Rows = [
        {
            "name": strategy.name,
            "kind": "strategy",
            "num_seeds": len(strategy.seeds),
            "seeds": _join(strategy.seeds),
            "probability_best": comparison.probability_best.get(strategy.name),
        }
        | _estimates(strategy.estimates)
        for strategy in comparison.strategies
    ]
    models = comparison.reference_models
    return rows + [{"name": m.name, "kind": m.kind} | _estimates(m.estimates) for m in models]


def _seeds(comparison: Comparison) -> Rows:
    return [
        {"strategy": strategy.name, "seed": seed, "chosen": seed == model.run.seed}
        | {metric: strategy.per_seed[metric][seed] for metric in comparison.metrics}
        for strategy, model in zip(comparison.strategies, comparison.selected, strict=True)
        for seed in strategy.seeds
    ]


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric, estimate in estimates.items():
        row[metric] = estimate.value
        for name in ("low", "high", "standard_error", "sampling_sd", "seed_sd"):
            row[f"{metric}_{name}"] = getattr(estimate, name)
    return row


def _differences(pairs: Iterable[Difference], metric: str, with_power: bool = False) -> Rows:
    rows = []
    for pair in pairs:
        e = pair.estimate
        row: dict[str, Any] = {"first": pair.first, "second": pair.second, "metric": metric}
        row |= {"seeds": _join(pair.seeds), "difference": e.value, "low": e.low, "high": e.high}
        row |= {"standard_error": e.standard_error, "degrees_of_freedom": e.degrees_of_freedom}
        row |= {"low_simultaneous": pair.low, "high_simultaneous": pair.high}
        row |= {"p_value": e.p_value, "p_adjusted": pair.p_adjusted}
        if with_power:
            row["detectable"] = detectable(pair, metric)
        rows.append(row)
    return rows


def _curves(label: str, curves: Curves) -> Rows:
    """The points of lines and bands; for ROC and precision-recall the mean over seeds."""
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
    """The points of the learning curves as drawn: long runs are averaged in blocks of steps."""
    return [
        {"curve": name, "strategy": run.strategy, "seed": run.seed, "step": step, "value": value}
        for name, by_run in learning.items()
        for run in comparison.runs
        for step, value in zip(*by_run.get((run.strategy, run.seed), ([], [])), strict=True)
    ]


def _cost(name: str, cost: Cost) -> dict[str, Any]:
    hours = {unit.replace(" ", "_"): value for unit, value in cost.hours.items()}
    return {"strategy": name, **hours, "energy_kwh": cost.energy_kwh, "ecg_per_s": cost.ecg_per_s}


def _join(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))
