"""Methods and results as two paragraphs to paste into a paper. Each number is one of
comparison.json, through the functions that format the page."""

from collections.abc import Mapping
from typing import Any

from hpc_ecg.comparison.comparison import Comparison, StrategyResult
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.comparison.model_tables import scaled_brier
from hpc_ecg.comparison.scoring import pairs_with
from hpc_ecg.comparison.selected import SelectedModel
from hpc_ecg.comparison.wording import fitted_for, format_estimate, format_metric
from hpc_ecg.evaluation.comparisons import Difference
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.reporting.numbers import (
    count,
    format_number,
    format_p,
    format_percent,
    format_range,
    format_threshold,
    join_names,
)

MAX_LABELS = 5
SCORES = ("auroc", "auprc", "brier", "r2", "mae", "rmse")
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}


def methods_paragraph(comparison: Comparison, flow: CohortFlow | str) -> str:
    labels, several = join_names(comparison.labels), len(comparison.strategies) > 1
    what = join_names([_with_seeds(s) for s in comparison.strategies])
    verb = "compared strategies of fine-tuning" if several else "fine-tuned"
    parts = [f"We {verb} a transformer to predict {labels} from 12-lead ECGs: {what}."]
    parts.append("Patients, not ECGs, were assigned to training, validation and test.")
    if isinstance(flow, CohortFlow):
        sizes = [f"{s['split']} {_size(s['records'], s['patients'])}" for s in flow.splits]
        parts.append(f"The splits held: {'; '.join(sizes)}.")
    for label, n in list(comparison.counts.items())[:MAX_LABELS]:
        positive = ""
        if "n_positive" in n:
            positive = f", {n['n_positive']:,} positive ({format_percent(n['prevalence'])})"
        parts.append(f"Tested for {label}: {_size(n['n'], n['n_patients'])}{positive}.")
    parts.append("Training step, calibration and thresholds were chosen on validation data alone.")
    parts.append(
        f"The primary metric was {comparison.metric_name} on the test set, with 95 % intervals "
        f"from {count(comparison.replicates, 'bootstrap draw')} of patients (all ECGs of a patient "
        "together) and, with several seeds, from the spread between seeds."
    )
    if several:
        parts.append(
            "Intervals and p values of differences are adjusted for all pairs of strategies; the "
            f"margin of non-inferiority was {comparison.margin:g}."
        )
    return " ".join(parts)


def results_paragraph(comparison: Comparison) -> str:
    best, name = comparison.strategies[0], comparison.metric_name
    value = format_estimate(best.estimates[comparison.metric])
    rank = "had the highest" if len(comparison.strategies) > 1 else "had an"
    parts = [f"{best.name} {rank} {name} ({value})."]
    if corrected := comparison.best_corrected:
        parts.append(f"Corrected for having been chosen, it was {format_estimate(corrected)}.")
    if pairs := pairs_with(comparison.pairs, best.name):
        parts.append(f"Its differences from the other strategies were: {_differences(pairs)}.")
    if pairs := [p for p in comparison.baselines if p.first == best.name]:
        parts.append(f"Its differences from models without a network were: {_differences(pairs)}.")
    labels = comparison.labels[:MAX_LABELS]
    parts += [_describe(comparison.selected[0], label) for label in labels]
    return " ".join(part for part in parts if part)


def _describe(model: SelectedModel, label: str) -> str:
    """The selected model on one label; "" without an evaluation."""
    evaluation = model.label(label)
    scores = [
        f"{METRIC_NAMES[name]} {format_metric(evaluation[name])}"
        for name in SCORES
        if name in evaluation
    ]
    if not scores:
        return ""
    if scaled := scaled_brier(evaluation):
        scores.append(f"scaled Brier score {format_number(scaled['brier_scaled'])}")
    calibration: Mapping[str, Any] = evaluation.get("calibration", {})
    scores += [
        f"calibration {key} {format_metric(calibration[key])}"
        for key in ("slope", "intercept")
        if key in calibration
    ]
    text = f"The model chosen on validation ({model.run.name}) had, for {label}: "
    text += f"{', '.join(scores)}."
    for method, point in model.at_thresholds(label).items():
        rates = [f"{title} {format_metric(point[key])}" for key, title in RATES.items()]
        text += f" At the threshold {format_threshold(point['threshold'])} ({fitted_for(method)} "
        text += f"on validation): {', '.join(rates)}."
    return text


def _differences(pairs: list[Difference]) -> str:
    return "; ".join(
        f"{p.second} {format_number(p.estimate.value, signed=True)} (simultaneous 95 % interval "
        f"{format_range(p.low, p.high)}, adjusted p {format_p(p.p_adjusted)})"
        for p in pairs
    )


def _with_seeds(strategy: StrategyResult) -> str:
    seeds = join_names([str(seed) for seed in strategy.seeds])
    return f"{strategy.name} ({'seed' if len(strategy.seeds) == 1 else 'seeds'} {seeds})"


def _size(records: int, patients: int) -> str:
    return f"{count(records, 'ECG')} of {count(patients, 'patient')}"
