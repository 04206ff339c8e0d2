"""Estimates, costs and thresholds as text, the same on the page, the terminal and the cards."""

from collections.abc import Callable, Mapping
from typing import Any

from hpc_ecg.comparison.cost import Cost
from hpc_ecg.evaluation.comparisons import Estimate
from hpc_ecg.reporting.numbers import (
    count,
    format_number,
    format_p,
    format_percent,
    format_range,
    format_threshold,
    format_with_interval,
)


def format_estimate(estimate: Estimate) -> str:
    return f"{format_number(estimate.value)}, 95 % interval {format_interval(estimate)}"


def format_interval(estimate: Estimate) -> str:
    return format_range(estimate.low, estimate.high)


def format_hours(cost: Cost) -> str:
    return ", ".join(
        f"{hours:.2g} {unit}" if hours < 10 else f"{hours:.0f} {unit}"
        for unit, hours in cost.hours.items()
    )


def format_metric(metric: Any) -> str:
    """A metric of evaluation.json, with its interval if it has one; a dash where it has no value,
    such as the calibration slope of a model that separates the classes."""
    return format_with_interval(metric) if isinstance(metric, Mapping) else format_number(metric)


def fitted_for(method: str) -> str:
    """What a threshold was fitted for: sensitivity_90 is `sensitivity ≥ 90 %`."""
    kind, _, percent = method.partition("_")
    return f"{kind} ≥ {percent} %" if percent else "Youden’s J"


def whom_it_flags(at_threshold: Mapping[str, Any]) -> str:
    """Says of a threshold if it flags everybody or nobody, and nothing of others."""
    counts = at_threshold.get("counts", {})
    for text, others in (("flags everybody", ("tn", "fn")), ("flags nobody", ("tp", "fp"))):
        if counts and not any(counts[name] for name in others):
            return text
    return ""


FORMATS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        format_number,
        format_estimate,
        format_p,
        format_percent,
        format_range,
        format_interval,
        format_hours,
        format_metric,
        fitted_for,
        format_threshold,
        whom_it_flags,
        count,
    )
}
"""The functions that templates call, by name."""
