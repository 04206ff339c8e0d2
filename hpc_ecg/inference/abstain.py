"""When not to rely on a risk: seeds that disagree, or for one run an ECG far from its training."""

# N records, D width of the features, K labels

import re
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sklearn.covariance import ledoit_wolf

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.comparison.run_records import ABSTENTION
from hpc_ecg.data.dataset import Dataset, open_split
from hpc_ecg.data.source import ShardSource
from hpc_ecg.evaluation import abstention
from hpc_ecg.evaluation.abstention import PERCENTS, curve_rows, cut_of, fit_rule
from hpc_ecg.evaluation.thresholds import points_by_method
from hpc_ecg.hashing import check_file, check_record, read_record, write_record
from hpc_ecg.inference.audit import open_trained
from hpc_ecg.inference.forward import GAUSSIAN, WithFeatures, far_from_training
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.log import logger
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.weights import load_model
from hpc_ecg.weights.reading import resolve_file

MIN_PATIENTS, MAX_PATIENTS = 100, 5000


def with_abstention(model: ModelSource, share: str) -> ModelSource:
    """The model with the cut that keeps this share of validation. ValueError: it has no rule."""
    coverage = float(share) if re.fullmatch(r"0?\.\d+", share) else 0.0
    if not PERCENTS[0] <= 100 * coverage <= PERCENTS[-1]:
        raise ValueError(
            f"--abstain must be from 0.5 to 0.99, got {share!r}; FILES stand before it, or write "
            "--abstain=0.9"
        )
    rule = rule_of(model)
    if not rule:
        raise ValueError(
            f"--abstain: {model.name} has no rule. An ensemble has one, a run after `predict RUN "
            "--fit-abstention`, and so have bundles of these"
        )
    return replace(model, abstention=rule | {"cut": cut_of(rule, coverage)})


def rule_of(model: ModelSource) -> dict[str, Any]:
    """The rule that was chosen on validation, or {}. ValueError: its files have changed."""
    record = model.runs[0].path / ABSTENTION
    is_single_run = (
        len(model.files) == 1 and record.exists() and model.files[0].parent.name == "best"
    )
    if model.abstention or not is_single_run or not check_file(model.files[0], record):
        return model.abstention
    check_record(record, leave_out=f"best/{model.files[0].name}")
    return abstention.check_rule(record, read_record(record), members=1)


def fit_abstention(run_dir: str) -> None:
    """Learn from a run's own shards how far records are from its training, and write the rule to
    RUN/abstention.json. The test split is read only if the run was tested. ValueError: no such run
    or shards, or too few patients."""
    folder, config, shards, labels = open_trained(run_dir, "abstention")
    some = shards.index[shards.index["split"] == "train"].drop_duplicates("patient")
    if len(some) < MIN_PATIENTS:
        raise ValueError(f"abstention needs {MIN_PATIENTS} training patients, found {len(some)}")
    some = some.sample(min(len(some), MAX_PATIENTS), random_state=0).sort_index()
    is_tested = (folder.predictions / "test.parquet").exists()
    source, splits = ShardSource(shards, config.data), ("valid", "test")[: 1 + is_tested]
    datasets = {split: open_split(shards, split, labels, source) for split in splits}
    datasets["train"] = Dataset(replace(shards, index=some), "train", labels, source)
    with closing(Engine(config.engine.for_inference(), folder.path)) as engine:
        model = load_model(folder.best, model_config=config.model)
        engine.prepare_inference(WithFeatures(model))
        width, batch_size = sum(model.head.weight.shape), config.data.batch_size
        outputs = {s: predict(engine, d, batch_size, width) for s, d in datasets.items()}
    features_ND = outputs.pop("train")[:, len(labels) :].astype(np.float64)
    whiten_DD = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(features_ND)[0]))
    arrays = {"mean": features_ND.mean(axis=0), "whiten": whiten_DD}
    gaussian = {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}
    far = {s: far_from_training(output, gaussian) for s, output in outputs.items()}
    found = {s: as_predictions(datasets[s], out[:, :-1], "yes/no") for s, out in far.items()}
    doubt = {split: output[:, -1].astype(np.float64) for split, output in far.items()}
    rule = fit_rule(found["valid"], {abstention.DISTANCE: doubt["valid"]})
    if not rule:
        raise ValueError(f"{run_dir}: all of validation is equally far from training")
    points = read_optional(folder.best / "operating_point.json")
    by_label = {name: points_by_method(points, name, labels) for name in labels}
    data = [(found[s], labels, doubt[s], rule, by_label) for s in splits if s == "test"]
    content = rule | {"curve": [row for arguments in data for row in curve_rows(*arguments)]}
    if engine.is_rank_zero:
        file = folder.best / GAUSSIAN
        write_atomically(file, lambda partial: save_file(gaussian, partial))
        write_record(folder.path / ABSTENTION, content, [resolve_file(folder.best), file])
        logger.info(f"written: {folder.path / ABSTENTION}; the report shows what it gains")
