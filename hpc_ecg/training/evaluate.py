"""Evaluate a finished run on its test split, or any weights on any shards.

Thresholds and calibration are not fitted again: they come from the run's validation split.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hpc_ecg.config.load import to_yaml
from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.source import ShardSource
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.evaluation.predictions import (
    check_evaluation_folder,
    read_predictions,
    write_predictions,
)
from hpc_ecg.evaluation.scores import evaluate_predictions, fit_calibrators, fit_operating_points
from hpc_ecg.evaluation.thresholds import points_by_method
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.reporting.numbers import count, format_with_interval
from hpc_ecg.safe_reading import read_json
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, choose_stage_inputs
from hpc_ecg.training.open_run import finished_run, load_run, with_start
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import stages_of, trains_head_only
from hpc_ecg.training.try_kernels import try_kept_kernels
from hpc_ecg.weights import load_model
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint

SPLIT, SPLITS = "test", ("test", "valid", "all")
KEYED = "p[0-9a-f]{16}"  # a pseudonym that is the same in every table
REPLICATES = 2000
INDEX = {"data_index_sha256": str}

Targets = Sequence[tuple[str, float]]


def evaluate(config: FinetuneConfig) -> dict[str, Any]:
    """Predict the test split of the run in `config.run_dir` and score it.

    Writes predictions/test.parquet and evaluation.json, and returns the content of the latter.
    ValueError for an unfinished run, for settings that differ from the run's and change the
    result, and for predictions that cannot be scored.
    """
    folder, config = finished_run(config.run_dir), with_start(config)
    folder.check_same_config(to_yaml(config))
    shards, labels = open_shards(config.data)
    started_on = read_record(folder.environment, INDEX)["data_index_sha256"]
    if shards.index_sha256 != started_on:
        raise ValueError(
            f"data.shards={config.data.shards}, or data.label_table, is not what "
            f"{folder.path} was trained on; its test split could hold patients that it trained on"
        )
    stages = stages_of(config.train, config.optim, config.init.path is not None)
    path = folder.predictions / f"{SPLIT}.parquet"
    with _inference_engine(config, folder.path) as engine:
        test = open_split(shards, SPLIT, labels, ShardSource(shards, config.data))
        model = load_model(folder.best, model_config=config.model)
        try_kept_kernels(engine, config, model, test)
        model.to(engine.device)
        cache = FeatureCache(engine=engine, config=config, setting=config.train.feature_cache)
        head_only = trains_head_only(stages, stages[-1])
        inputs = choose_stage_inputs(cache, model, test, test, head_only, trains=False)
        _predict(engine, inputs.module, inputs.valid, config.data, labels, path)
        return engine.run_on_rank_zero(
            lambda: _score(path, folder.evaluation, config.data.task, folder.best, {"split": SPLIT})
        )


def evaluate_weights(
    config: FinetuneConfig, weights: Path, out: Path, split: str = SPLIT, targets: Targets = ()
) -> dict[str, Any]:
    """Predict with any weights (a file, or a folder like best/), and score.

    data.labels of `config` are columns of its shards, in the order of the weights' labels.
    `targets` are more thresholds to fit on validation, such as ("sensitivity", 0.95). Writes
    predictions.parquet and evaluation.json into `out`, and returns the content of the latter.
    ValueError for signals of another kind, missing labels, or records that the run was trained on.
    """
    check_evaluation_folder(out)
    if split not in SPLITS:
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    checkpoint = read_checkpoint(weights)
    names = checkpoint.labels or config.data.labels
    data = replace(config.data, labels=config.data.labels or names)
    opened, columns = open_shards(data)
    _check_fits_weights(opened, columns, checkpoint, names, weights)
    renamed = {f"ipcw.{a}": f"ipcw.{b}" for a, b in zip(columns, names, strict=False)}
    opened = replace(opened, index=opened.index.rename(columns=renamed))
    about = {"split": split, "shards": opened.name, "data_index_sha256": opened.index_sha256}
    about["note"] = check_unseen(RunFolder(config.run_dir), opened, split)
    if split == "all":
        opened = replace(opened, index=opened.index.assign(split=split))
    path = out / "predictions.parquet"
    with _inference_engine(config, out) as engine, closing(ShardSource(opened, data)) as source:
        dataset = open_split(opened, split, columns, source)
        model = load_model(weights, model_config=config.model)
        try_kept_kernels(engine, config, model, dataset)
        _predict(engine, model, dataset, data, names or columns, path)
        fitted_in = weights if weights.is_dir() else weights.parent
        return engine.run_on_rank_zero(
            lambda: _score(path, out / "evaluation.json", data.task, fitted_in, about, targets)
        )


def _check_fits_weights(
    shards: ShardSet, columns: list[str], checkpoint: Checkpoint, names: list[str], weights: Path
) -> None:
    """ValueError if the weights predict another number of labels, or need other signals."""
    if len(columns) != len(names or columns):
        raise ValueError(
            f"data.labels={columns} are {len(columns)}, {weights} predicts {len(names)} "
            f"({', '.join(names)}); give the shards' column for each of them, in that order"
        )
    if checkpoint.signal is not None:
        shards_name = f"data.shards={shards.name}"
        check_same_signal(shards.signal, checkpoint.signal, shards_name, str(weights))


@contextmanager
def _inference_engine(config: FinetuneConfig, folder: Path) -> Iterator[Engine]:
    """An engine without sharding: when nothing trains, each process can hold the whole model."""
    engine = Engine(config.engine.for_inference(), folder)
    with closing(engine), engine.share_failures():
        yield engine


def _predict(
    engine: Engine,
    module: nn.Module,
    dataset: Dataset,
    data: DataConfig,
    labels: list[str],
    path: Path,
) -> None:
    """Write the predictions of a split, under the names `labels`."""
    engine.prepare_inference(module)
    logits_NK = predict(engine, dataset, data.batch_size)
    predictions = as_predictions(dataset, logits_NK, data.task)
    if engine.is_rank_zero:
        write_predictions(path, replace(predictions, labels=labels))


def check_unseen(run: RunFolder, shards: ShardSet, split: str) -> str:
    """Say what was compared; ValueError if the split holds records that the run trained on."""
    trained_on = ""
    if run.environment.exists():
        trained_on = read_record(run.environment, INDEX)["data_index_sha256"]
    if trained_on in ("", shards.index_sha256):
        if split == "all":
            raise ValueError(
                f"{shards.name} is what {run.path} was trained on; evaluate its split test, or "
                "give another cohort with --shards"
            )
        return "the run's own cohort" + (", where thresholds were fitted" if split != SPLIT else "")
    apart = "patients can be compared only if both sets of shards were made with the same --key"
    try:
        index = open_shards(load_run(str(run.path), []).data)[0].index
    except (ValueError, OSError):
        return f"signals were not compared with the run's shards, which cannot be read; {apart}"
    known = index[index["split"] != SPLIT]
    scored = shards.index if split == "all" else shards.index[shards.index["split"] == split]
    is_known = scored["patient"].isin(known["patient"]) & scored["patient"].str.fullmatch(KEYED)
    if twins := int((is_known | scored["sha256"].isin(known["sha256"])).sum()):
        raise ValueError(
            f"{twins} of {len(scored)} signals of {shards.name} (or their patients) are among "
            f"those that {run.path} was trained on or validated with; make shards without them"
        )
    return f"no signal is one that the run was trained on or validated with; {apart}"


def _score(
    path: Path, out: Path, task: str, fitted_in: Path, about: dict[str, Any], targets: Targets = ()
) -> dict[str, Any]:
    points, calibrators = fitted_on_validation(fitted_in, targets)
    result = evaluate_predictions(
        read_predictions(path), task, points, REPLICATES, calibrators=calibrators
    )
    write_record(out, about | result, [path])
    return read_json(out)


def fitted_on_validation(folder: Path, targets: Targets = ()) -> tuple[dict | None, dict | None]:
    """Operating points and calibrators by label, from the files beside the weights."""
    points_path = folder / "operating_point.json"
    points = read_record(points_path) if points_path.exists() else None
    valid_path = RunFolder(folder.parent).predictions / "valid.parquet"
    if not valid_path.exists():
        if targets:
            raise ValueError(f"more thresholds are fitted on validation: {valid_path} is missing")
        return points, None
    valid = read_predictions(valid_path)
    if valid.probability_NK is None:
        return points, None
    if targets:
        more = fit_operating_points(valid, tuple(targets))
        points = {
            name: fitted | points_by_method(points, name, valid.labels)
            for name, fitted in more.items()
        }
    return points, fit_calibrators(valid)


def describe_evaluation(result: dict[str, Any]) -> str:
    """One line for a terminal: the scores of the only label, or the means over several."""
    if "macro" in result:
        values, mean = result["macro"], "macro "
        about = result | {"name": count(len(result["labels"]), "label")}
    else:
        ((name, values),) = result["labels"].items()
        about, mean = values | {"name": name}, ""
    patients = count(about["n_patients"], "patient")
    parts = [f"{about['name']}: {count(about['n'], 'ECG')} of {patients}"]
    if "n_positive" in about:
        parts.append(f"{about['n_positive']} positive")
    for metric in ("auroc", "auprc", "rmse", "r2"):
        if estimate := values.get(metric):
            parts.append(f"{mean}{METRIC_NAMES[metric]} {format_with_interval(estimate)}")
    return ", ".join(parts)
