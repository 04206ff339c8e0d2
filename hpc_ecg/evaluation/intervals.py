"""Intervals for one model's metrics from the patient bootstrap, each by the method that held best.

In: a value and its values in the replicates (resampling.py). Out: a small dict for JSON with
`value`, `low`, `high`, `replicates`, `method` and, where it applies, `warning`. Replicates without
a value (one class only) are left out; `replicates` counts the others.

  AUROC         Wilson's interval with the number of cases that has the bootstrap's variance, and a
                t quantile for the patients of the smaller class; near 1, where few patients make
                all of the error, the variance grows into the largest possible one
  AUPRC         normal on the logit scale with the same t quantile. Percentiles cover too seldom
                with few patients: they end where the sample ends
  proportions   sensitivity, PPV …: Wilson's interval with the number of independent cases that has
                the bootstrap's variance
  others        percentiles

Measured by tools/coverage_tables.py (95 % intervals, 1 to 4 ECGs per patient, AUROC 0.75 and 0.9,
2,000 cohorts a cell, 1,000 at 5,000 patients): among 200 to 5,000 patients, 20 or more positive on
average, 93.6–96.4 % for AUPRC; percentiles of AUROC 90.0–95.5 %. AUROC (400 cohorts a cell, 200 and
1,000 patients, 0.75 and 0.9): 92.5–98.2 % with 10 or more positive patients, 98–100 % with fewer;
at 0.97 to 0.9998 with 5 to 50 positive patients among 300, also if 3 % of them look healthy (250
cohorts a cell): 94–100 %, where the logit scale gives 61–100 %. Percentiles cover AUROC in 46, 60,
69, 73, 78, 82 % with 2, 3, 5, 7, 10, 15 positive patients; AUPRC is covered in 97.9 % or
more, since the bootstrap lets the number of positives vary (with 20 and 40: 97.0–98.2 %).
Sensitivities of 0.7 to 0.95 with 20 to 100 positive patients: 94.0–97.7 %, by percentiles
86.6–93.1 %; with 5 and 10: 97.5–99.7 %. The way of many papers, percentiles of 70 % of the ECGs
drawn without replacement, covers 44–70 %.
"""

# R replicates

import numpy as np
from scipy import special, stats

from hpc_ecg.evaluation.metrics import RANKING_METRICS, FloatArray
from hpc_ecg.reporting.numbers import count

FEW_PATIENTS = 20
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv", "f1", "observed")
METHODS = dict.fromkeys(PROPORTIONS, "Wilson")
METHODS |= {"auroc": "Wilson, bounded near 1", "auprc": "t on the logit scale"}
FEW_PIECES = 4.0
EDGE = 1e-4  # the logit of 1 is infinite: a replicate without any error counts as this far from it


