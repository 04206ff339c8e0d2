"""Membership inference: can somebody who has a patient's ECGs tell that the model was trained on
them? Two attacks by patient, on the model's outputs alone.

`loss` takes a lower loss for a member (Yeom et al. 2018). `calibrated` takes the margin of a
patient's logits relative to those of known non-members with the same label, in their standard
deviations: how sure the model is where it should be less sure. It needs no shadow models; half of
the non-members, by a hash, are its reference and are left out of the test (as the reference in
offline attacks, Carlini et al. 2022). What counts is the share of members that are found at a small
false-positive rate, not the mean (ibid.).
"""

# N records, P patients, R replicates

import hashlib

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.evaluation.metrics import FloatArray, has_label

FALSE_POSITIVE_RATES = (0.001, 0.01)
ATTACKS = ("loss", "calibrated")
REPLICATES = 2000
MIN_PATIENTS = 20
"""Fewer members, non-members or references say nothing."""


def membership(
    label_N: FloatArray,
    logit_N: FloatArray,
    patient_N: NDArray,
    is_member_N: NDArray[np.bool_],
    seed: int = 0,
) -> dict:
    """For each attack: the AUROC, and the share of members found at each false-positive rate, with
    95 % intervals (patients resampled, members and others apart). Records without label count not.

    A rate below one in the number of non-members cannot be measured; its entry says so. ValueError:
    fewer than MIN_PATIENTS members, non-members or references.
    """
    keep_N = has_label(label_N)
    label_N, logit_N = label_N[keep_N], logit_N[keep_N].astype(np.float64)
    patient_N, is_member_N = patient_N[keep_N], is_member_N[keep_N]
    names_P, patient_N = np.unique(patient_N, return_inverse=True)
    is_member_P = _mean_by(patient_N, is_member_N.astype(np.float64)) > 0.5
    digests = [hashlib.sha256(f"audit {name}".encode()).digest() for name in names_P]
    is_reference_P = ~is_member_P & np.array([digest[0] % 2 == 0 for digest in digests])
    is_tested_P = ~is_member_P & ~is_reference_P
    groups = {"members": is_member_P, "non-members": is_tested_P, "references": is_reference_P}
    for name, is_in_P in groups.items():
        if is_in_P.sum() < MIN_PATIENTS:
            raise ValueError(
                f"the audit needs at least {MIN_PATIENTS} patients each that the model was trained "
                f"on, was not, and that calibrate the attack; {name}: {int(is_in_P.sum())}"
            )
    margin_N = (2 * label_N - 1) * logit_N
    scores = {"loss": -np.logaddexp(0, -margin_N)}
    calibrated_N = np.zeros(len(margin_N))
    for value in (0, 1):
        known_N = margin_N[is_reference_P[patient_N] & (label_N == value)]
        spread = float(known_N.std()) if len(known_N) > 1 else 0.0
        centre = float(known_N.mean()) if len(known_N) else 0.0
        is_in_N = label_N == value
        calibrated_N[is_in_N] = (margin_N[is_in_N] - centre) / (spread or 1.0)
    scores["calibrated"] = calibrated_N
    rng = np.random.default_rng(seed)
    result: dict = {name.replace("-", "_"): int(is_in.sum()) for name, is_in in groups.items()}
    for attack, score_N in scores.items():
        score_P = _mean_by(patient_N, score_N)
        result[attack] = _measure(score_P[is_member_P], score_P[is_tested_P], rng)
    return result


def _mean_by(patient_N: NDArray, value_N: FloatArray) -> FloatArray:
    return np.bincount(patient_N, value_N) / np.bincount(patient_N)


def _measure(members: FloatArray, others: FloatArray, rng: np.random.Generator) -> dict:
    rates = {rate: rate * len(others) >= 1 for rate in FALSE_POSITIVE_RATES}
    found = _found(members, others)
    drawn = [
        _found(rng.choice(members, len(members)), rng.choice(others, len(others)))
        for _ in range(REPLICATES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    result: dict = {"auroc": _interval(found, low, high, 0), "found_at": {}}
    for place, (rate, can_be_measured) in enumerate(rates.items(), 1):
        text = f"needs {round(1 / rate)} non-members, there are {len(others)}"
        entry = _interval(found, low, high, place) if can_be_measured else {"not_measured": text}
        result["found_at"][f"{rate:g}"] = entry
    return result


def _found(members: FloatArray, others: FloatArray) -> list[float]:
    """The AUROC, then the share of members above each quantile of the others."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    shares = []
    for rate in FALSE_POSITIVE_RATES:
        allowed = int(rate * len(others))  # non-members that may be above the threshold
        shares.append(float((members > ordered[len(ordered) - 1 - allowed]).mean()))
    return [float(below.mean()) / (2 * len(others)), *shares]


def _interval(found: list[float], low: NDArray, high: NDArray, place: int) -> dict[str, float]:
    return {"value": found[place], "low": float(low[place]), "high": float(high[place])}
