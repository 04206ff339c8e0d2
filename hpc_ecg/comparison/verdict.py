"""The verdict of a `Comparison` in plain sentences.

Fixed rules choose each sentence. "Better" means an adjusted p below 0.05, from at least two seeds
(`is_better`); everything else "is not shown to be better", with the simultaneous interval that says
how large the difference may be.
"""

from typing import Any

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.scoring import detectable, is_better, pairs_with, put_first
from hpc_ecg.comparison.wording import format_estimate
from hpc_ecg.evaluation.comparisons import Difference
from hpc_ecg.reporting.numbers import (
    format_number,
    format_p,
    format_probability,
    format_range,
    format_span,
    join_names,
)


def verdict(comparison: Comparison) -> str:
    """All sentences, then the warnings."""
    return " ".join([*all_sentences(comparison), *comparison.warnings])


def all_sentences(comparison: Comparison) -> list[str]:
    return [
        *verdict_sentences(comparison),
        *sentences_on_baselines(comparison),
        *sentences_on_chance(comparison),
    ]


def verdict_sentences(comparison: Comparison) -> list[str]:
    """Say which strategy is best, and which ones it is and is not shown to be better than."""
    best, *others = comparison.competing
    value = format_estimate(best.estimates[comparison.metric])
    if not others:
        one = ("is finished", ""), ("competes", "; the others are arms of its grid")
        what, arms = one[len(comparison.strategies) > 1]
        only = f"Only {best.name} {what} ({comparison.metric_name} {value}{arms})"
        return [f"{only}: there is no other strategy to compare it with."]
    pairs = pairs_with(comparison.pairs, best.name)
    alike = [pair for pair in pairs if pair.estimate.includes_seeds and not is_better(pair)]
    sentences = rank_sentences(best.name, comparison.metric_name, value, pairs)
    sentences += _corrected(comparison)
    if alike:
        sentences.append(_detectable(comparison, alike))
    if comparison.standing:
        sentences.append("One arm of a grid, chosen without the test set, stands for its strategy.")
    if (num := sum(pair.estimate.includes_seeds for pair in comparison.pairs)) > 1:
        sentences.append(
            f"(Intervals of differences and p hold for all {num} comparisons at once.)"
        )
    return sentences


def rank_sentences(best: str, metric: str, value: str, pairs: list[Difference]) -> list[str]:
    """`pairs` are those of the best strategy, which comes first in them."""
    better = [pair for pair in pairs if is_better(pair)]
    unknown = [pair for pair in pairs if not pair.estimate.includes_seeds]
    alike = [pair for pair in pairs if pair not in better and pair not in unknown]
    if len(better) == len(pairs):
        return [f"{best} is best ({metric} {value}): better than {_list(better)}."]
    if len(pairs) == 1 and alike:
        return [
            f"{best} and {alike[0].second} are not shown to differ ({metric} "
            f"{_describe(alike[0])})."
        ]
    sentences = [f"{best} has the highest {metric} ({value}) on these patients."]
    if better:
        sentences.append(f"It is better than {_list(better)}.")
    if alike:
        sentences.append(f"It is not shown to be better than {_list(alike)}.")
    if unknown:
        sentences.append(
            f"Whether it is better than {_list(unknown)} cannot be said from one seed: how much "
            "training itself varies is unknown."
        )
    return sentences


def _corrected(comparison: Comparison) -> list[str]:
    """The highest of several values is too high on average; say by how much."""
    if comparison.best_corrected is None:
        return []
    value, first = format_estimate(comparison.best_corrected), comparison.competing[0].name
    highest = f"Corrected for being the highest of {len(comparison.competing)}"
    return [f"{highest}, {first} has {comparison.metric_name} {value}."]


def sentences_on_baselines(comparison: Comparison) -> list[str]:
    """Say which networks beat each baseline, and what the best one adds to age and sex."""
    names = dict.fromkeys(pair.second for pair in comparison.baselines)
    models, sentences = {m.name: m.estimates for m in comparison.reference_models}, []
    for name in names:
        value = format_number(models[name][comparison.metric].value)
        pairs = [pair for pair in comparison.baselines if pair.second == name]
        title = f"{name} alone ({comparison.metric_name} {value})"
        sentences.append(baseline_sentence(title, pairs))
    best = comparison.strategies[0].name
    for pair in comparison.gains:
        if pair.first == f"{best} + {pair.second}":
            gain = f"{_gain(pair)} {comparison.metric_name}"
            if is_better(pair):
                sentences.append(f"To {pair.second}, {best} adds {gain}.")
            else:
                sentences.append(f"{best} is not shown to add to {pair.second}: {gain}.")
    return sentences


