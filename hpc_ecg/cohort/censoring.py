"""Inverse-probability-of-censoring weights (IPCW; Robins & Rotnitzky 1992): a labelled ECG also
stands for those like it whose follow-up ended too early.

If its label was settled at time T (by the event, or by the end of the window), it weighs 1 / G(T),
where G(t) is the probability of not being censored before t; a censored ECG weighs 0. G is the
Kaplan–Meier curve of censoring, or follows a logistic model of it in each of 20 intervals (Efron
1988), given columns of the table. It is fitted on training patients alone. Weights are cut at
`MAX_WEIGHT`, then divided by the mean of those of the training ECGs that have a label.
"""

# N ECGs, J times of censoring or intervals, F columns of the model

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

from hpc_ecg.cohort.splits import Fractions, SplitPlan, split_as_given, split_by_hash
from hpc_ecg.cohort.table import check_columns
from hpc_ecg.reporting.numbers import count

MAX_WEIGHT = 20.0
"""Of an ECG with a probability of 0.05 or less to be followed for as long."""
INTERVALS = 20
MAX_LEVELS = 20


@dataclass(frozen=True, kw_only=True)
class WeightPlan:
    """Columns that censoring depends on, and who trains: as in `SplitPlan`, or by a column."""

    censoring_model: str = ""
    split: str | None = None
    fractions: Fractions = SplitPlan.fractions
    split_seed: int = SplitPlan.seed