def bootstrap_interval(
    value: float,
    value_R: FloatArray,
    metric: str,
    num_patients: int | None = None,
    warning: str | None = None,
) -> dict:
    """The 95 % interval as a dict; all None where the value is not finite, such as the PPV when no
    record is flagged.

    `num_patients` is the number of patients behind the metric: those of the smaller class for a
    ranking metric, those of the denominator for a proportion; None stands for many. ValueError:
    fewer than two replicates have a value.
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
    if method == "percentile":
        low, high = np.quantile(used_R, TAILS)
    elif value in (0, 1) or num_patients == 1:
        low, high = limits_at_edge(value, num_patients)
    elif metric == "auroc":
        quantile, growth = _quantile_and_growth(num_patients)
        variance = float(np.var(used_R, ddof=1)) * growth**2
        low, high = auroc_limits(value, variance, quantile, num_patients)
    elif metric in RANKING_METRICS:
        low, high = _logit_limits(value, used_R, num_patients)
    else:
        low, high = _wilson_limits(value, used_R, num_patients)
    lost = len(value_R) - len(used_R)
    was = "was" if lost == 1 else "were"
    left_out = f"{count(lost, 'replicate')} had one class only and {was} left out" if lost else ""
    text = "; ".join(t for t in (warning, left_out) if t)
    result: dict = {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
    result |= {"replicates": len(used_R), "method": method}
    return result | ({"warning": text} if text else {})


def limits_at_edge(value: float, num_patients: int | None) -> tuple[float, float]:
    """Limits where all replicates are equal: at 1 the lowest proportion that n patients without an
    error leave possible (Clopper & Pearson 1934), at 0 its mirror image. One patient tells nothing.
    """
    if num_patients == 1:
        return 0.0, 1.0
    reach = 0.0 if num_patients is None else 1 - ((1 - LEVEL) / 2) ** (1 / num_patients)
    return value - reach * (value == 1), value + reach * (value == 0)


def auroc_limits(
    value: float, variance: float, quantile: float, num_patients: int | None
) -> FloatArray:
    """Wilson's limits with the number of cases that has the variance.

    Near 1 a few patients make all of the error, and the bootstrap cannot draw those that were not
    seen. With the error made of (1 - A)² / variance equal pieces, the variance is blended into
    the largest that n patients of the smaller class can have, A (1 - A) / n (Birnbaum & Klose
    1957), as the pieces become few.
    """
    if num_patients is not None:
        num_pieces = min(value, 1 - value) ** 2 / max(variance, 1e-12)
        share = np.exp(-num_pieces / FEW_PIECES)
        largest = value * (1 - value) / num_patients
        variance = max(variance, share * largest + (1 - share) * variance)
    return _wilson(value, variance, quantile)


def logit(value: FloatArray | float) -> FloatArray:
    """Log-odds, with the value kept `EDGE` away from 0 and 1."""
    return np.asarray(special.logit(np.clip(value, EDGE, 1 - EDGE)))


def t_quantile(degrees_of_freedom: float, num_intervals: int = 1) -> float:
    """Half the width of a two-sided interval at `LEVEL`, in standard errors; of several intervals
    by Bonferroni's correction."""
    return float(stats.t.isf((1 - LEVEL) / 2 / num_intervals, degrees_of_freedom))


def few_patients_warning(counts: dict) -> str | None:
    """The text for fewer than 20 patients in a class, or None. `counts` is from `count_label`."""
    for kind in ("positive", "negative"):
        number = counts[f"n_{kind}_patients"]
        if number < FEW_PATIENTS:
            return (
                f"only {count(number, f'{kind} patient')}: the interval is wide, and errs on "
                "the safe side (95 % intervals cover 94–100 % there)"
            )
    return None


def _logit_limits(value: float, value_R: FloatArray, num_patients: int | None) -> FloatArray:
    quantile, growth = _quantile_and_growth(num_patients)
    half = quantile * growth * np.std(logit(value_R), ddof=1)
    return special.expit(logit(value) + np.array([-half, half]))


def _wilson_limits(value: float, value_R: FloatArray, num_patients: int | None) -> FloatArray:
    """Wilson 1927; the effective number of cases as in surveys (Korn & Graubard 1998)."""
    quantile, growth = _quantile_and_growth(num_patients)
    return _wilson(value, float(np.var(value_R, ddof=1)) * growth**2, quantile)


def _wilson(value: float, variance: float, quantile: float) -> FloatArray:
    square = quantile**2 * variance / (value * (1 - value))  # t² / n
    half = np.sqrt(square * value * (1 - value) + square**2 / 4)
    return np.clip((value + square / 2 + np.array([-half, half])) / (1 + square), 0, 1)


def _quantile_and_growth(num_patients: int | None) -> tuple[float, float]:
    """The t quantile, and the factor on the bootstrap's standard deviation: its variance is that
    within the sample, (n - 1) / n of the population's."""
    if num_patients is None:
        return t_quantile(np.inf), 1.0
    return t_quantile(num_patients - 1), float(np.sqrt(num_patients / (num_patients - 1)))
