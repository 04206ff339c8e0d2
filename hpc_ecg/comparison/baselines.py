"""Baselines that need no network: predictions from the prevalence (regression: the mean), from age
and sex, and from how irregularly the heart beats.

Each label is fitted on the training split, by logistic regression or, for data.task=regression, by
linear regression. Predictions go to FOLDER/<name>/{valid,test}.parquet, as a run writes them;
FOLDER/baselines.json says which baselines were made, why others were not, and from which data.
"""

# N records, K labels, F features

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpc_ecg.comparison.heartbeat import FEATURES, MIN_BEATS, irregularity
from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.data.source import ShardSource
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, has_label, why_not_scorable
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.training.predict import as_predictions
from hpc_ecg.training.settings import FinetuneConfig

logger = logging.getLogger("hpc_ecg")

CONSTANTS = ("prevalence", "training_mean")
"""They predict the same for everybody, so they have no AUROC and no R²."""
SPLITS = ("valid", "test")
MAX_TRAINING_RECORDS = 2000
REPLICATES = 2000
MAX_AGE = 90.0
"""Ages above count as this: data sets write all ages over 89 as one number, such as 300."""

Split = tuple[Dataset, Predictions]
"""Records, with their labels, age and sex; the predictions are zero."""
Fitted = tuple[dict[str, FloatArray], dict[str, Any]]
"""Logits or values [N, K] by split, and details for baselines.json."""
Model = Callable[[FloatArray], FloatArray]
"""[N, F] in, logits or values [N] out."""


def write_baselines(config: FinetuneConfig, folder: Path) -> list[str]:
    """Make all baselines of a run's data from all training records, also where the run itself used
    fewer; returns their names. Baselines of the same data are kept."""
    shards, labels = open_shards(replace(config.data, label_fraction=1.0))
    task = config.data.task
    data: dict[str, Any] = {"data_index_sha256": shards.index_sha256, "labels": labels}
    data |= {"task": task, "fold": config.data.fold, "repeat": config.data.repeat}
    note_path = folder / "baselines.json"
    if note_path.exists() and (earlier := read_record(note_path)).get("data") == data:
        return list(earlier["made"])
    made: list[str] = []
    left_out: dict[str, str] = {}
    details: dict[str, Any] = {}
    with closing(ShardSource(shards, config.data)) as source:
        splits = {}
        for split in ("train", *SPLITS):
            dataset = open_split(shards, split, labels, source)
            zeros_NK = np.zeros((len(dataset), len(labels)))
            splits[split] = dataset, as_predictions(dataset, zeros_NK, task)
        for name, fit in _baselines(task).items():
            try:
                logits, details[name] = fit(splits)
            except ValueError as error:
                left_out[name] = str(error)
                logger.info("baseline %s left out: %s", name, error)
                continue
            for split, logit_NK in logits.items():
                predictions = _with_logits(splits[split][1], logit_NK)
                write_predictions(folder / name / f"{split}.parquet", predictions)
            made.append(name)
    note = {"data": data, "made": made, "left_out": left_out, "details": details}
    files = [folder / name / f"{split}.parquet" for name in made for split in SPLITS]
    write_record(note_path, note, files)
    return made


def combine_with_age_sex(
    valid: Predictions,
    test: Predictions,
    age_sex_valid: Predictions,
    age_sex_test: Predictions,
    k: int,
) -> FloatArray:
    """Combine a network with age and sex: test logits (regression: values) [N] of label k, by a
    regression on both logits that is fitted on validation."""
    features = []
    for network, baseline in ((valid, age_sex_valid), (test, age_sex_test)):
        if network.record_N.tolist() != baseline.record_N.tolist():
            raise ValueError("network and baseline predict other records, or in another order")
        features.append(np.stack([baseline.logit_NK[:, k], network.logit_NK[:, k]], axis=1))
    valid_N2, test_N2 = features
    return _fit(valid, k, valid_N2)(test_N2)


def _baselines(task: str) -> dict[str, Callable[[Mapping[str, Split]], Fitted]]:
    constant = {"training_mean": _mean} if task == "regression" else {"prevalence": _prevalence}
    return constant | {"age_sex": _age_sex, "rr_irregularity": _irregularity}


def _with_logits(predictions: Predictions, logit_NK: FloatArray) -> Predictions:
    probability_NK = None if _is_regression(predictions) else expit(logit_NK)
    return replace(predictions, logit_NK=logit_NK, probability_NK=probability_NK)


def _is_regression(predictions: Predictions) -> bool:
    return predictions.probability_NK is None


def _prevalence(splits: Mapping[str, Split]) -> Fitted:
    """A constant: it has a Brier score and a log loss, but no AUROC."""
    train, test = splits["train"][1], splits["test"][1]
    for k, name in enumerate(train.labels):
        _check_two_classes(train.label_NK[:, k], name)
    weight_KN = np.stack([train.weights(k) for k in range(len(train.labels))])
    weight_KN = weight_KN * has_label(train.label_NK.T)
    prevalence_K = np.nansum(weight_KN * train.label_NK.T, axis=1) / weight_KN.sum(axis=1)
    logits = _constant(splits, logit(prevalence_K))
    details: dict[str, Any] = {"auroc": "0.5 by definition: a constant ranks nobody"}
    resamples = draw_resamples(test.patient_N, REPLICATES, seed=0)
    for k, name in enumerate(train.labels):
        sample = LabelSample.from_predictions(_with_logits(test, logits["test"]), k, resamples)
        losses = metric_intervals(sample.losses(), sample.loss_replicates(), sample)
        details[name] = {"prevalence_in_training": float(prevalence_K[k])} | losses
    return logits, details


