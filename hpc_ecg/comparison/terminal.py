"""The comparison as text for a terminal, in lines of at most 80 columns."""

import textwrap

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.verdict import all_sentences
from hpc_ecg.comparison.wording import format_interval
from hpc_ecg.evaluation.comparisons import Estimate
from hpc_ecg.reporting.numbers import format_number

WIDTH = 80


def format_table(comparison: Comparison) -> str:
    """Format strategies and reference models, the verdict, warnings and runs left out."""
    rows = _rows(comparison)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = [line for row in rows for line in _align(row, widths)]
    if units := sorted({unit for cost in comparison.cost.values() for unit in cost.hours}):
        lines += ["", f"hours: {' and '.join(units)}"]
    lines += ["", *textwrap.wrap(comparison.protocol["text"], WIDTH)]
    lines += ["", *textwrap.wrap(" ".join(all_sentences(comparison)), WIDTH)]
    lines += [""] if comparison.warnings else []
    for warning in comparison.warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    for problem in comparison.problems:
        text = f"{problem.name}: {problem.reason}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _rows(comparison: Comparison) -> list[list[str]]:
    first, second = map(comparison.name_of, comparison.metrics)
    rows = [["", "seeds", first, "95 % interval", "seed SD", second, "hours"]]
    for strategy in comparison.strategies:
        hours = f"{sum(comparison.cost[strategy.name].hours.values()):.2g}"
        seeds = str(len(strategy.seeds))
        rows.append(_row(comparison, strategy.name, seeds, strategy.estimates, hours))
    for model in comparison.reference_models:
        if model.estimates:
            rows.append(_row(comparison, model.title, "-", model.estimates, "-"))
    return rows


def _row(
    comparison: Comparison, name: str, seeds: str, estimates: dict[str, Estimate], hours: str
) -> list[str]:
    first, second = (estimates[metric] for metric in comparison.metrics)
    spread = "-" if first.seed_sd is None else format_number(first.seed_sd)
    value, other = format_number(first.value), format_number(second.value)
    return [name, seeds, value, format_interval(first), spread, other, hours]


def _align(row: list[str], widths: list[int]) -> list[str]:
    """Align one row. A name that is too long for its column gets a line to itself, uncut, since the
    names of a grid's arms differ at their ends."""
    name, *values = row
    numbers = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
    is_long = len(name) > widths[0]
    line = "  ".join([("" if is_long else name).ljust(widths[0]), *numbers]).rstrip()
    return [*textwrap.wrap(name, WIDTH), line] if is_long else [line]
