"""Numbers as text, the same everywhere: page, tables, terminal, cards."""

from hpc_ecg.evaluation.comparisons import Estimate
from hpc_ecg.sweep.cost import Cost


def show_value(estimate: Estimate) -> str:
    return f"{number(estimate.value)}, 95 % interval {show_interval(estimate)}"


def show_interval(estimate: Estimate) -> str:
    return f"{number(estimate.low)} to {number(estimate.high)}"


def number(value: float, signed: bool = False) -> str:
    """Three decimals with a true minus sign; large values keep three figures."""
    size = abs(value)
    text = f"{size:.3f}" if size < 100 else f"{size:.3g}"
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


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