def baseline_sentence(name: str, pairs: list[Difference]) -> str:
    """`pairs` are each network minus the baseline of this name."""
    winners = [pair.first for pair in pairs if is_better(pair)]
    others = [pair.first for pair in pairs if not is_better(pair)]
    if not others:
        return f"Every network beats {name}."
    losers = [pair.first for pair in pairs if is_better(put_first(pair, pair.second))]
    if len(losers) == len(pairs) > 1:
        return f"Every network is shown to be worse than {name}."
    if not winners:
        best = max(pairs, key=lambda pair: pair.estimate.value)
        seeds = "" if best.estimate.includes_seeds else ", from one seed"
        return (
            f"No network is shown to beat {name}; {best.first}, the best, differs by "
            f"{_gain(best)}{seeds}.{_worse(losers)}"
        )
    beat = "beats" if len(winners) == 1 else "beat"
    are = "is" if len(others) == 1 else "are"
    text = f"{join_names(winners)} {beat} {name}; {join_names(others)} {are} not shown to."
    return text + _worse(losers)


def _worse(networks: list[str]) -> str:
    are = "is" if len(networks) == 1 else "are"
    return f" {join_names(networks)} {are} shown to be worse." if networks else ""


def _gain(pair: Difference) -> str:
    value = format_number(pair.estimate.value, signed=True)
    return f"{value} (95 % interval {format_range(pair.low, pair.high)})"


def sentences_on_chance(comparison: Comparison) -> list[str]:
    """Say how sure the order is: probability of being best, and non-inferiority to the best.
    Nothing where a strategy has a single seed."""
    single = any(not pair.estimate.includes_seeds for pair in comparison.pairs)
    if len(comparison.competing) < 2 or single:
        return []
    ranked = sorted(comparison.probability_best.items(), key=lambda item: -item[1])
    chances = ", ".join(f"{name} {format_probability(p)}" for name, p in ranked[:3])
    more = " …" if len(ranked) > 3 else "."
    sentences = [f"Probability of being the best of these: {chances}{more}"]
    return sentences + non_inferior_sentences(comparison.non_inferior, comparison.metric_name)


def non_inferior_sentences(tests: list[dict[str, Any]], metric: str) -> list[str]:
    """One on the strategies that passed, or that none did; nothing where none was tested."""
    if not tests:
        return []
    best, margin = tests[0]["to"], f"{tests[0]['margin']:g} {metric}"
    if not (passed := [test["strategy"] for test in tests if test["is_non_inferior"]]):
        return [f"No other strategy is shown to be non-inferior to {best} (margin {margin})."]
    how = "(non-inferior, one-sided p < 0.025 each)"
    return [f"Not worse than {best} by more than {margin} {how}: {join_names(passed)}."]


def _detectable(comparison: Comparison, pairs: list[Difference]) -> str:
    found = {pair.second: detectable(pair, comparison.metric) for pair in pairs}
    sizes = [size for size in found.values() if size is not None]
    if not sizes:
        return "These patients and seeds are too few to find any difference with 80 % power."
    if not any(found.values()) and len(sizes) == len(found):
        return "On these patients they score exactly the same."
    unknown = [name for name, size in found.items() if size is None]
    none = f"; against {join_names(unknown)}, none is" if unknown else ""
    size = format_span(min(sizes), max(sizes))
    return f"With these patients and seeds, a difference of {size} is found with 80 % power{none}."


def _list(pairs: list[Difference]) -> str:
    return "; ".join(f"{pair.second} ({_describe(pair)})" for pair in pairs)


def _describe(pair: Difference) -> str:
    value, interval = format_number(pair.estimate.value), format_range(pair.low, pair.high)
    return f"difference {value}, 95 % interval {interval}, p {format_p(pair.p_adjusted)}"