def weigh(
    labelled: pd.DataFrame, given: pd.DataFrame, patients: pd.Series, plan: WeightPlan, path: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """The weight of each row of `labelled`, and how the weights were made (for .flow.json).

    `labelled` has `label` (NaN if censored) and `exit_days`, when the label was settled or the ECG
    was censored; `given` (columns as text) and `patients` are of the same table, which `path`
    names. ValueError: a column that is missing or has too many values, or no training ECG.
    """
    names = plan.censoring_model.split(",") if plan.censoring_model else []
    check_columns(given, [*names, *([plan.split] if plan.split else [])], path)
    given, patients = given.loc[labelled.index], patients.loc[labelled.index]
    policy: dict[str, Any] = {"fractions": list(plan.fractions), "seed": plan.split_seed}
    if plan.split is None:  # policies as `Assignment.policy` has them
        splits = split_by_hash(patients, plan.fractions, plan.split_seed)
        policy |= {"hash_of": "patient"}
    else:
        splits, policy = split_as_given(given[plan.split], plan.split), {"column": plan.split}
    time_N, is_censored_N = labelled["exit_days"].to_numpy(), labelled["label"].isna().to_numpy()
    is_train_N = np.array(splits) == "train"
    if not (is_train_N & ~is_censored_N).any():
        raise ValueError("--censored ipcw: no training ECG has a label; the weights need some")
    if names and is_censored_N[is_train_N].any():
        x_NF = _design(given[names], is_train_N)
        followed_N = logistic_probabilities(time_N, is_censored_N, x_NF, is_train_N)
    else:
        curve = censoring_curve(time_N[is_train_N], is_censored_N[is_train_N])
        followed_N = probability_before(time_N, *curve)
    weight_N = np.where(is_censored_N, 0, 1 / np.maximum(followed_N, 1 / MAX_WEIGHT))
    mean = float(weight_N[is_train_N & ~is_censored_N].mean())
    return (weight_N / mean).round(6), {
        "model": names or "Kaplan–Meier",
        "split": policy,
        "training_ecgs": int(is_train_N.sum()),
        "cut": int((~is_censored_N & (followed_N * MAX_WEIGHT < 1)).sum()),
        "cut_at": MAX_WEIGHT,
        "divided_by": mean,
    }


def censoring_curve(time_N: np.ndarray, is_censored_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan & Meier 1958 for censoring: its distinct times [J], and the probability of going on
    uncensored after each [J]. A label that is settled at the time of a censoring comes first."""
    time_J, lost_J = np.unique(time_N[is_censored_N], return_counts=True)
    settled_J = np.searchsorted(np.sort(time_N[~is_censored_N]), time_J, "right")
    at_risk_J = len(time_N) - settled_J - (np.cumsum(lost_J) - lost_J)
    return time_J, np.cumprod(1 - lost_J / at_risk_J)


def probability_before(time_N: np.ndarray, time_J: np.ndarray, curve_J: np.ndarray) -> np.ndarray:
    """The probability of no censoring before each time [N]."""
    return np.r_[1.0, curve_J][np.searchsorted(time_J, time_N, "left")]


def logistic_probabilities(
    time_N: np.ndarray, is_censored_N: np.ndarray, x_NF: np.ndarray, is_train_N: np.ndarray
) -> np.ndarray:
    """The probability [N] of no censoring before each time, given `x_NF`. The odds of censoring in
    an interval have a factor per interval and one per column; an ECG whose label is settled within
    an interval counts for the part of it that had passed."""
    inner = np.quantile(time_N[is_train_N & is_censored_N], np.arange(1, INTERVALS) / INTERVALS)
    edges = np.unique(np.r_[0.0, inner, time_N.max()])
    passed_NJ = np.clip((time_N[:, None] - edges[:-1]) / np.diff(edges), 0, 1)
    is_lost_NJ = (edges[:-1] < time_N[:, None]) & (time_N[:, None] <= edges[1:])
    is_lost_NJ[time_N <= 0, 0] = True
    is_lost_NJ &= is_censored_N[:, None]
    row, interval = np.nonzero((is_lost_NJ | (passed_NJ > 0)) & is_train_N[:, None])
    x = np.concatenate([np.eye(len(edges) - 1)[interval], x_NF[row]], axis=1)
    exposure = np.where(is_lost_NJ, 1.0, passed_NJ)[row, interval]
    fit = LogisticRegression(C=100, fit_intercept=False, solver="newton-cholesky", max_iter=200)
    fit.fit(x, is_lost_NJ[row, interval], exposure)
    by_interval_J, by_column_F = np.split(fit.coef_[0], [len(edges) - 1])
    kept_NJ = log_expit(-(by_interval_J + (x_NF @ by_column_F)[:, None]))
    return np.asarray(np.exp((kept_NJ * passed_NJ).sum(axis=1)))


def _design(table: pd.DataFrame, is_train_N: np.ndarray) -> np.ndarray:
    """[N, F]: a number standardized within ± 4 SD, its square, and whether it is missing; text as
    a column for each value that training patients have, but the commonest."""
    columns: list[Any] = [np.zeros(len(table))]
    for name in table:
        text = table[name].str.strip()
        number = pd.to_numeric(text, errors="coerce")
        known, levels = number[is_train_N], text[is_train_N].value_counts().index
        if (number.notna() == (text != "")).all() and known.nunique() > 1:
            x = ((number.fillna(known.median()) - known.mean()) / known.std()).clip(-4, 4)
            columns += [x, x**2, number.isna()]
            continue
        if len(levels) > MAX_LEVELS:
            values = f"{len(levels)} values that are not all numbers"
            raise ValueError(f"--censoring-model {name}: {values}; group them into {MAX_LEVELS}")
        columns += [text == level for level in levels[1:]]
    return np.stack(columns, axis=1).astype(float)


def censoring_of(flow: dict[str, Any], label: str) -> dict[str, Any] | None:
    """How many ECGs were censored in the flow of a cohort (.flow.json), and what was done about it;
    None for a cohort without censoring."""
    rule = flow["rules"]["censored"]
    counts = [*flow["flow"]["left_out"], *flow["flow"]["labels"]]
    ecgs = sum(count["ecgs"] for count in counts if "censored:" in count["text"])
    about = {"rule": rule, "label": label, "ecgs": ecgs, "weights": flow.get("weights")}
    return about if rule and ecgs else None


def read_censoring(
    table: Path, label_names: list[str], policy: dict[str, Any]
) -> dict[str, Any] | None:
    """`censoring_of` a table that `hpc-ecg cohort` wrote, from the .flow.json beside it; None
    without that file, and for another table or label. ValueError: weights that were fitted on other
    training patients than this `policy` of splits gives."""
    try:
        flow = json.loads(table.with_suffix(".flow.json").read_text())
        label = flow["sources"]["label"]
        if flow["table"]["file"] != table.name or label not in label_names:
            return None
        censoring = censoring_of(flow, label)
        fitted_on = censoring and censoring["weights"] and censoring["weights"]["split"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if fitted_on and fitted_on != policy:
        raise ValueError(
            f"{table}: ipcw.{label} was fitted on the training patients of {fitted_on}, but the "
            f"shards would be split by {policy}; give hpc-ecg cohort the same --split, --fractions "
            "and --split-seed (for any other way to split: a column, with --split in both)"
        )
    return censoring


def describe_censoring(censoring: dict[str, Any] | None) -> str:
    """A sentence for flow, report and card; "" where nothing was censored."""
    if not censoring:
        return ""
    ecgs, weights = f"{censoring['label']}: {count(censoring['ecgs'], 'ECG')}", censoring["weights"]
    if weights:
        model = weights["model"]
        how = f"{model}, which takes it for independent of risk"
        if not isinstance(model, str):
            how = f"a logistic model on {', '.join(model)}"
        return (
            f"{ecgs} censored before the end of the window; those with a label are weighted for "
            "them by the inverse probability of being followed for as long "
            f"({how}; fitted on training patients; {weights['cut']:,} cut at {weights['cut_at']:g})"
        )
    done = "left out" if censoring["rule"] == "exclude" else "without a label"
    return (
        f"{ecgs} {done} because follow-up ended too early, and no weights make up for them: events "
        "are over-represented, so O/E and calibration are biased, and AUROC as well if censoring "
        "depends on risk (hpc-ecg cohort --censored ipcw)"
    )
