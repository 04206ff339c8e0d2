"""Intervals for one model's metrics from the patient bootstrap, each by the method that held best.

In: a value and its values in the replicates (resampling.py). Out: a small dict for JSON with
`value`, `low`, `high`, `replicates`, `method` and, where it applies, `warning`. Replicates without
a value (one class only) are left out; `replicates` counts the others.

  AUROC, rates, Brier score   Wilson's interval with the number of cases that has the bootstrap's
                variance, and a t quantile for the patients behind it; near 0 and 1, where few
                patients make all of the error, the variance grows into the largest possible one
  AUPRC         t on the logit scale, growing into the same near 1
  log loss, O/E t on the log scale (of a log loss the upper end further, for skewness)
  slope and intercept of the calibration: t
  others        percentiles

Measured by tools/coverage_tables.py (95 % intervals, 1 to 5 ECGs per patient; settings and limits:
docs/explanation/statistics.md). AUROC and AUPRC, 20 or more positive patients: 92.5–98.2 and
93.6–96.4 %; with 2 to 19, 94–100 % (percentiles of AUROC 46–82). AUROC 0.97 to 0.9998 with 5 to 50
positive patients: 94–100 %. Lowest of 18 to 90 cells of table `edges`: sensitivity 91.2 %, PPV and
NPV 91.6, specificity and Brier score 92.4, net benefit 92.8, slope 91.6, intercept 92.4, ECE 92.0,
means over labels 93.2. Log loss 94.0–99.2 % (percentiles 84–94), O/E 94.4–98.3 (89–95). Lower with
heavy-tailed scores (slope 90 %) and strong weights against censoring (87–92 %).
"""

# R replicates

import numpy as np
from scipy import special, stats

from hpc_ecg.evaluation.metrics import FloatArray
from hpc_ecg.reporting.numbers import count

FEW_PATIENTS = 20
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv", "f1", "observed")
METHODS = dict.fromkeys((*PROPORTIONS, "auroc", "brier"), "Wilson, bounded near 0 and 1")
METHODS |= {"auprc": "t on the logit scale, bounded near 1", "intercept": "t", "slope": "t"}
METHODS |= dict.fromkeys(("log_loss", "o_e"), "t on the log scale")
FEW_PIECES = 4.0
LEAST_FOR_LOG_LOSS = 5
"""Patients of the smaller class; with 2, t limits on the log scale go to tens of thousands."""
SKEW = (2 * 1.96**2 + 1) / 12
"""Johnson's (1978) shift of a t limit, per skewness; half of it, as the log takes the rest."""
EDGE = 1e-4  # the logit of 1 is infinite: a replicate without any error counts as this far from it


