"""The verdict in words, and the table for a terminal: a `Comparison` in, plain text out.

No sentence is chosen by taste: better means a Holm-corrected p below 0.05; everything else "cannot
be told apart", with the interval that says how large the difference may be.
"""

import textwrap

from hpc_ecg.evaluation.comparisons import Difference, Estimate
from hpc_ecg.sweep.compare import Comparison, StrategyResult

ALPHA = 0.05
WIDTH = 80


def verdict(comparison: Comparison) -> str:
    """A few sentences on the strategies, then the warnings."""
    return " ".join([*verdict_sentences(comparison), *comparison.warnings])


def verdict_sentences(comparison: Comparison) -> list[str]:
    best, *others = comparison.strategies
    value, metric = show_value(best.estimates[comparison.metric]), comparison.metric_name
    if not others:
        return [f"Only {best.name} is finished ({metric} {value}): nothing to compare it with."]
    pairs = {other.name: _pair(comparison, best.name, other.name) for other in others}
    ahead = [n for n, p in pairs.items() if p and p.first == best.name and p.p_holm < ALPHA]
    better = [n for n in ahead if _has_seeds(pairs[n])]
    unsure = [n for n in ahead if n not in better]
    alike = [n for n, p in pairs.items() if p and n not in ahead]
    apart = [n for n, p in pairs.items() if p is None]
    sentences = []
    if unsure:
        sentences.append(f"{best.name} has the highest {metric} ({value}) on these patients.")
        sentences.append(
            f"Whether it is better than {_spell(unsure, pairs, best.name)} cannot be said from one "
            "seed: how much training itself varies is unknown."
        )
    elif better and not alike:
        sentences.append(
            f"{best.name} is best ({metric} {value}): better than "
            f"{_spell(better, pairs, best.name)}."
        )
    elif better:
        sentences.append(f"{best.name} has the highest {metric} ({value}).")
        sentences.append(f"It cannot be told apart from {_spell(alike, pairs, best.name)}.")
        sentences.append(f"It is better than {_spell(better, pairs, best.name)}.")
    elif len(alike) == 1 and not apart:
        pair = pairs[alike[0]]
        sentences.append(
            f"{best.name} and {alike[0]} cannot be told apart "
            f"({metric} {_difference(pair, best.name)})."
        )
    elif alike:
        sentences.append(
            f"No strategy is clearly best: {best.name} has the highest {metric} "
            f"({value}) but cannot be told apart from "
            f"{_spell(alike, pairs, best.name)}."
        )
    if apart:
        sentences.append(f"{best.name} shares no seed with {', '.join(apart)}: not compared.")
    if len(comparison.pairs) > 1:
        sentences.append(f"(p: Holm's correction over {len(comparison.pairs)} comparisons.)")
    return sentences


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


def show_hours(strategy: StrategyResult) -> str:
    return ", ".join(
        f"{hours:.2g} {unit}" if hours < 10 else f"{hours:.0f} {unit}"
        for unit, hours in strategy.hours.items()
    )


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
    rows = [header, *(_table_row(s, first, second) for s in comparison.strategies)]
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = [_line(row, widths) for row in rows]
    units = sorted({unit for s in comparison.strategies for unit in s.hours})
    lines += ["", f"hours: {' and '.join(units)}"] if units else []
    lines += ["", *textwrap.wrap(" ".join(verdict_sentences(comparison)), WIDTH)]
    lines += [""] if comparison.warnings else []
    for warning in comparison.warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ")
    for problem in comparison.problems:
        text = f"{problem.strategy}/seed-{problem.seed}: {problem.reason}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _table_row(strategy: StrategyResult, first: str, second: str) -> list[str]:
    main = strategy.estimates[first]
    spread = "-" if main.seed_sd is None else number(main.seed_sd)
    hours = f"{sum(strategy.hours.values()):.2g}"
    other = number(strategy.estimates[second].value)
    seeds, value = str(len(strategy.seeds)), number(main.value)
    return [strategy.name, seeds, value, show_interval(main), spread, other, hours]


def _line(cells: list[str], widths: list[int]) -> str:
    name = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "…"
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *numbers]).rstrip()


def _has_seeds(pair: Difference | None) -> bool:
    return pair is not None and pair.estimate.includes_seeds


def _pair(comparison: Comparison, a: str, b: str) -> Difference | None:
    return next((p for p in comparison.pairs if {p.first, p.second} == {a, b}), None)


def _spell(names: list[str], pairs: dict[str, Difference | None], best: str) -> str:
    return "; ".join(f"{name} ({_difference(pairs[name], best)})" for name in names)


def _difference(pair: Difference | None, best: str) -> str:
    """Seen from the best, also where the shared seeds alone say the opposite."""
    assert pair is not None
    estimate = pair.estimate
    low, high, value = estimate.low, estimate.high, estimate.value
    if pair.first != best:
        low, high, value = -high, -low, -value
    interval = f"95 % interval {number(low)} to {number(high)}"
    return f"difference {number(value)}, {interval}, p {show_p(pair.p_holm)}"
