"""What a reader must know before believing a number, in plain words."""

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.evaluation.intervals import FEW_PATIENTS
from hpc_ecg.reporting.numbers import join_names


def warnings_of(comparison: Comparison) -> list[str]:
    parts = (_worse_than_the_mean, _few_patients, _few_seeds, _what_is_missing)
    return [text for part in parts for text in part(comparison)]


def _worse_than_the_mean(comparison: Comparison) -> list[str]:
    names = [s.name for s in comparison.strategies if s.estimates[comparison.metric].value < 0]
    if comparison.metric != "r2" or not names:
        return []
    return [
        f"R² is below 0 for {_whom(names, comparison)}: the mean of all labels predicts better. "
        "Train longer, or on labels brought to mean 0 and spread 1."
    ]


def _few_patients(comparison: Comparison) -> list[str]:
    if comparison.task == "regression":
        return []
    texts = []
    for label, counts in comparison.counts.items():
        for kind in ("positive", "negative"):
            number = counts[f"n_{kind}_patients"]
            if number < FEW_PATIENTS:
                noun = "patient" if number == 1 else "patients"
                texts.append(
                    f"{label} has only {number} {kind} {noun} in the test set: "
                    "intervals are wide, and p-values rough."
                )
    return texts


def _few_seeds(comparison: Comparison) -> list[str]:
    texts = []
    single = [s.name for s in comparison.strategies if len(s.seeds) == 1]
    if single:
        texts.append(
            f"One seed only for {_whom(single, comparison)}: these intervals hold the chance of "
            "the test patients, not that of training. Run more seeds."
        )
    double = [s.name for s in comparison.strategies if len(s.seeds) == 2]
    if double:
        texts.append(
            f"Two seeds only for {_whom(double, comparison)}: where training is noisy, such a test "
            "finds a difference that is none in up to 1 of 10 cases."
        )
    if len({tuple(s.seeds) for s in comparison.strategies}) > 1:
        texts.append("Strategies have different seeds; a difference uses the seeds of both.")
    return texts


def _what_is_missing(comparison: Comparison) -> list[str]:
    texts = []
    if comparison.problems:
        total = len(comparison.problems) + len(comparison.cells)
        texts.append(f"Left out (listed below): {len(comparison.problems)} of {total} cells.")
    for label, reason in comparison.not_scored.items():
        texts.append(f"{label} is not scored: {reason}.")
    if not any(reference.kind == "baseline" for reference in comparison.reference_models):
        texts.append(
            "No baseline stands beside the networks: whether they beat age and sex, or the "
            "irregularity of the heartbeat alone, is not known."
        )
    return texts


def _whom(names: list[str], comparison: Comparison) -> str:
    everybody = len(names) == len(comparison.strategies) > 2
    return "all strategies" if everybody else join_names(names)
