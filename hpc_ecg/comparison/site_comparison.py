"""The strategies of a sweep that leaves out one site at a time, against each other and against
baselines: each difference in AUROC at the sites that both were tested on, its mean, and what to
expect at a new site.

All pairs are one family, and those with baselines another, as in the report of other sweeps.
"""

# N records, S seeds

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_ecg.comparison.scoring import is_better, pairs_with
from hpc_ecg.comparison.verdict import baseline_sentence, power_sentence, rank_sentences
from hpc_ecg.evaluation.comparisons import Difference
from hpc_ecg.evaluation.events import MIN_EVENTS, count_events, scarce
from hpc_ecg.evaluation.families import Pair, judge_estimates
from hpc_ecg.evaluation.intervals import t_quantile
from hpc_ecg.evaluation.metrics import has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.site_differences import MIN_SITES, differences_at_site, mean_over_sites
from hpc_ecg.evaluation.sites import OF_PRIOR
from hpc_ecg.reporting.numbers import count, format_number, format_range

FEW_SITES = 5
Tests = Mapping[str, Mapping[int, Predictions]]
"""A model's test predictions by site and seed."""


@dataclass(frozen=True, kw_only=True)
class SiteDifference:
    pair: Difference
    by_site: dict[str, dict[str, float]]
    """Value and 95 % interval."""
    new_low: float | None
    new_high: float | None


def compare_over_sites(
    models: Mapping[str, Tests], pairs: Sequence[Pair], k: int, fixed: Collection[str], labels: int
) -> list[SiteDifference]:
    """The differences of these pairs on label k, as one family for each of so many `labels`. Pairs
    with fewer than MIN_SITES sites in common are left out; `fixed` models have no seeds."""
    at: dict[Pair, dict[str, tuple[float, float]]] = {pair: {} for pair in pairs}
    for site in dict.fromkeys(site for tests in models.values() for site in tests):
        tested = {name: [*tests[site].values()] for name, tests in models.items() if site in tests}
        first = next(iter(tested.values()))[0]
        keep_N = has_label(first.label_NK[:, k])
        label_N, patient_N = first.label_NK[keep_N, k], first.patient_N[keep_N]
        if scarce(count_events(label_N, patient_N), MIN_EVENTS):
            continue
        scores = {
            name: np.stack([m.logit_NK[keep_N, k] for m in ms]) for name, ms in tested.items()
        }
        here = [pair for pair in pairs if {*pair} <= tested.keys()]
        weight_N = first.weights(k)[keep_N]
        for pair, value in differences_at_site(label_N, scores, here, patient_N, weight_N).items():
            at[pair][site] = value
    at = {pair: values for pair, values in at.items() if len(values) >= MIN_SITES}
    seeds = {
        name: {s for by_seed in tests.values() for s in by_seed} for name, tests in models.items()
    }
    known = {name for name in models if name in fixed or len(seeds[name]) > 1}
    means = [mean_over_sites([*values.values()], {*pair} <= known) for pair, values in at.items()]
    trained = [sorted(set().union(*(seeds[n] for n in pair if n not in fixed))) for pair in at]
    judged = judge_estimates([*at], [estimate for estimate, _ in means], trained, labels)
    return [
        SiteDifference(pair=pair, by_site=_intervals(values), new_low=new[0], new_high=new[1])
        for pair, values, (_, new) in zip(judged, at.values(), means, strict=True)
    ]


def _intervals(values: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    half = {site: t_quantile(np.inf) * variance**0.5 for site, (_, variance) in values.items()}
    return {
        site: {"value": value, "low": value - half[site], "high": value + half[site]}
        for site, (value, _) in values.items()
    }


def site_sentences(
    auroc: Mapping[str, Mapping[str, float]],
    strategies: Sequence[str],
    found: Sequence[SiteDifference],
    against: Sequence[SiteDifference],
    labels: int,
) -> list[str]:
    """The verdict, from each model's AUROC over sites, the pairs of strategies and those with
    baselines. What few sites cannot tell is said."""
    if len(strategies) < 2:
        sentences = [f"Only {strategies[0]} is finished: there is nothing to compare it with."]
    elif not found:
        sentences = ["Strategies are not compared: that takes two sites or more."]
    else:
        sentences = _rank(auroc, strategies, found)
    if len(found) * labels > 1:
        all_at_once = f"hold for all {len(found) * labels} comparisons at once; those at a new site"
        sentences.append(f"(Intervals of differences and p {all_at_once} for one.)")
    for name in dict.fromkeys(one.pair.second for one in against):
        pairs = [one.pair for one in against if one.pair.second == name]
        sentences.append(baseline_sentence(name, "mean AUROC", auroc[name]["value"], pairs))
    return sentences


def _rank(
    auroc: Mapping[str, Mapping[str, float]],
    strategies: Sequence[str],
    found: Sequence[SiteDifference],
) -> list[str]:
    """Which strategy leads, by the sum of its differences, and what it is shown to beat."""
    every = [one.pair for one in found]
    lead = {s: sum(p.estimate.value for p in pairs_with(every, s)) for s in strategies}
    best = max(lead, key=lambda name: lead[name])
    of_best = [one for one in found if best in (one.pair.first, one.pair.second)]
    pairs, value = pairs_with(every, best), auroc[best]
    interval = format_range(value["low"], value["high"])
    text = f"{format_number(value['value'])}, 95 % interval {interval}"
    sentences = rank_sentences(best, "mean AUROC", text, pairs)
    num = min(len(one.by_site) for one in of_best)
    sentences[0] = f"Over {count(num, 'site')}: {sentences[0]}"
    new = []
    for one, pair in zip(of_best, pairs, strict=True):
        if one.new_low is not None and one.new_high is not None:
            ends = sorted(
                (one.new_low, one.new_high) if pair == one.pair else (-one.new_low, -one.new_high)
            )
            new.append(f"{format_range(*ends)} against {pair.second}")
    if new:
        sentences.append(
            f"At a new site, its difference is {'; '.join(new)} (95 % prediction interval)."
        )
    if num < FEW_SITES:
        reach = f"intervals reach {t_quantile(num - 1):.1f} standard errors to each side"
        nothing = ", and what to expect at a new site cannot be said" if num <= OF_PRIOR else ""
        sentences.append(f"{num} sites show little of how sites differ: {reach}{nothing}.")
    if alike := [p for p in pairs if p.estimate.includes_seeds and not is_better(p)]:
        sentences.append(power_sentence([p.detectable for p in alike], "auroc", "sites"))
    return sentences