def bootstrap_interval(
    value: float,
    value_R: FloatArray,
    metric: str,
    num_patients: float | None = None,
    warning: str | None = None,
) -> dict:
    """The 95 % interval as a dict; all None where the value is not finite, such as the PPV when no
    record is flagged. A log loss with fewer than 5 patients of an outcome has no limits.

    `num_patients` is the number of patients behind the metric: those of the smaller class, or for a
    proportion and a Brier score `LabelSample.effective_patients` of the denominator; None stands
    for many. ValueError: fewer than two replicates have a value.
    """
    value = float(value)
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    used_R = value_R[np.isfinite(value_R)]
    if len(used_R) < 2:
        raise ValueError(
            f"only {len(used_R)} of {len(value_R)} replicates hold both classes; "
            "an interval needs more patients in the smaller class"
        )
    method = METHODS.get(metric, "percentile")
    quantile, growth = quantile_and_growth(num_patients)
    error = growth * float(np.std(used_R, ddof=1))
    if method == "percentile":
        low, high = np.quantile(used_R, TAILS)
    elif method == "t":
        low, high = value - quantile * error, value + quantile * error
    elif metric == "o_e":
        low, high = value * np.exp(quantile * error / value * np.array([-1, 1]))
    elif metric == "log_loss":
        error = growth * float(np.std(np.log(used_R), ddof=1))
        skew = max(float(stats.skew(used_R)), 0.0)
        low, high = value * np.exp(error * np.array([-quantile, quantile + SKEW * skew]))
    elif num_patients is not None and num_patients < 1.5:
        low, high = 0.0, 1.0  # one patient tells nothing
    elif metric == "auprc":
        half = quantile * growth * float(np.std(logit(used_R), ddof=1))
        low, high = auprc_limits(value, error**2, quantile, num_patients, half)
    else:
        low, high = bounded_limits(value, error**2, quantile, num_patients)
    if metric == "log_loss" and num_patients is not None and num_patients < LEAST_FOR_LOG_LOSS:
        few = f"only {count(int(num_patients), 'patient')} of one outcome: too few for an interval"
        none = {"value": value, "low": None, "high": None, "warning": few}
        return none | {"replicates": len(used_R), "method": METHODS[metric]}
    lost = len(value_R) - len(used_R)
    was = "was" if lost == 1 else "were"
    left_out = f"{count(lost, 'replicate')} had one class only and {was} left out" if lost else ""
    text = "; ".join(t for t in (warning, left_out) if t)
    result: dict = {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
    result |= {"replicates": len(used_R), "method": method}
    return result | ({"warning": text} if text else {})


def bounded_limits(
    value: float, variance: float, quantile: float, num_patients: float | None
) -> FloatArray:
    """Wilson's limits with the number of cases that has the variance (Korn & Graubard 1998)."""
    square = quantile**2 / effective_cases(value, variance, num_patients)
    half = np.sqrt(square * value * (1 - value) + square**2 / 4)
    return np.clip((value + square / 2 + np.array([-half, half])) / (1 + square), 0, 1)


def effective_cases(value: float, variance: float, num_patients: float | None) -> float:
    """How many independent cases give a value between 0 and 1 this variance.

    Near 0 and 1 a few patients make all of the error, and the bootstrap cannot draw those that were
    not seen. With the error made of k = error² / variance equal pieces, the variance is blended
    into the largest that n patients can have, A (1 - A) / n (for the AUROC, with the patients of
    the smaller class: Birnbaum & Klose 1957): exp(-k / 4) of it, all where no error was seen.
    """
    most = np.inf if num_patients is None else num_patients
    if value in (0, 1):
        return float(most)
    cases = value * (1 - value) / max(variance, 1e-15)
    share = np.exp(-(min(value, 1 - value) ** 2) / max(variance, 1e-15) / FEW_PIECES)
    return float(min(cases, 1 / (share / most + (1 - share) / cases)))


def auprc_limits(
    value: float, variance: float, quantile: float, num_patients: float | None, half: float
) -> FloatArray:
    """`half` to both sides on the logit scale and, where few patients make the error near 1, more
    and more the bounded limits."""
    bounded = bounded_limits(value, variance, quantile, num_patients)
    on_logits = special.expit(logit(value) + np.array([-half, half]))
    share = np.exp(-((1 - value) ** 2) / max(variance, 1e-15) / FEW_PIECES) if value > 0.5 else 0.0
    return share * bounded + (1 - share) * on_logits


def logit(value: FloatArray | float) -> FloatArray:
    """Log-odds, with the value kept `EDGE` away from 0 and 1."""
    return np.asarray(special.logit(np.clip(value, EDGE, 1 - EDGE)))


def t_quantile(degrees_of_freedom: float, num_intervals: int = 1) -> float:
    """Half the width of a two-sided interval at `LEVEL`, in standard errors; of several intervals
    by Bonferroni's correction."""
    return float(stats.t.isf((1 - LEVEL) / 2 / num_intervals, degrees_of_freedom))


def quantile_and_growth(num_patients: float | None) -> tuple[float, float]:
    """The t quantile, and the factor on the bootstrap's standard deviation: its variance is that
    within the sample, (n - 1) / n of the population's."""
    if num_patients is None:
        return t_quantile(np.inf), 1.0
    freedom = max(num_patients - 1, 1.0)
    return t_quantile(freedom), float(np.sqrt((freedom + 1) / freedom))
