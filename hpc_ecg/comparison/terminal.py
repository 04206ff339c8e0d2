"""The comparison for a terminal: no line over 80 columns."""

import textwrap

from hpc_ecg.comparison.comparison import Comparison, StrategyResult
from hpc_ecg.comparison.cost import Cost
from hpc_ecg.comparison.reference_models import ReferenceModel
from hpc_ecg.comparison.verdict import all_sentences
from hpc_ecg.comparison.wording import show_interval
from hpc_ecg.reporting.numbers import format_number

WIDTH = 80


def format_table(comparison: Comparison) -> str:
    """For a terminal: strategies, differences from the best, verdict; no line over 80 columns."""
    first, second = comparison.metrics
    header = [
        "",
        "seeds",
        comparison.name_of(first),
        "95 % interval",
        "seed SD",
        comparison.name_of(second),
        "hours",
    ]
    rows = [
        header,
        *(_table_row(s, comparison.cost[s.name], first, second) for s in comparison.strategies),
        *(
            _reference_row(reference, first, second)
            for reference in comparison.reference_models
            if reference.estimates
        ),
    ]
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = [line for row in rows for line in _lines(row, widths)]
    units = sorted({unit for cost in comparison.cost.values() for unit in cost.hours})
    lines += ["", f"hours: {' and '.join(units)}"] if units else []
    lines += ["", *textwrap.wrap(" ".join(all_sentences(comparison)), WIDTH)]
    lines += [""] if comparison.warnings else []
    for warning in comparison.warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    for problem in comparison.problems:
        text = f"{problem.strategy}/seed-{problem.seed}: {problem.reason}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _table_row(strategy: StrategyResult, cost: Cost, first: str, second: str) -> list[str]:
    main = strategy.estimates[first]
    spread = "-" if main.seed_sd is None else format_number(main.seed_sd)
    hours = f"{sum(cost.hours.values()):.2g}"
    other = format_number(strategy.estimates[second].value)
    seeds, value = str(len(strategy.seeds)), format_number(main.value)
    return [strategy.name, seeds, value, show_interval(main), spread, other, hours]


def _reference_row(reference: ReferenceModel, first: str, second: str) -> list[str]:
    main, other = reference.estimates[first], format_number(reference.estimates[second].value)
    name = (
        reference.name if reference.kind == "baseline" else f"{reference.name} ({reference.kind})"
    )
    return [name, "-", format_number(main.value), show_interval(main), "-", other, "-"]


def _lines(cells: list[str], widths: list[int]) -> list[str]:
    """A row; a name that is too long for its column has a line of its own, since the arms of a grid
    differ at their names' ends."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    is_long = len(cells[0]) > widths[0]
    row = "  ".join([("" if is_long else cells[0]).ljust(widths[0]), *numbers]).rstrip()
    return [*textwrap.wrap(cells[0], WIDTH), row] if is_long else [row]
