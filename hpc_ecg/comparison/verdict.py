"""The verdict of a `Comparison` in plain sentences.

Fixed rules choose each sentence. "Better" means a Holm-corrected p below 0.05; everything else
"cannot be told apart", with the interval that says how large the difference may be.
"""

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.scoring import is_better, pairs_with
from hpc_ecg.comparison.wording import format_estimate, format_interval
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
    """Say which strategy is best, and which ones it can and cannot be told apart from."""
    best, *others = comparison.strategies
    if not others:
        value = format_estimate(best.estimates[comparison.metric])
        return [
            f"Only {best.name} is finished ({comparison.metric_name} {value}): there is nothing to "
            "compare it with."
        ]
    pairs = pairs_with(comparison.pairs, best.name)
    alike = [pair for pair in pairs if not is_better(pair)]
    sentences = _rank(comparison, [pair for pair in pairs if is_better(pair)], alike)
    paired = [pair.second for pair in pairs]
    if unpaired := [other.name for other in others if other.name not in paired]:
        sentences.append(f"{best.name} shares no seed with {', '.join(unpaired)}: not compared.")
    if alike:
        sentences.append(_detectable(comparison, alike))
    if len(comparison.pairs) > 1:
        sentences.append(f"(p: Holm's correction over {len(comparison.pairs)} comparisons.)")
    return sentences


def _rank(comparison: Comparison, ahead: list[Difference], alike: list[Difference]) -> list[str]:
    """`ahead`: pairs in which the best strategy leads significantly; `alike`: its other pairs."""
    best, metric = comparison.strategies[0].name, comparison.metric_name
    value = format_estimate(comparison.strategies[0].estimates[comparison.metric])
    better = [pair for pair in ahead if pair.estimate.includes_seeds]
    unsure = [pair for pair in ahead if not pair.estimate.includes_seeds]
    if unsure:
        return [
            f"{best} has the highest {metric} ({value}) on these patients.",
            f"Whether it is better than {_list(unsure)} cannot be said from one seed: how "
            "much training itself varies is unknown.",
        ]
    if better and not alike:
        return [f"{best} is best ({metric} {value}): better than {_list(better)}."]
    if better:
        return [
            f"{best} has the highest {metric} ({value}).",
            f"It cannot be told apart from {_list(alike)}.",
            f"It is better than {_list(better)}.",
        ]
    if len(alike) == 1 and len(comparison.strategies) == 2:
        return [
            f"{best} and {alike[0].second} cannot be told apart ({metric} {_describe(alike[0])})."
        ]
    if alike:
        return [
            f"No strategy is clearly best: {best} has the highest {metric} "
            f"({value}) but cannot be told apart from {_list(alike)}."
        ]
    return []


def sentences_on_baselines(comparison: Comparison) -> list[str]:
    """Say which networks beat each baseline, and what the best one adds to age and sex."""
    names = dict.fromkeys(pair.second for pair in comparison.baselines)
    sentences = [_on_baseline(comparison, name) for name in names]
    best = comparison.strategies[0].name
    for pair in comparison.gains:
        if pair.first == f"{best} + {pair.second}":
            verb = "adds" if is_better(pair) else "is not shown to add anything: it adds"
            gain = f"{_gain(pair)} {comparison.metric_name}"
            sentences.append(f"To {pair.second}, {best} {verb} {gain}.")
    return sentences


def _on_baseline(comparison: Comparison, baseline: str) -> str:
    pairs = [pair for pair in comparison.baselines if pair.second == baseline]
    winners = [pair.first for pair in pairs if is_better(pair)]
    others = [pair.first for pair in pairs if not is_better(pair)]
    model = next(m for m in comparison.reference_models if m.name == baseline)
    value = format_number(model.estimates[comparison.metric].value)
    name = f"{baseline} alone ({comparison.metric_name} {value})"
    if not others:
        return f"Every network beats {name}."
    if not winners:
        best = max(pairs, key=lambda pair: pair.estimate.value)
        return (
            f"No network is shown to beat {name}; {best.first}, the best, differs by {_gain(best)}."
        )
    beat = "beats" if len(winners) == 1 else "beat"
    are = "is" if len(others) == 1 else "are"
    return f"{join_names(winners)} {beat} {name}; {join_names(others)} {are} not shown to."


def _gain(pair: Difference) -> str:
    value = format_number(pair.estimate.value, signed=True)
    return f"{value} (95 % interval {format_interval(pair.estimate)})"


def sentences_on_chance(comparison: Comparison) -> list[str]:
    """Say how sure the order is: probability of being best, and non-inferiority to the best."""
    if len(comparison.strategies) < 2:
        return []
    ranked = sorted(comparison.probability_best.items(), key=lambda item: -item[1])
    chances = ", ".join(f"{name} {format_probability(p)}" for name, p in ranked[:3])
    more = " …" if len(ranked) > 3 else "."
    sentences = [f"Probability of being the best of these: {chances}{more}"]
    within = [test["strategy"] for test in comparison.non_inferior if test["is_non_inferior"]]
    if within:
        sentences.append(
            f"Not worse than {comparison.strategies[0].name} by more than {comparison.margin:g} "
            f"{comparison.metric_name} (non-inferior, one-sided p < 0.025): {join_names(within)}."
        )
    return sentences


def _detectable(comparison: Comparison, pairs: list[Difference]) -> str:
    keys = [f"{pair.first} - {pair.second}" for pair in pairs]
    keys += [f"{pair.second} - {pair.first}" for pair in pairs]
    sizes = [comparison.detectable[key] for key in keys if key in comparison.detectable]
    if not any(sizes):
        return "On these patients they score exactly the same."
    size = format_span(min(sizes), max(sizes))
    return f"With these patients and seeds, 4 of 5 sweeps would find a difference of {size}."


def _list(pairs: list[Difference]) -> str:
    return "; ".join(f"{pair.second} ({_describe(pair)})" for pair in pairs)


def _describe(pair: Difference) -> str:
    e = pair.estimate
    interval = f"95 % interval {format_range(e.low, e.high)}"
    return f"difference {format_number(e.value)}, {interval}, p {format_p(pair.p_holm)}"
