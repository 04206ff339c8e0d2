"""The strategies of a sweep that leaves out one site at a time, against each other and against
baselines: differences in AUROC at each site, on average (random effects) and at a new site."""

# N records

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_ecg.comparison.verdict import baseline_sentence, rank_sentences
from hpc_ecg.evaluation.comparisons import Difference, SeedScores
from hpc_ecg.evaluation.events import MIN_EVENTS, count_events, scarce
from hpc_ecg.evaluation.families import Pair, judge_estimates
from hpc_ecg.evaluation.intervals import t_quantile
from hpc_ecg.evaluation.metrics import has_label
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.evaluation.sites import OF_PRIOR, mean_difference, site_differences
from hpc_ecg.reporting.numbers import format_range, format_with_interval

FEW_SITES = 5
SiteTests = dict[str, dict[str, list[Predictions]]]
"""Test predictions of each seed, by model and site."""
SiteDifference = tuple[Difference, dict[str, Any]]
"""The mean; `sites`: value and 95 % interval by site; `new_low` and `new_high`, or None."""


def compare_over_sites(
    models: SiteTests, pairs: Sequence[Pair], k: int, seeds: Mapping[str, SeedScores], families: int
) -> list[SiteDifference]:
    """The differences of these pairs on label k, as one of so many families; pairs with fewer than
    two sites in common are left out. `seeds` says which seeds a model has, or that it is fixed."""
    at: dict[Pair, dict[str, tuple[float, float]]] = {pair: {} for pair in pairs}
    for site in dict.fromkeys(site for tests in models.values() for site in tests):
        tests = {name: sites[site] for name, sites in models.items() if site in sites}
        first = next(iter(tests.values()))[0]
        keep_N = has_label(first.label_NK[:, k])
        data = first.label_NK[keep_N, k], first.patient_N[keep_N], first.weights(k)[keep_N]
        if scarce(count_events(*data[:2]), MIN_EVENTS):
            continue
        logits = {name: [test.logit_NK[keep_N, k] for test in tests[name]] for name in tests}
        both = [pair for pair in pairs if {*pair} <= tests.keys()]
        for pair, value in site_differences(logits, both, *data).items():
            at[pair][site] = value
    means = {
        pair: mean_difference(values, all(seeds[name].includes_seeds for name in pair))
        for pair, values in at.items()
        if len(values) > 1
    }
    judged = judge_estimates(seeds, [*means], [mean for mean, _ in means.values()], families)
    return [(pair, more) for pair, (_, more) in zip(judged, means.values(), strict=True)]


def site_sentences(
    auroc: Mapping[str, Mapping[str, Any]],
    found: Sequence[SiteDifference],
    against: Sequence[SiteDifference],
) -> list[str]:
    """The verdict, from each model's AUROC over sites and the differences between strategies (the
    best comes first) and to baselines; with what few sites cannot tell."""
    sentences = ["Strategies are not compared: that takes two of them, at two sites or more."]
    if found:
        best = found[0][0].first
        of_best = [(pair, more) for pair, more in found if pair.first == best]
        value = format_with_interval(auroc[best])
        sentences = rank_sentences(best, "mean AUROC", value, [pair for pair, _ in of_best])
        num = min(len(more["sites"]) for _, more in of_best)
        sentences[0] = f"Over {num} sites: {sentences[0]}"
        new = [
            f"{format_range(more['new_low'], more['new_high'])} against {pair.second}"
            for pair, more in of_best
            if more["new_low"] is not None
        ]
        if new:
            sentences.append(
                f"At a new site, it differs by {'; '.join(new)} (prediction interval)."
            )
        if num < FEW_SITES:
            reach = f"intervals reach {t_quantile(num - 1):.1f} standard errors to each side"
            nothing = ", and nothing can be said of a new site" * (num <= OF_PRIOR)
            sentences.append(f"{num} sites show little of how sites differ: {reach}{nothing}.")
    for name in dict.fromkeys(pair.second for pair, _ in against):
        pairs = [pair for pair, _ in against if pair.second == name]
        sentences.append(baseline_sentence(name, "mean AUROC", auroc[name].get("value"), pairs))
    return sentences
