"""Warnings that a reader needs before believing a number."""

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.evaluation.events import rate_in_new_patients, scarce
from hpc_ecg.evaluation.intervals import FEW_PATIENTS
from hpc_ecg.evaluation.metrics import is_weighted
from hpc_ecg.reporting.numbers import count, format_percent, join_names
from hpc_ecg.sweep.folder import ONE_RUN


def collect_warnings(comparison: Comparison) -> list[str]:
    checks = (_worse_than_the_mean, _few_patients, _few_events, _few_seeds, _left_out, _weighted)
    return [text for check in checks for text in check(comparison)]


def _worse_than_the_mean(comparison: Comparison) -> list[str]:
    names = [s.name for s in comparison.strategies if s.estimates[comparison.metric].value < 0]
    if comparison.metric != "r2" or not names:
        return []
    return [
        f"R² is below 0 for {_join(names, comparison)}: the mean of all labels predicts better. "
        "Train longer, or standardize the labels to mean 0 and standard deviation 1."
    ]


def _few_patients(comparison: Comparison) -> list[str]:
    if comparison.task == "regression":
        return []
    rough = ", and p-values are rough" if comparison.pairs else ""
    return [
        f"{label} has only {few} in the test set: intervals are wide{rough}."
        for label, counts in comparison.counts.items()
        if (few := scarce(counts, FEW_PATIENTS))
    ]


def _few_events(comparison: Comparison) -> list[str]:
    texts = []
    for label in comparison.labels:
        counts = comparison.validation.get(label, {})
        if counts.get("n_positive") and (few := scarce(counts)):
            low, high = rate_in_new_patients(0.9, counts["n_positive_patients"])
            seed = " and the selected seed" * (len(comparison.runs) > 1)
            texts.append(
                f"{label} has only {few} in validation: thresholds, calibration, the best step"
                f"{seed} rest on them. A threshold that flags 90 % of its positives has "
                f"a sensitivity of {format_percent(low)} to {format_percent(high)} in new patients."
            )
    return texts


def _few_seeds(comparison: Comparison) -> list[str]:
    texts, fixed = [], {run.strategy for run in comparison.runs if run.is_fixed}
    texts += [f"{name}: {ONE_RUN}." for name in sorted(fixed)]
    for s in comparison.strategies:
        values = list(s.per_seed[comparison.metric].values())
        if len(values) > 1 and len(set(values)) == 1:
            texts.append(f"All seeds of {s.name} gave the same result: they count as one run.")
    varied = [s for s in comparison.strategies if s.name not in fixed]
    if single := [s.name for s in varied if len(s.seeds) == 1]:
        texts.append(
            f"Only one seed for {_join(single, comparison)}: these intervals cover the chance of "
            "the test patients, not that of training. Run more seeds."
        )
    if double := [s.name for s in comparison.strategies if len(s.seeds) == 2]:
        risk = "where training is noisy, up to 1 in 10 such tests finds one that does not exist"
        if len(comparison.competing) > 2 and all(len(s.seeds) == 2 for s in comparison.competing):
            risk = "only a very large one could be found among more than two strategies"
        texts.append(
            f"Only two seeds for {_join(double, comparison)}: too few to judge a difference; "
            f"{risk}."
        )
    if len({tuple(s.seeds) for s in varied}) > 1:
        texts.append(
            "Strategies have different seeds: their means are compared, not paired by seed."
        )
    return texts


def _left_out(comparison: Comparison) -> list[str]:
    texts = []
    if comparison.problems:
        total = count(len(comparison.problems) + len(comparison.runs), "run")
        texts.append(f"Left out (listed below): {len(comparison.problems)} of {total}.")
    texts += [f"{label} is not scored: {why}." for label, why in comparison.not_scored.items()]
    if not any(model.kind == "baseline" for model in comparison.reference_models):
        texts.append(
            "There is no baseline: whether the networks beat age and sex, the irregularity of the "
            "heartbeat, or classical measurements of the ECG, is not known."
            + " The report of a sweep has them."
            * (len(comparison.runs) == 1)
        )
    return texts


def _weighted(comparison: Comparison) -> list[str]:
    test = comparison.runs[0].test
    weighted = [name for k, name in enumerate(test.labels) if is_weighted(test.weights(k))]
    return [
        f"{name}: all values are weighted against censoring (ipcw.{name}); DeLong's test takes no "
        "weights and is left out, the bootstrap of patients stands for it."
        for name in weighted
    ]


def _join(names: list[str], comparison: Comparison) -> str:
    are_all = len(names) == len(comparison.strategies) > 2
    return "all strategies" if are_all else join_names(names)
