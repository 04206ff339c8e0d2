"""The verdict in three sentences, for the top of the page: which is best, what it is shown to beat,
and whether a network is needed. Of a single run: how well it ranks, calibrates and decides.

The rules are those of verdict.py, which says the same with every number.
"""

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.scoring import is_better, pairs_with, put_first
from hpc_ecg.comparison.verdict import verdict_sentences
from hpc_ecg.comparison.wording import fitted_for, format_estimate, format_metric, whom_it_flags
from hpc_ecg.evaluation.comparisons import Difference
from hpc_ecg.reporting.numbers import count, format_number, join_names


def headline(comparison: Comparison) -> list[str]:
    """At most three sentences; one where a single strategy is finished."""
    best = comparison.strategies[0]
    pairs = pairs_with(comparison.pairs, best.name)
    value = f"{comparison.metric_name} {format_estimate(best.estimates[comparison.metric])}"
    if not pairs:
        return verdict_sentences(comparison) + _against_baselines(comparison)
    if comparison.best_corrected:
        corrected = format_estimate(comparison.best_corrected)
        value += f"; corrected for being the highest of {len(pairs) + 1}: {corrected}"
    is_best = all(map(is_better, pairs))
    rank = "is best" if is_best else f"has the highest {comparison.metric_name} on these patients"
    sentences = [f"{best.name} {rank} ({value}).", _against_strategies(pairs)]
    return sentences + _against_baselines(comparison)


def _against_strategies(pairs: list[Difference]) -> str:
    """`pairs` have the best strategy first."""
    better = [pair.second for pair in pairs if is_better(pair)]
    unknown = [pair.second for pair in pairs if not pair.estimate.includes_seeds]
    alike = [pair.second for pair in pairs if pair.second not in {*better, *unknown}]
    parts = [f"is better than {join_names(better)}"] if better else []
    parts += [f"is not shown to be better than {join_names(alike)}"] if alike else []
    if unknown:
        parts.append(f"cannot be judged against {join_names(unknown)} from one seed")
    return f"It {'; it '.join(parts)}."


def _against_baselines(comparison: Comparison) -> list[str]:
    best = comparison.strategies[0].name
    pairs = [pair for pair in comparison.baselines if pair.first == best]
    values = {m.name: m.estimates for m in comparison.reference_models if m.estimates}
    known = {name: e[comparison.metric].value for name, e in values.items()}
    names = {p.second: f"{p.second} ({format_number(known[p.second])})" for p in pairs}
    beaten = [names[pair.second] for pair in pairs if is_better(pair)]
    losses = [pair.second for pair in pairs if is_better(put_first(pair, pair.second))]
    others = [n for name, n in names.items() if n not in beaten and name not in losses]
    parts = [f"beats {join_names(beaten)}"] if beaten else []
    parts += [f"is worse than {join_names([names[name] for name in losses])}"] if losses else []
    parts += [f"is not shown to beat {join_names(others)}"] if others else []
    return [f"Compared with models that need no network, it {'; it '.join(parts)}."] * bool(parts)


def run_sentences(comparison: Comparison) -> list[str]:
    """How well one run ranks; with a single yes/no label, its calibration and first threshold."""
    run, label = comparison.selected[0], comparison.labels[0]
    value = format_estimate(comparison.strategies[0].estimates[comparison.metric])
    counts = comparison.counts[label]
    tested = f"{count(counts['n'], 'ECG')} of {count(counts['n_patients'], 'patient')}"
    if "n_positive" in counts:
        tested += f", {counts['n_positive']:,} positive"
    sentences = [f"{run.run.name}: {comparison.metric_name} {value}, on {tested}."]
    evaluation = run.label(label) if len(comparison.labels) == 1 else {}
    if calibration := evaluation.get("calibration"):
        parts = [f"{key} {format_metric(calibration[key])}" for key in ("slope", "intercept")]
        sentences.append(f"Calibration on the test set: {', '.join(parts)} (1 and 0 are perfect).")
    for method, point in list(run.at_thresholds(label).items())[: len(sentences) - 1]:
        rates = [f"{key} {format_metric(point[key])}" for key in ("sensitivity", "specificity")]
        flags = f" It {text}." if (text := whom_it_flags(point)) else ""
        sentences.append(
            f"At the threshold for {fitted_for(method)}, set on validation: {', '.join(rates)}."
            + flags
        )
    return sentences
