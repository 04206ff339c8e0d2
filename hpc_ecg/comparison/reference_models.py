"""Models beside the strategies: ensembles, weight soups and baselines that need no network.

An ensemble is the mean of the seeds' probabilities, a soup the mean of their weights: one model
each, so their intervals hold the chance of the patients alone. A baseline has no seed either; a
difference to it uses the strategy's seeds.
"""

# N records, K labels; S seeds, R replicates

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpc_ecg.comparison.baselines import CONSTANTS, NOTE, combine_with_age_sex
from hpc_ecg.comparison.results import RunResult, by_strategy
from hpc_ecg.comparison.scoring import Scorer, Scores, estimate_from, group_by_strategy
from hpc_ecg.evaluation.comparisons import Difference, Estimate, SeedScores
from hpc_ecg.evaluation.events import check_enough_events, events_by_label
from hpc_ecg.evaluation.families import compare_family
from hpc_ecg.evaluation.metrics import check_finite
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.hashing import check_file, check_record, read_record
from hpc_ecg.sweep.arms import LEFT_OUT_SITE

BASELINES = {
    "prevalence": "prevalence",
    "training_mean": "mean of the training split",
    "age_sex": "age and sex",
    "rr_irregularity": "beat-to-beat irregularity",
    "ecg_measurements": "ECG measurements, age and sex",
}
ModelKey = tuple[str, str]
"""Kind (ensemble, soup or baseline) and name."""


@dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    name: str
    kind: str
    """ensemble, soup or baseline."""
    estimates: dict[str, Estimate]
    """By metric; {} for a constant, which ranks no patient above another."""

    @property
    def title(self) -> str:
        return self.name if self.kind == "baseline" else f"{self.name} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Predictions in SWEEP/baselines/ by name, and the reason for each baseline left out."""

    test: dict[str, Predictions]
    valid: dict[str, Predictions]
    left_out: dict[str, str]


def read_baselines(folder: Path, test: Predictions) -> Baselines:
    """Read the baselines; leave out those of other records than the strategies' test set."""
    if not (folder / "baselines.json").exists():
        return Baselines(test={}, valid={}, left_out={})
    check_record(folder / "baselines.json")
    note = read_record(folder / "baselines.json", NOTE)
    baselines = Baselines(test={}, valid={}, left_out=dict(note["left_out"]))
    for name in (name for name in BASELINES if name in note["made"]):
        predictions = read_predictions(folder / name / "test.parquet").sorted()
        if not np.array_equal(predictions.record_N, test.record_N):
            baselines.left_out[name] = "it was made for another test set; make the report again"
            continue
        baselines.test[name] = predictions
        baselines.valid[name] = read_predictions(folder / name / "valid.parquet").sorted()
    return baselines


def baseline_folders(runs: Sequence[RunResult]) -> dict[str, RunResult]:
    """A run for each set of baselines, by their folder: one, or one for each site left out."""
    found: dict[str, RunResult] = {}
    for run in runs:
        arm = run.strategy.removeprefix(f"{run.base},")
        found.setdefault(f"baselines/{arm}" if LEFT_OUT_SITE in run.varied else "baselines", run)
    return found


def read_site_baselines(
    sweep_dir: Path, runs: Sequence[RunResult]
) -> tuple[dict[str, dict[str, list[Predictions]]], list[str]]:
    """Test predictions by baseline that ranks and by left-out site; and what is missing."""
    found: dict[str, dict[str, list[Predictions]]] = {}
    lines = []
    for folder, run in baseline_folders(runs).items():
        site, baselines = run.varied[LEFT_OUT_SITE], read_baselines(sweep_dir / folder, run.test)
        for name, test in baselines.test.items():
            if np.ptp(test.logit_NK, axis=0).all():
                found.setdefault(BASELINES[name], {})[site] = [test]
        lines += [f"{n}, without {site}: {why}" for n, why in baselines.left_out.items()]
    return found, lines


def average_seeds(runs: Sequence[RunResult]) -> dict[str, Predictions]:
    """The ensemble of each strategy that has more than one seed."""
    groups = by_strategy(runs).items()
    return {
        name: mean_prediction([run.test for run in group])
        for name, group in groups
        if len(group) > 1
    }


def read_soups(runs: Sequence[RunResult], sweep_dir: Path) -> dict[str, Predictions]:
    """The soups that the sweep made and that predict the records of the test set."""
    soups = {}
    for strategy in by_strategy(runs):
        path = sweep_dir / strategy / "soup" / "predictions.parquet"
        if path.exists():
            check_file(path, path.with_name("evaluation.json"))
            predictions = read_predictions(path).sorted()
            if np.array_equal(predictions.record_N, runs[0].test.record_N):
                soups[strategy] = predictions
    return soups


