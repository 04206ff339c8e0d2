"""A network's logit and clinical covariates in one logistic model per label, and what they add.

A covariate is a number or has up to `MAX_LEVELS` levels (text, or two numbers such as 0 and 1). A
record that lacks one, or has what validation did not know, has no combined risk and is left out of
fit and scores; nothing is filled in. Ridge with the prior of Platt calibration: coefficients per SD
have variance 1, the logit's too. Intervals of coefficients: patients drawn, fitted again. A gain is
over the logit alone and over the covariates alone, each fitted likewise, so it is no calibration.

How well intervals and gains hold: docs/how-to/clinical-data.md (tools/simulate_covariates.py).
"""

# N records, F columns, R replicates, T thresholds

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from hpc_ecg.cohort.table import EMPTY_CELL
from hpc_ecg.ecg.age_sex import spell_sex
from hpc_ecg.evaluation.comparisons import estimate_mean
from hpc_ecg.evaluation.events import FEW_EVENTS, check_enough_events, count_events, scarce
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.reliability import recalibration
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.evaluation.subgroups import MAX_LEVELS

LOGIT = "logit of the network"
MODELS = {"network": slice(0, 1), "covariates": slice(1, None), "combined": slice(None)}
COMBINE, FOLDS, REPLICATES, REFITS = "combine.json", 5, 2000, 500
MOST_MISSING = 0.2  # of validation
FAR = 10  # SDs from validation's mean: a mistake, or another unit
PER_COEFFICIENT = 10  # patients of the rarer outcome (Peduzzi et al. 1996)


def learn_covariate(name: str, values: Any) -> dict[str, Any]:
    """How a column of validation becomes numbers: `name`, and `levels` (the first one is the
    reference) or `mean` and `sd`. ValueError: one value, too many levels, or too many missing."""
    cells = _cells(values)
    known = cells[cells != ""]
    numbers = pd.to_numeric(known, errors="coerce")
    levels = sorted(known.unique(), key=lambda level: (-(known == level).sum(), level))
    if (share := 1 - len(known) / len(cells)) > MOST_MISSING:
        why = f"is missing in {share:.0%} of validation, allowed are {MOST_MISSING:.0%}"
    elif len(levels) < 2:
        why = "has one value in all of validation"
    elif len(levels) > 2 and numbers.notna().all():
        return {"name": name, "mean": float(numbers.mean()), "sd": float(numbers.std())}
    elif len(levels) <= MAX_LEVELS:
        return {"name": name, "levels": levels}
    else:
        why = f"has {len(levels)} values that are not all numbers, allowed are {MAX_LEVELS}"
    raise ValueError(f"--covariates: {name} {why}; leave it out, or change the shards' table")


def encode(covariates: Sequence[dict], values: Mapping[str, Any]) -> tuple[pd.DataFrame, Any]:
    """Columns [N, F], and why a record has none [N], or ''. `values`: cells by covariate."""
    columns: dict[str, Any] = {}
    why_N = np.array("")
    for c in covariates:
        name, cells_N = c["name"], _cells(values[c["name"]])
        if levels := c.get("levels"):
            if name == "sex":  # one cohort writes F, another one female
                spelled = pd.Series({spell_sex(level): level for level in levels})
                cells_N = cells_N.map(spell_sex).map(spelled).fillna(cells_N)
            is_known_N, known = cells_N.isin(levels), f"known are {', '.join(levels)}"
            columns |= {f"{name} {level}": cells_N == level for level in levels[1:]}
        else:
            columns[name] = pd.to_numeric(cells_N, errors="coerce")
            is_known_N = (columns[name] - c["mean"]).abs() <= FAR * c["sd"]
            known = f"expected is a number near {c['mean']:.3g} (SD {c['sd']:.3g})"
        wrong_N = np.where(cells_N == "", f"{name} is missing", f"{name}: {known}")
        why_N = np.where((why_N == "") & ~is_known_N, wrong_N, why_N)
    return pd.DataFrame(columns, dtype=np.float64), why_N


