"""Groups of patients side by side, and whether the model ranks some of them better.

Per level: counts, prevalence, mean prediction, AUROC. Interaction: Cochran's Q compares the levels'
AUROCs (chi-square with levels - 1 degrees of freedom) on the logit scale. Variances and covariances
are those of the patient bootstrap, as a patient with ECGs in two levels correlates them. AUROC
needs ten patients of each class; smaller levels give the reason instead of a number.

Measured where levels do not differ (500 cohorts each of 300 and 1,000 patients, two ECGs of each, 5
and 15 % positive): p < 0.05 in 4.4 to 6.0 % for two and for four levels of patients; in 5.0 to 7.4
% where patients have ECGs in several of three levels.
"""

# N records, L levels, R replicates

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from hpc_ecg.evaluation.comparisons import holm
from hpc_ecg.evaluation.intervals import logit
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, auprc, auroc, count_label

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
        value_L, replicate_LR = [], []
        for level in _in_order(group, set(level_N.tolist())):
            row, replicate_R = score_level(sample.take(level_N == level))
            rows.append({"group": group, "level": level} | row)
            if replicate_R is not None and level != UNKNOWN:
                value_L.append(row["auroc"]["value"])
                replicate_LR.append(replicate_R)
        if len(value_L) > 1:
            on_logits = logit(np.array(value_L)), logit(np.stack(replicate_LR))
            p_values[group] = heterogeneity(*on_logits)[1]
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for row in rows:
        row["interaction_p"] = p_values.get(row["group"])
        row["interaction_p_holm"] = adjusted.get(row["group"])
    return rows


def heterogeneity(value_L: FloatArray, replicate_LR: FloatArray) -> tuple[float, float]:
    """Q and its p: the differences of the levels to the first, weighted by their covariance over
    replicates. For independent levels this is Cochran's Q with inverse-variance weights."""
    usable_R = np.isfinite(replicate_LR).all(axis=0)
    difference_KR = (replicate_LR[1:] - replicate_LR[:1])[:, usable_R]
    difference_K = value_L[1:] - value_L[0]
    precision_KK = np.linalg.pinv(np.atleast_2d(np.cov(difference_KR)))
    q = float(difference_K @ precision_KK @ difference_K)
    return q, float(stats.chi2.sf(q, len(difference_K)))


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
    labels_N, logits_N = part.labels_N, part.logits_N
    values = {"auroc": auroc(labels_N, logits_N), "auprc": auprc(labels_N, logits_N)}
    return result | metric_intervals(values, part.ranking_replicates(), part)


def _in_order(group: str, levels: set[str]) -> list[str]:
    """Age bands by age, other levels by name, unknown ones last."""
    bands = [band for band in AGE_BANDS if group == "age" and band in levels]
    unknown = [UNKNOWN] if UNKNOWN in levels else []
    return [*bands, *sorted(levels - {*bands, UNKNOWN}), *unknown]


def score_level(part: LabelSample) -> tuple[dict, FloatArray | None]:
    counts = count_label(part.labels_N, part.patient_N)
    row = {name: counts[name] for name in ("n", "n_positive", "n_patients", "prevalence")}
    row["mean_prediction"] = float(part.probabilities_N.mean())
    for kind in ("positive", "negative"):
        if counts[f"n_{kind}_patients"] < MIN_PATIENTS:
            return row | {"reason": f"fewer than {MIN_PATIENTS} {kind} patients"}, None
    if np.ptp(part.logits_N) == 0:
        return row | {"reason": "all predictions are the same"}, None
    value, value_R = auroc(part.labels_N, part.logits_N), part.ranking_replicates()["auroc"]
    return row | metric_intervals({"auroc": value}, {"auroc": value_R}, part), value_R