def score_reference_models(
    scorer: Scorer, models: Mapping[ModelKey, Predictions]
) -> dict[ModelKey, Scores]:
    """Score all models but constants, on the same draws of patients as the strategies."""
    keys = [(kind, name) for kind, name in models if name not in CONSTANTS]
    return dict(zip(keys, scorer.score([models[key] for key in keys]), strict=True))


def estimate_reference_models(
    scorer: Scorer, keys: Sequence[ModelKey], scored: Mapping[ModelKey, Scores]
) -> list[ReferenceModel]:
    models = []
    for kind, name in keys:
        estimates = {}
        if (kind, name) in scored:
            for metric in scorer.metrics:
                scores = _fixed(scored[kind, name], metric)
                estimates[metric] = estimate_from(scores, scorer.num_patients, metric)
        title = BASELINES.get(name, name)
        models.append(ReferenceModel(name=title, kind=kind, estimates=estimates))
    return models


def compare_with_baselines(
    scorer: Scorer, strategies: Mapping[str, SeedScores], scored: Mapping[ModelKey, Scores]
) -> list[Difference]:
    """Each strategy minus each baseline in the deciding metric, as one family."""
    metric = scorer.metrics[0]
    baselines = {
        BASELINES[name]: _fixed(model, metric)
        for (kind, name), model in scored.items()
        if kind == "baseline"
    }
    pairs = [(strategy, baseline) for baseline in baselines for strategy in strategies]
    models = {**strategies, **baselines}
    return compare_family(models, pairs, scorer.num_patients, metric=metric)


def gains_over_age_sex(
    scorer: Scorer,
    runs: Sequence[RunResult],
    baselines: Baselines,
    scored: Mapping[ModelKey, Scores],
) -> tuple[list[Difference], str]:
    """What each network adds to age and sex: a regression on both, minus age and sex alone.

    The regressions are fitted on validation; if one cannot be fitted, the text says why. Both
    results are empty if the sweep has no baseline of age and sex.
    """
    if "age_sex" not in baselines.test:
        return [], ""
    try:
        combined = [_with_age_sex(scorer, run, baselines) for run in runs]
    except ValueError as error:
        return [], str(error)
    keys = [(f"{run.strategy} + age and sex", run.seed) for run in runs]
    scored_runs = dict(zip(keys, scorer.score(combined), strict=True))
    fixed = {f"{run.strategy} + age and sex" for run in runs if run.is_fixed}
    metric = scorer.metrics[0]
    models = group_by_strategy(scorer.metrics, scored_runs, fixed)[metric]
    pairs = [(name, "age and sex") for name in models]
    models["age and sex"] = _fixed(scored["baseline", "age_sex"], metric)
    return compare_family(models, pairs, scorer.num_patients, metric=metric), ""


def _with_age_sex(scorer: Scorer, run: RunResult, baselines: Baselines) -> Predictions:
    valid = read_predictions(run.folder.predictions / "valid.parquet").sorted()
    check_finite(valid.logit_NK.ravel(), f"{run.name}, split valid")
    for name, counts in events_by_label(valid).items():
        if name in scorer.label_names:
            check_enough_events(counts, name, "adding age and sex")
    logit_NK = run.test.logit_NK.copy()
    for name in scorer.label_names:
        k = run.test.labels.index(name)
        logit_NK[:, k] = combine_with_age_sex(
            valid, run.test, baselines.valid["age_sex"], baselines.test["age_sex"], k
        )
    return replace(run.test, logit_NK=logit_NK)


def _fixed(model: Scores, metric: str) -> SeedScores:
    values, replicates = model
    return SeedScores(value={0: values[metric]}, replicate_R={0: replicates[metric]}, is_fixed=True)


def mean_prediction(predictions: list[Predictions]) -> Predictions:
    """The mean probability; for a regression, the mean value."""
    first = predictions[0]
    if first.probability_NK is None:
        return replace(first, logit_NK=np.mean([p.logit_NK for p in predictions], axis=0))
    # log-odds of the mean probability with q = 1 - p averaged on its own: near 1, p rounds to 1
    p_NK = np.mean(np.exp([-np.logaddexp(0, -p.logit_NK) for p in predictions]), axis=0)
    q_NK = np.mean(np.exp([-np.logaddexp(0, p.logit_NK) for p in predictions]), axis=0)
    return replace(first, logit_NK=np.log(p_NK) - np.log(q_NK), probability_NK=p_NK)
