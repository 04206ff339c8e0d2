"""Estimates, costs and thresholds as text, the same on the page, the terminal and the cards."""

from collections.abc import Mapping
from typing import Any

from hpc_ecg.comparison.cost import Cost
from hpc_ecg.evaluation.comparisons import Estimate
from hpc_ecg.reporting.numbers import format_number, format_range, format_with_interval


def show_value(estimate: Estimate) -> str:
    return f"{format_number(estimate.value)}, 95 % interval {show_interval(estimate)}"


def show_interval(estimate: Estimate) -> str:
    return format_range(estimate.low, estimate.high)


def show_hours(cost: Cost) -> str:
    return ", ".join(
        f"{hours:.2g} {unit}" if hours < 10 else f"{hours:.0f} {unit}"
        for unit, hours in cost.hours.items()
    )


def show_part(part: Any) -> str:
    """A number of evaluation.json, with its interval if it has one; a dash where there is none,
    such as the slope where the classes are apart."""
    return format_with_interval(part) if isinstance(part, Mapping) else format_number(part)


def fitted_for(method: str) -> str:
    """What a threshold was fitted for: sensitivity_90 is `sensitivity ≥ 90 %`."""
    kind, _, percent = method.partition("_")
    return f"{kind} ≥ {percent} %" if percent else "Youden’s J"
