"""Numbers as text: one format for the terminal, the pages, the report and the cards."""

from collections.abc import Mapping, Sequence

MISSING = "–"


def format_number(value: float | None, signed: bool = False) -> str:
    """Three decimals below 10, four significant figures up to 1000, whole numbers above; with a
    true minus sign. A dash for None; `signed` puts a plus before what is not negative."""
    if value is None:
        return MISSING
    size = abs(value)
    decimals = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0
    text = f"{size:.{decimals}f}"
    is_negative = value < 0 and float(text) != 0
    return f"{'−' if is_negative else '+' if signed else ''}{text}"


def format_range(low: float | None, high: float | None) -> str:
    """Both ends of an interval: 0.701 to 0.893."""
    return f"{format_number(low)} to {format_number(high)}"


def format_with_interval(result: Mapping[str, float | None]) -> str:
    """A `value` with its interval from `low` to `high`, as evaluation.json holds them, in few
    characters: 0.812 (0.701–0.893), −0.100 (−0.400 to 0.200)."""
    value, low, high = (result.get(name) for name in ("value", "low", "high"))
    if value is None or (low is None and high is None):
        return format_number(value)
    ends = [format_number(low), format_number(high)]
    separator = " to " if None in (low, high) or "−" in "".join(ends) else "–"
    return f"{format_number(value)} ({separator.join(ends)})"


def format_p(p: float) -> str:
    """A p value with its relation: `= 0.012`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def format_probability(p: float) -> str:
    """A probability with two decimals; `< 0.01` and `> 0.99` instead of 0.00 and 1.00."""
    return "> 0.99" if p > 0.99 else "< 0.01" if p < 0.01 else f"{p:.2f}"


def format_percent(fraction: float) -> str:
    """A fraction of 1 in per cent, with one decimal."""
    return f"{100 * fraction:.1f} %"


def count(number: int, noun: str, verb: str = "") -> str:
    """A number with its noun: `1 cell`, `1,200 cells`; with the `verb` are: `1 cell is`."""
    text = f"{number:,} {noun}{'' if number == 1 else 's'}"
    return f"{text} {'is' if number == 1 else verb}" if verb else text


def format_span(low: float, high: float) -> str:
    """What lies between two numbers: `0.012 to 0.034`, or one number if both read the same."""
    return " to ".join(dict.fromkeys((format_number(low), format_number(high))))


def format_threshold(threshold: float) -> str:
    """Four significant figures: thresholds of rare events are small."""
    return f"{threshold:.4g}"


def join_names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