def add_combined(table: pd.DataFrame, facts: Sequence[tuple], combined: dict[str, Any]) -> None:
    """Add to a table of risks `L_combined_probability`, from `L_logit` and each row's cells of
    covariates (() if there are none), and `combined_reason`: why a predicted row has none."""
    names = [covariate["name"] for covariate in combined["covariates"]]
    cells = zip(*[row or ("",) * len(names) for row in facts], strict=True)
    x_NF, why_N = encode(combined["covariates"], dict(zip(names, cells, strict=True)))
    why_N = np.where([bool(row) for row in facts], why_N, f"no columns {', '.join(names)}")
    for label in [name for name in combined["labels"] if f"{name}_logit" in table]:
        fit, x_NC = combined["labels"][label], np.c_[table[f"{label}_logit"], x_NF]
        terms = pd.json_normalize(fit["terms"])[["mean", "sd", "per_sd.value"]]
        mean_C, sd_C, b_C = terms.to_numpy().T
        risk_N = expit(fit["intercept"] + (x_NC - mean_C) / sd_C @ b_C)
        table[f"{label}_combined_probability"] = np.where(why_N == "", risk_N, np.nan)
    table["combined_reason"] = np.where(table["reason"] == "", why_N, "")


def combine_label(
    splits: Sequence[Predictions], k: int, covariates: Sequence[dict], thresholds: Mapping
) -> dict[str, Any]:
    """Fit label k on the first split, validation, whose scores are cross-fitted; a second one, the
    test, has those of the fit. `thresholds`: the network's, by method. ValueError: too few events,
    or a split without scores."""
    sample, x_NF = _known(splits[0], k, covariates)
    counts = count_events(sample.labels_N, sample.patient_N)
    few = sample.patients_in_smaller_class()
    where = "validation (data shard --fractions sets its size)"
    check_enough_events(counts, splits[0].labels[k], "combining with covariates", where)
    mean_F, sd_F = x_NF.mean().to_numpy(), x_NF.std(ddof=0).replace(0, 1).to_numpy()
    z_NF, y_N, w_N = (x_NF.to_numpy() - mean_F) / sd_F, sample.labels_N, sample.weights_N
    fits = {name: _fit(z_NF[:, part], y_N, w_N) for name, part in MODELS.items()}
    # the price of a false alarm is that of the calibrated risk at which the network flags
    z_T = (logit([*thresholds.values()]) - mean_F[0]) / sd_F[0]
    risk_T = expit(fits["network"][0] + z_T * fits["network"][1])
    risk_at = dict(zip(thresholds, risk_T.tolist(), strict=True))
    logits = {name: np.empty(len(sample)) for name in MODELS}
    folds = StratifiedGroupKFold(max(2, min(FOLDS, few))).split(z_NF, y_N, sample.patient_N)
    for (some, rest), (name, part) in product(folds, MODELS.items()):
        b_F = _fit(z_NF[some, part], y_N[some], w_N[some])
        logits[name][rest] = b_F[0] + z_NF[rest, part] @ b_F[1:]
    scores = _compare("validation", sample, logits, risk_at)
    draws = (draw_P[sample.patient_N] * w_N for draw_P in sample.multiplicity_RP[:REFITS])
    b_RF = np.array([_fit(z_NF, y_N, w)[1:] for w in draws if len({*y_N[w > 0]}) == 2])
    each = zip(fits["combined"][1:], b_RF.T, strict=True)
    per_sd = [bootstrap_interval(b, b_R, "slope", few) for b, b_R in each]
    terms = pd.DataFrame({"name": x_NF.columns, "mean": mean_F, "sd": sd_F, "per_sd": per_sd})
    rare = scarce(counts, max(FEW_EVENTS, PER_COEFFICIENT * len(terms)))
    warnings = [f"{rare} in validation are few for {len(terms)} coefficients"] if rare else []
    counts["num_lacking"] = int(has_label(splits[0].label_NK[:, k]).sum()) - len(sample)
    for test in splits[1:]:
        sample, x_NF = _known(test, k, covariates)
        z_NF = (x_NF.to_numpy() - mean_F) / sd_F
        logits = {m: b[0] + z_NF[:, MODELS[m]] @ b[1:] for m, b in fits.items()}
        scores += _compare("test", sample, logits, risk_at)
    fit = {"intercept": float(fits["combined"][0]), "terms": terms.to_dict("records")}
    return fit | {"warnings": warnings, "counts": counts, "scores": scores}


