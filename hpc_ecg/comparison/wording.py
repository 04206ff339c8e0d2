"""Numbers as text, the same everywhere: page, tables, terminal, cards."""

from collections.abc import Mapping
from typing import Any

from hpc_ecg.comparison.cost import Cost
from hpc_ecg.evaluation.comparisons import Estimate


def show_value(estimate: Estimate) -> str:
    return f"{number(estimate.value)}, 95 % interval {show_interval(estimate)}"


def show_interval(estimate: Estimate) -> str:
    return f"{number(estimate.low)} to {number(estimate.high)}"


def number(value: float, signed: bool = False) -> str:
    """Three decimals with a true minus sign; large values keep three figures, or all of those
    before the point."""
    size = abs(value)
    text = f"{size:.3f}" if size < 100 else f"{size:.3g}" if size < 999.5 else f"{size:.0f}"
    minus = value < 0 and float(text) != 0
    return f"{'−' if minus else '+' if signed else ''}{text}"


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def show_hours(cost: Cost) -> str:
    return ", ".join(
        f"{hours:.2g} {unit}" if hours < 10 else f"{hours:.0f} {unit}"
        for unit, hours in cost.hours.items()
    )


def share(value: float) -> str:
    """A share of 1 in per cent, one decimal."""
    return f"{100 * value:.1f} %"


def show_part(part: Any) -> str:
    """A number of evaluation.json, with its interval if it has one; a dash for what does not exist,
    such as the slope where the classes are apart."""
    if not isinstance(part, Mapping):
        return "–" if part is None else number(part)
    if part["value"] is None:
        return "–"
    if part.get("low") is None or part.get("high") is None:
        return number(part["value"])
    return f"{number(part['value'])} ({number(part['low'])} to {number(part['high'])})"


def fitted_for(method: str) -> str:
    """What a threshold was fitted for: sensitivity_90 is `sensitivity ≥ 90 %`."""
    kind, _, percent = method.partition("_")
    return f"{kind} ≥ {percent} %" if percent else "Youden’s J"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