def _mean(splits: Mapping[str, Split]) -> Fitted:
    train = splits["train"][1]
    mean_K = np.nanmean(train.label_NK, axis=0)
    details: dict[str, Any] = {"r2": "0 at most by definition: a constant explains nothing"}
    details |= dict(zip(train.labels, mean_K.tolist(), strict=True))
    return _constant(splits, mean_K), details


def _constant(splits: Mapping[str, Split], value_K: FloatArray) -> dict[str, FloatArray]:
    return {split: np.tile(value_K, (len(splits[split][1]), 1)) for split in SPLITS}


def _age_sex(splits: Mapping[str, Split]) -> Fitted:
    train = splits["train"][1]
    if predicted := {"age", "sex"} & set(train.labels):
        raise ValueError(f"{', '.join(sorted(predicted))} is what is to be predicted")
    design = _design_of(train.groups)
    groups = {split: predictions.groups for split, (_, predictions) in splits.items()}
    x_NF = {split: design(values) for split, values in groups.items()}
    missing = {
        split: {name: int(_is_missing(values[name]).sum()) for name in _known(values)}
        for split, values in groups.items()
    }
    details = {"trained_on": len(train), "missing": missing}
    return _fit_and_predict(train, x_NF), details


def _irregularity(splits: Mapping[str, Split]) -> Fitted:
    train = splits["train"][1]
    drawn = np.random.default_rng(0).permutation(len(train))[:MAX_TRAINING_RECORDS]
    rows = {"train": np.sort(drawn)}
    rows |= {split: np.arange(len(splits[split][1])) for split in SPLITS}
    features = irregularity([(splits[split][0], rows[split]) for split in rows])
    x_NF = dict(zip(rows, features, strict=True))
    few = {split: int(np.isnan(values).any(axis=1).sum()) for split, values in x_NF.items()}
    if few["train"] == len(x_NF["train"]):
        raise ValueError(f"no training record has {MIN_BEATS} heartbeats")
    median_F = np.nanmedian(x_NF["train"], axis=0)
    x_NF = {split: np.where(np.isnan(values), median_F, values) for split, values in x_NF.items()}
    details = {
        "trained_on": len(drawn),
        "of_training_records": len(train),
        "features": list(FEATURES),
        f"fewer_than_{MIN_BEATS}_beats": few,
    }
    return _fit_and_predict(replace(train, label_NK=train.label_NK[rows["train"]]), x_NF), details


def _design_of(groups: Mapping[str, NDArray]) -> Callable[[Mapping[str, NDArray]], FloatArray]:
    """Learn from the training split how age and sex become columns: standardized age and its
    square, one column for each sex but the commonest, and one for missing values (a missing age is
    the median)."""
    known = _known(groups)
    if not known:
        raise ValueError("the shards' index has neither age nor sex")
    age_N = np.minimum(groups["age"], MAX_AGE) if "age" in known else np.zeros(1)
    median, mean, spread = np.nanmedian(age_N), np.nanmean(age_N), np.nanstd(age_N) or 1.0
    counts = Counter(groups["sex"].tolist()) if "sex" in known else Counter()
    sexes = [sex for sex, _ in counts.most_common() if sex != ""]

    def design(values: Mapping[str, NDArray]) -> FloatArray:
        columns = []
        if "age" in known:
            missing_N = np.isnan(values["age"])
            age_N = np.where(missing_N, median, np.minimum(values["age"], MAX_AGE))
            age_N = (age_N - mean) / spread
            columns += [age_N, age_N**2, missing_N]
        if "sex" in known:
            columns += [values["sex"] == sex for sex in sexes[1:]]
            columns += [~np.isin(values["sex"].astype(str), sexes)]
        return np.stack(columns, axis=1).astype(np.float64)

    return design


def _known(groups: Mapping[str, NDArray]) -> list[str]:
    """Which of age and sex at least one record has."""
    return [n for n in ("age", "sex") if n in groups and not _is_missing(groups[n]).all()]


def _is_missing(values_N: NDArray) -> NDArray:
    return np.isnan(values_N) if values_N.dtype.kind == "f" else values_N == ""


def _fit_and_predict(train: Predictions, x_NF: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Fit each label on the training split; predict validation and test [N, K]."""
    models = [_fit(train, k, x_NF["train"]) for k in range(len(train.labels))]
    return {split: np.stack([model(x_NF[split]) for model in models], axis=1) for split in SPLITS}


def _fit(known: Predictions, k: int, x_NF: FloatArray) -> Model:
    """Fit label k. scikit-learn's default penalty (C = 1) keeps the logistic regression finite
    where few records separate the classes."""
    label_N, name = known.label_NK[:, k], known.labels[k]
    keep_N = has_label(label_N)
    if _is_regression(known):
        if len(np.unique(label_N[keep_N])) < 2:
            raise ValueError(f"{name} has fewer than two values in the records to fit on")
        linear = make_pipeline(StandardScaler(), LinearRegression())
        return linear.fit(x_NF[keep_N], label_N[keep_N]).predict
    _check_two_classes(label_N, name)
    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    weight_N = known.weights(k)[keep_N]
    fit = logistic.fit(x_NF[keep_N], label_N[keep_N], logisticregression__sample_weight=weight_N)
    return fit.decision_function


def _check_two_classes(label_N: FloatArray, name: str) -> None:
    if reason := why_not_scorable(label_N[has_label(label_N)]):
        raise ValueError(f"{name}: {reason} in the records it would be fitted on")
