"""The verdict in words: a `Comparison` in, plain sentences out.

No sentence is chosen by taste: better means a Holm-corrected p below 0.05; everything else "cannot
be told apart", with the interval that says how large the difference may be.
"""

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.wording import show_interval, show_value
from hpc_ecg.evaluation.comparisons import ALPHA, Difference
from hpc_ecg.reporting.numbers import (
    format_number,
    format_p,
    format_probability,
    format_range,
    join_names,
)


def verdict(comparison: Comparison) -> str:
    """A few sentences on the strategies, then the warnings."""
    return " ".join([*all_sentences(comparison), *comparison.warnings])


def all_sentences(comparison: Comparison) -> list[str]:
    return [
        *verdict_sentences(comparison),
        *sentences_on_baselines(comparison),
        *sentences_on_chance(comparison),
    ]


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
    if alike:
        sentences.append(_what_could_be_found(comparison, best.name, alike))
    if len(comparison.pairs) > 1:
        sentences.append(f"(p: Holm's correction over {len(comparison.pairs)} comparisons.)")
    return sentences


def sentences_on_baselines(comparison: Comparison) -> list[str]:
    """Whether a network is worth it: what beats the simple ways is named, and so is what does
    not."""
    names = dict.fromkeys(pair.second for pair in comparison.baselines)
    sentences = [_on_baseline(comparison, name) for name in names]
    best = comparison.strategies[0].name
    for pair in comparison.adds:
        if pair.first == f"{best} + {pair.second}":
            verb = "adds" if _is_above(pair) else "is not shown to add anything: it adds"
            sentences.append(
                f"To {pair.second}, {best} {verb} {_gain(pair)} {comparison.metric_name}."
            )
    return sentences


def _on_baseline(comparison: Comparison, baseline: str) -> str:
    pairs = [pair for pair in comparison.baselines if pair.second == baseline]
    beat, rest = [p for p in pairs if _is_above(p)], [p for p in pairs if not _is_above(p)]
    own = next(r for r in comparison.reference_models if r.name == baseline).estimates[
        comparison.metric
    ]
    name = f"{baseline} alone ({comparison.metric_name} {format_number(own.value)})"
    if not rest:
        return f"Every network beats {name}."
    if not beat:
        best = max(pairs, key=lambda p: p.estimate.value)
        return (
            f"No network is shown to beat {name}; {best.first}, the best, differs by {_gain(best)}."
        )
    verb = "beats" if len(beat) == 1 else "beat"
    be = "is" if len(rest) == 1 else "are"
    winners, others = join_names([p.first for p in beat]), join_names([p.first for p in rest])
    return f"{winners} {verb} {name}; {others} {be} not shown to."


def _is_above(pair: Difference) -> bool:
    return pair.estimate.value > 0 and pair.p_holm < ALPHA


def _gain(pair: Difference) -> str:
    e = pair.estimate
    return f"{format_number(e.value, True)} (95 % interval {show_interval(e)})"


def sentences_on_chance(comparison: Comparison) -> list[str]:
    """How sure the order is: probability of being best, and who is not worse than the margin."""
    if len(comparison.strategies) < 2:
        return []
    ranked = sorted(comparison.probability_best.items(), key=lambda item: -item[1])
    sentences = [
        "Probability of being the best of these: "
        + ", ".join(f"{name} {format_probability(p)}" for name, p in ranked[:3])
        + (" …" if len(ranked) > 3 else ".")
    ]
    within = [n["strategy"] for n in comparison.non_inferior if n["is_non_inferior"]]
    if within:
        sentences.append(
            f"Not worse than {comparison.strategies[0].name} by more than {comparison.margin:g} "
            f"{comparison.metric_name} (non-inferior, one-sided p < 0.025): {join_names(within)}."
        )
    return sentences


def _what_could_be_found(comparison: Comparison, best: str, alike: list[str]) -> str:
    others = [{best, name} for name in alike]
    pairs = [pair for pair in comparison.pairs if {pair.first, pair.second} in others]
    sizes = [comparison.detectable[f"{pair.first} - {pair.second}"] for pair in pairs]
    if not any(sizes):
        return "On these patients they score exactly the same."
    low, high = format_number(min(sizes)), format_number(max(sizes))
    size = low if low == high else f"{low} to {high}"
    return f"With these patients and seeds, 4 of 5 sweeps would find a difference of {size}."


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
    interval = f"95 % interval {format_range(low, high)}"
    return f"difference {format_number(value)}, {interval}, p {format_p(pair.p_holm)}"
