"""How many events validation has, and what fits on it are worth where there are few.

An event is a patient of the rarer outcome: ECGs of one patient are alike, so patients count.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hpc_ecg.evaluation.intervals import TAILS
from hpc_ecg.evaluation.metrics import FloatArray, count_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.reporting.numbers import count

MIN_EVENTS = 10
"""Patients of each outcome that a regression needs: ten events for a slope (Peduzzi et al. 1996).
With fewer, nothing is fitted, and probabilities stay as they are."""
FEW_EVENTS = 50
"""With fewer, fits carry a warning. External validation asks for 100 (Collins et al. 2016)."""


def count_events(labels_N: FloatArray, patient_N: NDArray | None = None) -> dict[str, int]:
    """Positive and negative records and patients; without `patient_N`, each record is a patient."""
    counts = count_label(labels_N, np.arange(len(labels_N)) if patient_N is None else patient_N)
    counts["n_negative"] = counts["n"] - counts["n_positive"]
    names = ("n", "n_positive", "n_negative", "n_positive_patients", "n_negative_patients")
    return {name: counts[name] for name in names}


def events_by_label(predictions: Predictions) -> dict[str, dict[str, int]]:
    """`count_events` of each label; {} for a regression."""
    if predictions.probability_NK is None:
        return {}
    columns = zip(predictions.labels, predictions.label_NK.T, strict=True)
    return {name: count_events(label_N, predictions.patient_N) for name, label_N in columns}


def scarce(counts: dict, below: int = FEW_EVENTS) -> str | None:
    """`8 positive patients`: the rarer outcome, if fewer patients than `below` have it."""
    number, kind = min((counts[f"n_{kind}_patients"], kind) for kind in ("positive", "negative"))
    return count(number, f"{kind} patient") if number < below else None


def check_enough_events(counts: dict, name: str, what: str, where: str = "validation") -> None:
    """ValueError if `where` has fewer than `MIN_EVENTS` patients of an outcome."""
    if few := scarce(counts, MIN_EVENTS):
        each = f"{what} needs {MIN_EVENTS} with each outcome"
        raise ValueError(f"{name}: only {few} in {where}; {each}")


def warn_of_few_events(counts: dict, what: str, where: str = "validation") -> dict[str, str]:
    """`{"warning": …}` where `where` has fewer than `FEW_EVENTS` of an outcome, else {}."""
    few = scarce(counts)
    return {"warning": f"{what} rests on {few} in {where}"} if few else {}


def rate_in_new_patients(share: float, num_patients: int) -> list[float]:
    """The 95 % range of the true sensitivity (or specificity) at a threshold that keeps this share
    of so many patients. What lies beyond an order statistic has a beta distribution, whatever the
    scores (Wilks 1941); a patient with several ECGs counts as one."""
    kept = min(max(round(share * num_patients), 1), num_patients)
    return [float(end) for end in stats.beta.ppf(TAILS, kept, num_patients + 1 - kept)]