def _fit(z_NF: FloatArray, y_N: FloatArray, weight_N: FloatArray) -> FloatArray:
    """Intercept, which has no penalty, and coefficients [1 + F]."""
    fit = LogisticRegression(solver="newton-cholesky", tol=1e-8)
    fit.fit(z_NF, y_N, weight_N / weight_N.mean())
    return np.r_[fit.intercept_, fit.coef_[0]]


def _compare(split: str, sample: LabelSample, logits: Mapping, risk_at: Mapping) -> list[dict]:
    """A row for each metric that all models have: values by model, and gains `over_network` and
    `over_covariates`, paired by the draws of patients: differences, negative where less is better.
    """
    t_T, few, scored = np.array([*risk_at.values()]), sample.patients_in_smaller_class(), {}
    for name, logit_N in logits.items():
        new = replace(sample, logits_N=logit_N, probabilities_N=expit(logit_N))
        value, value_R = new.rankings() | new.losses(), new.replicates()
        line, line_R = recalibration(new)
        value, value_R = value | line, value_R | line_R
        worth_NT = np.where(new.labels_N[:, None] == 1, 1.0, -t_T / (1 - t_T))
        worth_NT = np.c_[worth_NT * (new.probabilities_N[:, None] >= t_T), np.ones(len(new))]
        sums_TR, sum_T = new.sum_replicates(worth_NT).T, new.weights_N @ worth_NT
        value |= zip(risk_at, (sum_T / sum_T[-1]).tolist(), strict=False)
        value_R |= zip(risk_at, sums_TR / sums_TR[-1], strict=False)
        scored[name] = value, value_R, metric_intervals(value, value_R, new)
    rows, (best, best_R, _) = [], scored["combined"]
    for m in [m for m in best if all(m in value for value, _, _ in scored.values())]:
        row = {"split": split, "metric": m, "n": len(sample), "risk": risk_at.get(m)}
        for name, (value, value_R, intervals) in scored.items():
            gain = np.array([best[m] - value[m]]), (best_R[m] - value_R[m])[None]
            row |= {name: intervals[m], f"over_{name}": asdict(estimate_mean(*gain, few))}
        rows.append(row)
    return rows


def _known(split: Predictions, k: int, covariates: Sequence) -> tuple[LabelSample, pd.DataFrame]:
    """The records with label k and all covariates, and their columns, the logit first."""
    x_NF, why_N = encode(covariates, split.groups)
    rows = np.flatnonzero(has_label(split.label_NK[:, k]) & (why_N == ""))
    if not len(rows):
        raise ValueError(f"{split.labels[k]}: no record has the label and all covariates")
    known = split.rows(rows)
    sample = LabelSample.from_predictions(known, k, draw_resamples(known.patient_N, REPLICATES, 0))
    x_NF = x_NF.iloc[rows].set_axis(range(len(rows)))
    x_NF.insert(0, LOGIT, sample.logits_N)
    return sample, x_NF


def _cells(values: Any) -> pd.Series:
    """Text, '' where a cell is empty; one spelling of each number: 1.0 is 1."""
    cells = pd.Series([f"{v:.15g}" if isinstance(v, float) else str(v).strip() for v in values])
    cells = cells.mask(cells.str.fullmatch(EMPTY_CELL, case=False), "")
    numbers = pd.to_numeric(cells, errors="coerce")
    return cells.mask(np.isfinite(numbers), numbers.map("{:.15g}".format))
