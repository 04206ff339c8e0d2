"""Groups of patients side by side, and whether the model ranks some of them better.

Per level: counts, prevalence, mean prediction, AUROC. Interaction: Cochran's Q compares the levels'
AUROCs (`heterogeneity`). Correlations are those of the patient bootstrap, as a patient with ECGs in
two levels correlates them. AUROC needs ten patients of each class; smaller levels give the reason
instead of a number.

Measured where levels do not differ (tools/coverage_tables.py interaction: 1,000 cohorts a case of
300 and 1,000 patients, 30 % positive, two and three levels of 15 to 85 %), p < 0.05 in: AUROC 0.7
4.0–6.5 %, 0.9 2.2–7.0, 0.98 0.2–6.2, 0.995 0–0.6. Where it ends: near 1 with few misranked patients
it finds only large differences.
"""

# N records, L levels, R replicates

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from hpc_ecg.evaluation.comparisons import holm
from hpc_ecg.evaluation.intervals import EDGE, effective_cases
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, count_label

MIN_PATIENTS = 10
MAX_LEVELS = 8
UNKNOWN = "not known"
AGE_BANDS = {"< 50": 50.0, "50–64": 65.0, "65–79": 80.0, "≥ 80": np.inf}
FIRST_GROUPS = ("age", "sex", "site")


def subgroup_levels(groups: dict[str, NDArray]) -> dict[str, NDArray]:
    """By group: each record's level as text. Age in bands, sex, site, and any other column of text
    with 2 to 8 levels; an empty cell is `not known`."""
    order = {name: place for place, name in enumerate(FIRST_GROUPS)}
    levels = {}
    for name in sorted(groups, key=lambda name: (order.get(name, len(order)), name)):
        values_N = groups[name]
        if name == "age":
            band_N = np.searchsorted(list(AGE_BANDS.values()), values_N, side="right")
            level_N = np.array([*AGE_BANDS, UNKNOWN], dtype=object)[band_N]
        elif values_N.dtype.kind == "f" or name == "time":
            continue
        else:
            level_N = np.where(values_N == "", UNKNOWN, values_N).astype(object)
        known = set(level_N.tolist()) - {UNKNOWN}
        if len(known) >= 2 and (len(known) <= MAX_LEVELS or name in FIRST_GROUPS):
            levels[name] = level_N
    return levels


def score_subgroups(sample: LabelSample) -> list[dict]:
    """A row for each level of each group: counts, and `auroc` or the `reason` why there is none;
    `interaction_p` is that of its group, `interaction_p_holm` corrected over the groups."""
    rows, p_values = [], {}
    for group, level_N in subgroup_levels(sample.groups).items():
        value_L, replicate_LR, num_L = [], [], []
        for level in _in_order(group, set(level_N.tolist())):
            part = sample.take(level_N == level)
            row, replicate_R = score_level(part)
            rows.append({"group": group, "level": level} | row)
            if replicate_R is not None and level != UNKNOWN:
                value_L.append(row["auroc"]["value"])
                replicate_LR.append(replicate_R)
                num_L.append(part.patients_in_smaller_class())
        if len(value_L) > 1:
            levels = np.array(value_L), np.stack(replicate_LR), np.array(num_L)
            p_values[group] = heterogeneity(*levels)[1]
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for row in rows:
        row["interaction_p"] = p_values.get(row["group"])
        row["interaction_p_holm"] = adjusted.get(row["group"])
    return rows


def heterogeneity(
    value_L: FloatArray, replicate_LR: FloatArray, num_patients_L: NDArray
) -> tuple[float, float]:
    """Q and its p: the differences of the levels to the first, weighted by their covariance; for
    independent levels, Cochran's Q with inverse-variance weights.

    As in a score test, variances are those under the hypothesis of one AUROC A: A (1 - A) / m, with
    each level's `effective_cases` m, which are bounded near 1. Correlations are those of the
    replicates; Q has an F distribution with Satterthwaite's degrees of freedom (1946).
    `num_patients_L` are the patients of each level's smaller class.
    """
    usable_LR = replicate_LR[:, np.isfinite(replicate_LR).all(axis=0)]
    error_L = usable_LR.std(axis=1, ddof=1) * np.sqrt(num_patients_L / (num_patients_L - 1))
    levels = zip(value_L, error_L**2, num_patients_L, strict=True)
    cases_L = np.array([effective_cases(*level) for level in levels])
    common = float(np.average(value_L, weights=cases_L))
    error_L = np.sqrt(max(common * (1 - common), EDGE**2) / cases_L)
    scale_L1 = (error_L / np.maximum(usable_LR.std(axis=1, ddof=1), 1e-12))[:, None]
    covariance_LL = np.cov(scale_L1 * (usable_LR - usable_LR.mean(axis=1, keepdims=True)))
    np.fill_diagonal(covariance_LL, error_L**2)
    contrast_KL = np.eye(len(value_L))[1:] - np.eye(len(value_L))[0]
    covariance_KK = contrast_KL @ covariance_LL @ contrast_KL.T
    q = float(contrast_KL @ value_L @ np.linalg.pinv(covariance_KK) @ contrast_KL @ value_L)
    freedom = float((error_L**2).sum() ** 2 / (error_L**4 / (num_patients_L - 1)).sum())
    return q, float(stats.f.sf(q / len(contrast_KL), len(contrast_KL), freedom))


def one_ecg_per_patient(sample: LabelSample) -> dict:
    """AUROC and AUPRC on each patient's first ECG that has the label: by time where every record
    has one, else by the record's name."""
    times = pd.Series(sample.groups.get("time", []), dtype=object)
    time_N = pd.to_datetime(times, format="ISO8601", errors="coerce", utc=True)
    by_time = len(time_N) > 0 and bool(time_N.notna().all())
    name_N = sample.record_N.astype(str)
    order_N = np.lexsort((name_N, time_N) if by_time else (name_N,))
    first = order_N[np.unique(sample.patient_N[order_N], return_index=True)[1]]
    part = sample.take(np.sort(first))
    result = {"chosen_by": "time" if by_time else "record", "n": len(part)}
    result["n_positive"] = int(part.labels_N.sum())
    if result["n_positive"] in (0, len(part)) or np.ptp(part.logits_N) == 0:
        return result | {"reason": "one class, or one prediction, only"}
    return result | metric_intervals(part.rankings(), part.ranking_replicates(), part)


def _in_order(group: str, levels: set[str]) -> list[str]:
    """Age bands by age, other levels by name, unknown ones last."""
    bands = [band for band in AGE_BANDS if group == "age" and band in levels]
    unknown = [UNKNOWN] if UNKNOWN in levels else []
    return [*bands, *sorted(levels - {*bands, UNKNOWN}), *unknown]


def score_level(part: LabelSample) -> tuple[dict, FloatArray | None]:
    counts = count_label(part.labels_N, part.patient_N, part.weights_N)
    row = {name: counts[name] for name in ("n", "n_positive", "n_patients", "prevalence")}
    row["mean_prediction"] = float(np.average(part.probabilities_N, weights=part.weights_N))
    for kind in ("positive", "negative"):
        if counts[f"n_{kind}_patients"] < MIN_PATIENTS:
            return row | {"reason": f"fewer than {MIN_PATIENTS} {kind} patients"}, None
    if np.ptp(part.logits_N) == 0:
        return row | {"reason": "all predictions are the same"}, None
    value, value_R = part.rankings()["auroc"], part.ranking_replicates()["auroc"]
    return row | metric_intervals({"auroc": value}, {"auroc": value_R}, part), value_R
