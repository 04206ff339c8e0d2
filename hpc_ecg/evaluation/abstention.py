"""When a model should not be relied on: scores of doubt, cuts from validation, and what they gain.

Which score, and where it is cut, is chosen on validation. On the test set, leaving out as many at
random would on average change nothing (risk and coverage: El-Yaniv & Wiener, JMLR 2010).
"""

# N records, M members of an ensemble, K labels

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.subgroups import score_level
from hpc_ecg.evaluation.thresholds import YOUDEN, apply_operating_point

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
PERCENTS = np.arange(50, 100)
"""Of validation, that may be kept: the largest doubts would be single people's."""
MAX_REPLICATES = 500
SPREADS, DISTANCE = ("probability_spread", "logit_spread"), "distance"


def spreads(logits_NMK: NDArray[Any]) -> dict[str, FloatArray]:
    """How much the members disagree [N]: the mean over labels of their standard deviations."""
    logits = logits_NMK.astype(np.float64)
    values = zip(SPREADS, (expit(logits), logits), strict=True)
    return {name: value.std(axis=1, ddof=1).mean(axis=1) for name, value in values}


def fit_rule(valid: Predictions, doubts: Mapping[str, FloatArray]) -> dict[str, Any]:
    """The score of `doubts` [N] whose kept records have the highest AUROC on validation (mean over
    labels and `COVERAGES`), and its percentiles. {}: no score tells records apart."""
    rules: dict[float, dict[str, Any]] = {}
    for score, doubt_N in doubts.items():
        rule = {"score": score, "percentiles": np.percentile(doubt_N, PERCENTS).tolist()}
        rows = curve_rows(valid, valid.labels, doubt_N, rule, {}, 2)
        known = [row["auroc"]["value"] for row in rows if "auroc" in row]
        if np.ptp(doubt_N) > 0:
            rules.setdefault(float(np.mean(known or [0.5])), rule)
    return rules[max(rules)] if rules else {}


def check_rule(path: Path, content: Mapping[str, Any], members: int) -> dict[str, Any]:
    """The rule in a file. ValueError: none that `fit_rule` gives for so many members."""
    rule: dict[str, Any] = {name: content.get(name) for name in ("score", "percentiles")}
    known, values = SPREADS if members > 1 else (DISTANCE,), rule["percentiles"]
    kinds = [type(value) for value in values] if isinstance(values, list) else []
    is_number = len(kinds) == len(PERCENTS) and set(kinds) <= {int, float}
    if rule["score"] not in known or not is_number or values != sorted(values):
        allowed = f"{' or '.join(known)}, with {len(PERCENTS)} rising percentiles"
        raise ValueError(f"{path} is damaged: its rule of abstention must be {allowed}")
    return rule


def cut_of(rule: Mapping[str, Any], coverage: float) -> float:
    """The largest doubt that is kept at this coverage of validation."""
    return float(np.interp(100 * coverage, PERCENTS, rule["percentiles"]))


def curve_rows(
    test: Predictions,
    labels: Iterable[str],
    doubt_N: FloatArray,
    rule: Mapping[str, Any],
    points: Mapping[str, Mapping[str, Any]],
    replicates: int = MAX_REPLICATES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Performance on the records kept, by label and coverage, with intervals; `points` by label and
    method. `auroc_gain`: minus that of all records, on the same draws of patients."""
    rows = []
    draws = draw_resamples(test.patient_N, min(replicates, MAX_REPLICATES), seed)
    for label in labels:
        k = test.labels.index(label)
        sample = LabelSample.from_predictions(test, k, draws)
        known_N = doubt_N[has_label(test.label_NK[:, k])]
        whole, whole_R = score_level(sample)
        for coverage in COVERAGES:
            kept_N = known_N <= (cut_of(rule, coverage) if coverage < 1 else np.inf)
            if not kept_N.any():
                continue
            part = sample.take(kept_N)
            row, auroc_R = score_level(part)
            row |= {"label": label, "score": rule["score"], "coverage": coverage}
            row["kept"] = float(kept_N.mean())
            if auroc_R is not None and whole_R is not None:
                row |= metric_intervals(part.losses(), part.loss_replicates(), part)
                at = apply_operating_point(part, points[label][YOUDEN]) if points.get(label) else {}
                row |= {name: at[name] for name in ("sensitivity", "ppv") if name in at}
                gain = row["auroc"]["value"] - whole["auroc"]["value"]
                row["auroc_gain"] = bootstrap_interval(gain, auroc_R - whole_R, "difference")
            rows.append(row)
    return rows
