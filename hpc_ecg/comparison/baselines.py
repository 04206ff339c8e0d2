"""What needs no network: predictions from the prevalence (regression: the mean), from age and sex,
and from how irregularly the heart beats. Each label is fitted on the training split, by logistic
regression or, for data.task=regression, a linear one.

In: a run's settings, for its data. Out: FOLDER/<name>/{valid,test}.parquet as a run writes them,
and FOLDER/baselines.json: which were made, why others were not, and what they rest on.
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

from hpc_ecg.atomic_io import read_json, write_json
from hpc_ecg.comparison.heartbeat import FEATURES, FEWEST_BEATS, irregularity
from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.data.source import ShardSource
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, brier, has_label, log_loss, why_not_scorable
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.predict import as_predictions
from hpc_ecg.training.settings import FinetuneConfig

logger = logging.getLogger("hpc_ecg")

CONSTANTS = ("prevalence", "training_mean")
"""Of yes/no labels and of regression; they rank nobody."""
SPLITS = ("valid", "test")
MOST_TRAINING_RECORDS = 2000
REPLICATES = 2000
OLDEST = 90.0
"""Older is this old: data sets write all ages over 89 as one number, such as 300."""

Split = tuple[Dataset, Predictions]
Made = tuple[dict[str, FloatArray], dict[str, Any]]
Model = Callable[[FloatArray], FloatArray]
"""[N, F] in, logits or values [N] out."""


def write_baselines(config: FinetuneConfig, folder: Path) -> list[str]:
    """Names of those that are there. Those of the same data are kept. They learn from all training
    records, also where a run had fewer of the labels."""
    shards, labels = open_shards(replace(config.data, label_fraction=1.0))
    data: dict[str, Any] = {"data_index_sha256": shards.index_sha256, "labels": labels}
    data |= {"task": config.data.task, "fold": config.data.fold, "repeat": config.data.repeat}
    note_path = folder / "baselines.json"
    note = read_json(note_path) if note_path.exists() else {}
    if note.get("data") == data:
        return list(note["made"])
    made: dict[str, Any] = {"data": data, "made": [], "left_out": {}, "details": {}}
    task = config.data.task
    with closing(ShardSource(shards, config.data)) as source:
        splits = {name: _open(name, shards, labels, source, task) for name in ("train", *SPLITS)}
        for name, make in _ways(task).items():
            try:
                logits, made["details"][name] = make(splits)
            except ValueError as error:
                made["left_out"][name] = str(error)
                logger.info("baseline %s left out: %s", name, error)
                continue
            for split, logit_NK in logits.items():
                path = folder / name / f"{split}.parquet"
                write_predictions(path, _predicting(splits[split][1], logit_NK))
            made["made"].append(name)
    write_json(note_path, made)
    return list(made["made"])


def _ways(task: str) -> dict[str, Callable[[Mapping[str, Split]], Made]]:
    constant = {"training_mean": _mean} if task == "regression" else {"prevalence": _prevalence}
    return constant | {"age_sex": _age_sex, "rr_irregularity": _irregularity}


def adds_to_age_sex(
    valid: Predictions,
    test: Predictions,
    age_sex_valid: Predictions,
    age_sex_test: Predictions,
    k: int,
) -> FloatArray:
    """What network and age and sex say together: test logits (regression: values) [N] of label k
    by a regression on both logits, fitted on validation."""
    for network, baseline in ((valid, age_sex_valid), (test, age_sex_test)):
        if network.record_N.tolist() != baseline.record_N.tolist():
            raise ValueError("network and baseline predict other records, or in another order")
    x_N2, both_N2 = (
        np.stack([baseline.logit_NK[:, k], network.logit_NK[:, k]], axis=1)
        for network, baseline in ((valid, age_sex_valid), (test, age_sex_test))
    )
    return _fit(valid, k, x_N2)(both_N2)


def _open(name: str, shards: ShardSet, labels: list[str], source: ShardSource, task: str) -> Split:
    dataset = open_split(shards, name, labels, source)
    return dataset, as_predictions(dataset, np.zeros((len(dataset), len(labels))), task)


def _predicting(predictions: Predictions, logit_NK: FloatArray) -> Predictions:
    probability_NK = None if _is_regression(predictions) else expit(logit_NK)
    return replace(predictions, logit_NK=logit_NK, probability_NK=probability_NK)


def _is_regression(predictions: Predictions) -> bool:
    return predictions.probability_NK is None


def _prevalence(splits: Mapping[str, Split]) -> Made:
    """A constant: it has a Brier score and a log loss, and ranks nobody."""
    train, test = splits["train"][1], splits["test"][1]
    for k, name in enumerate(train.labels):
        _check_two_classes(train.label_NK[:, k], name)
    share_K = np.nanmean(train.label_NK, axis=0)
    logits = {split: np.tile(logit(share_K), (len(splits[split][1]), 1)) for split in SPLITS}
    details: dict[str, Any] = {"auroc": "0.5 by definition: a constant ranks nobody"}
    resamples = draw_resamples(test.patient_N, REPLICATES, seed=0)
    for k, name in enumerate(train.labels):
        sample = LabelSample.from_predictions(_predicting(test, logits["test"]), k, resamples)
        y_N, p_N = sample.labels_N, sample.probabilities_N
        values = {"brier": brier(y_N, p_N), "log_loss": log_loss(y_N, p_N)}
        losses = metric_intervals(values, sample.loss_replicates(), sample)
        details[name] = {"prevalence_in_training": float(share_K[k])} | losses
    return logits, details


def _mean(splits: Mapping[str, Split]) -> Made:
    train = splits["train"][1]
    mean_K = np.nanmean(train.label_NK, axis=0)
    values = {split: np.tile(mean_K, (len(splits[split][1]), 1)) for split in SPLITS}
    details: dict[str, Any] = {"r2": "0 at most by definition: a constant explains nothing"}
    return values, details | dict(zip(train.labels, mean_K.tolist(), strict=True))


def _age_sex(splits: Mapping[str, Split]) -> Made:
    train = splits["train"][1]
    if own := {"age", "sex"} & set(train.labels):
        raise ValueError(f"{', '.join(sorted(own))} is what is to be predicted")
    design = _design_of(train.groups)
    x_NF = {split: design(own.groups) for split, (_, own) in splits.items()}
    details = {
        "trained_on": len(train),
        "missing": {
            split: {name: int(_is_missing(own.groups[name]).sum()) for name in _known(own.groups)}
            for split, (_, own) in splits.items()
        },
    }
    models = [_fit(train, k, x_NF["train"]) for k in range(len(train.labels))]
    return {split: _predict(models, x_NF[split]) for split in SPLITS}, details


def _irregularity(splits: Mapping[str, Split]) -> Made:
    train = splits["train"][1]
    drawn = np.random.default_rng(0).permutation(len(train))[:MOST_TRAINING_RECORDS]
    rows = {"train": np.sort(drawn)}
    rows |= {split: np.arange(len(splits[split][1])) for split in SPLITS}
    found = irregularity([(splits[split][0], rows[split]) for split in rows])
    x_NF = dict(zip(rows, found, strict=True))
    few = {split: int(np.isnan(values).any(axis=1).sum()) for split, values in x_NF.items()}
    if few["train"] == len(x_NF["train"]):
        raise ValueError(f"no training record has {FEWEST_BEATS} heartbeats")
    median_F = np.nanmedian(x_NF["train"], axis=0)
    x_NF = {split: np.where(np.isnan(values), median_F, values) for split, values in x_NF.items()}
    learned = replace(train, label_NK=train.label_NK[rows["train"]])
    models = [_fit(learned, k, x_NF["train"]) for k in range(len(train.labels))]
    details: dict[str, Any] = {"trained_on": len(drawn), "of_training_records": len(train)}
    details |= {"features": list(FEATURES), f"fewer_than_{FEWEST_BEATS}_beats": few}
    return {split: _predict(models, x_NF[split]) for split in SPLITS}, details


def _design_of(groups: Mapping[str, NDArray]) -> Callable[[Mapping[str, NDArray]], FloatArray]:
    """From age and sex of the training split: what makes columns of them. Age standardised and its
    square, a column for each sex but the commonest, one for what is missing (age: the median)."""
    known = _known(groups)
    if not known:
        raise ValueError("the shards' index has neither age nor sex")
    age_N = np.minimum(groups["age"], OLDEST) if "age" in known else np.zeros(1)
    median, mean, spread = np.nanmedian(age_N), np.nanmean(age_N), np.nanstd(age_N) or 1.0
    counted = Counter(groups["sex"].tolist()) if "sex" in known else Counter()
    sexes = [sex for sex, _ in counted.most_common() if sex != ""]

    def design(own: Mapping[str, NDArray]) -> FloatArray:
        columns = []
        if "age" in known:
            missing_N = np.isnan(own["age"])
            age_N = (np.where(missing_N, median, np.minimum(own["age"], OLDEST)) - mean) / spread
            columns += [age_N, age_N**2, missing_N]
        if "sex" in known:
            columns += [own["sex"] == sex for sex in sexes[1:]]
            columns += [~np.isin(own["sex"].astype(str), sexes)]
        return np.stack(columns, axis=1).astype(np.float64)

    return design


def _known(groups: Mapping[str, NDArray]) -> list[str]:
    """Of age and sex, what is there for anybody."""
    return [n for n in ("age", "sex") if n in groups and not _is_missing(groups[n]).all()]


def _is_missing(values_N: NDArray) -> NDArray:
    return np.isnan(values_N) if values_N.dtype.kind == "f" else values_N == ""


def _fit(known: Predictions, k: int, x_NF: FloatArray) -> Model:
    """Label k from x. scikit-learn's own penalty (C = 1) keeps the logistic one finite where few
    records tell classes apart."""
    label_N = known.label_NK[:, k]
    keep_N = has_label(label_N)
    if _is_regression(known):
        if len(np.unique(label_N[keep_N])) < 2:
            raise ValueError(f"{known.labels[k]} has not two values in the records to be fitted on")
        linear = make_pipeline(StandardScaler(), LinearRegression())
        return linear.fit(x_NF[keep_N], label_N[keep_N]).predict
    _check_two_classes(label_N, known.labels[k])
    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    return logistic.fit(x_NF[keep_N], label_N[keep_N]).decision_function


def _predict(models: list[Model], x_NF: FloatArray) -> FloatArray:
    return np.stack([model(x_NF) for model in models], axis=1)


def _check_two_classes(label_N: FloatArray, name: str) -> None:
    if reason := why_not_scorable(label_N[has_label(label_N)]):
        raise ValueError(f"{name}: {reason} in the records it would be fitted on")
