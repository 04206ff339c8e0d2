"""Baselines that need no network: predictions from the prevalence (regression: the mean), from age
and sex, from how irregularly the heart beats, and from classical measurements of the ECG with age
and sex (`label_models`).

Each label is fitted on the training split. Predictions go to FOLDER/<name>/{valid,test}.parquet, as
a run writes them; FOLDER/baselines.json says which baselines were made, why others were not, and
from which data.
"""

# N records, K labels, F features

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from hpc_ecg.comparison.heartbeat import FEATURES, IRREGULARITY, Measured, measure_splits
from hpc_ecg.comparison.label_models import Model, check_can_fit, fit_best, fit_plain
from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.data.source import ShardSource
from hpc_ecg.evaluation.label_sample import LabelSample, metric_intervals
from hpc_ecg.evaluation.metrics import FloatArray, has_label
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.log import logger
from hpc_ecg.training.predict import as_predictions
from hpc_ecg.training.settings import FinetuneConfig

CONSTANTS = ("prevalence", "training_mean")
"""They predict the same for everybody, so they have no AUROC and no R²."""
SPLITS, NOTE = ("valid", "test"), {"made": [str], "left_out": {"*": str}}
REPLICATES = 2000
MAX_AGE = 90.0
"""Ages above count as this: data sets write all ages over 89 as one number, such as 300."""

Split = tuple[Dataset, Predictions]
"""Records, with their labels, age and sex; the predictions are zero."""
Fitted = tuple[dict[str, FloatArray], dict[str, Any]]
"""Logits or values [N, K] by split, and details for baselines.json."""


def write_baselines(config: FinetuneConfig, folder: Path, minutes: float = 10) -> list[str]:
    """Make all baselines of a run's data from all training records, also where the run itself used
    fewer; returns their names. Baselines of the same data are kept, unless the `minutes` for
    measuring ECGs were too few."""
    shards, labels = open_shards(replace(config.data, label_fraction=1.0, label_seed=None))
    task = config.data.task
    data: dict[str, Any] = {"data_index_sha256": shards.index_sha256, "labels": labels}
    data |= {"task": task, "fold": config.data.fold, "repeat": config.data.repeat}
    data |= {k: v for k in ("left_out_site", "site_column") if (v := getattr(config.data, k))}
    note_path = folder / "baselines.json"
    earlier = read_record(note_path, NOTE) if note_path.exists() else {}
    if earlier.get("data") == data and "ecg_measurements" in earlier["made"]:
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
        measured = measure_splits({s: splits[s][0] for s in splits}, folder, minutes)
        for name, fit in _baselines(task, measured).items():
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
    return fit_plain(valid, k, valid_N2)(test_N2)


def _baselines(task: str, measured: Measured | str) -> dict[str, Any]:
    """How each baseline is fitted, by name; takes the splits, returns Fitted."""
    constant = {"training_mean": _mean} if task == "regression" else {"prevalence": _prevalence}
    return constant | {
        "age_sex": _age_sex,
        "rr_irregularity": partial(_of_measurements, measured, IRREGULARITY),
        "ecg_measurements": partial(_of_measurements, measured, FEATURES),
    }


def _with_logits(predictions: Predictions, logit_NK: FloatArray) -> Predictions:
    probability_NK = None if _is_regression(predictions) else expit(logit_NK)
    return replace(predictions, logit_NK=logit_NK, probability_NK=probability_NK)


def _is_regression(predictions: Predictions) -> bool:
    return predictions.probability_NK is None


def _prevalence(splits: Mapping[str, Split]) -> Fitted:
    """A constant: it has a Brier score and a log loss, but no AUROC."""
    train, test = splits["train"][1], splits["test"][1]
    for k in range(len(train.labels)):
        check_can_fit(train, k)
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
    models = [fit_plain(train, k, x_NF["train"]) for k in range(len(train.labels))]
    return _predict(models, x_NF), details


def _of_measurements(
    measured: Measured | str, features: Sequence[str], splits: Mapping[str, Split]
) -> Fitted:
    """From these features of the ECG; if they are all, age and sex are added."""
    if isinstance(measured, str):
        raise ValueError(measured)
    (rows, measured_NF), train = measured, splits["train"][1]
    x_NF = {s: x[:, [FEATURES.index(name) for name in features]] for s, x in measured_NF.items()}
    missing = {split: np.isnan(x).sum(axis=0).tolist() for split, x in x_NF.items()}
    if np.isnan(x_NF["train"]).all():
        raise ValueError("heartbeats were found in no training record")
    names = {"age", "sex"} - set(train.labels) if len(features) == len(FEATURES) else set()
    groups = {s: {n: v for n, v in splits[s][1].groups.items() if n in names} for s in splits}
    if added := _known(groups["train"]):
        design = _design_of(groups["train"])
        x_NF = {s: np.c_[x, design(groups[s])[rows[s]]] for s, x in x_NF.items()}
    known = train.rows(rows["train"])
    fitted = [fit_best(known, k, x_NF["train"]) for k in range(len(train.labels))]
    details = {
        "trained_on": len(rows["train"]),
        "of_training_records": len(train),
        "features": [*features, *added],
        "missing": missing,
        "chosen": dict(zip(train.labels, [name for _, name in fitted], strict=True)),
    }
    return _predict([model for model, _ in fitted], x_NF), details


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


def _predict(models: Sequence[Model], x_NF: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Validation and test [N, K], by one model a label."""
    return {split: np.stack([model(x_NF[split]) for model in models], axis=1) for split in SPLITS}
