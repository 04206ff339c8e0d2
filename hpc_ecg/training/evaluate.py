"""`hpc-ecg evaluate RUN_DIR`: the best weights of a finished run on its test split."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_ecg.config import load_config, to_yaml
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.source import Source
from hpc_ecg.evaluation.evaluate import evaluate_predictions
from hpc_ecg.evaluation.predictions import read_predictions, write_predictions
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, view_of
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import stages_of, trains_head_only
from hpc_ecg.weights import load_model
from hpc_ecg.writing import read_json, write_json

logger = logging.getLogger("hpc_ecg")

SPLIT = "test"
REPLICATES = 2000


def evaluate(config: FinetuneConfig) -> dict[str, Any]:
    """Predict the test split of the run in `config.run_dir`, score it, and write
    predictions/test.parquet and evaluation.json; returns what evaluation.json holds.

    Raises ValueError for an unfinished run, settings other than the run's (but for what does
    not change the result), and predictions that cannot be scored.
    """
    folder = RunFolder(config.run_dir)
    if not folder.is_finished():
        what = "is not finished: start it again" if folder.config.exists() else "is no run folder"
        raise ValueError(f"{folder.path} {what} (no finished.json)")
    folder.check_same_config(to_yaml(config))
    # one process holds the whole model with ease when nothing trains
    engine = Engine(replace(config.engine, parallel="ddp", trackers=[]), folder.path)
    try:
        path = folder.predictions / f"{SPLIT}.parquet"
        _predict(folder, config, engine, path)
        return engine.on_first(lambda: _score(folder, config, path))
    finally:
        engine.close()


def load_run(run_dir: str, words: list[str]) -> FinetuneConfig:
    """The configuration of a run folder, with words laid over it (where the shards are now, …)."""
    file = RunFolder(run_dir).config
    if not file.exists():
        raise ValueError(f"{run_dir} is no run folder (no config.yaml)")
    return load_config(FinetuneConfig, [str(file)], [f"run_dir={run_dir}", *words])


def _predict(folder: RunFolder, config: FinetuneConfig, engine: Engine, path: Path) -> None:
    shards, labels = open_shards(config.data)
    if shards.index_sha256 != read_json(folder.environment)["data_index_sha256"]:
        raise ValueError(
            f"data.shards={config.data.shards}, or data.label_table, is not what "
            f"{folder.path} was trained on; its test split could hold patients that it trained on"
        )
    test = open_split(shards, SPLIT, labels, Source(shards, config.data))
    model = load_model(folder.best, model_config=config.model).to(engine.device)
    stages = stages_of(config.train, config.optim, config.init.checkpoint is not None)
    cache = FeatureCache(
        engine=engine,
        setting=config.train.feature_cache,
        batch_size=config.data.batch_size,
        run_dir=folder.path,
    )
    view = view_of(cache, model, test, test, trains_head_only(stages), trains=False)
    engine.prepare(view.module)
    logits_NK = predict(engine, view.valid, config.data.batch_size)
    predictions = as_predictions(test, logits_NK, config.data.task)
    if engine.is_first:
        write_predictions(path, predictions)


def _score(folder: RunFolder, config: FinetuneConfig, path: Path) -> dict[str, Any]:
    points = folder.best / "operating_point.json"
    result = evaluate_predictions(
        read_predictions(path),
        config.data.task,
        read_json(points) if points.exists() else None,
        replicates=REPLICATES,
    )
    result = {"split": SPLIT, **result}
    write_json(folder.evaluation, result)
    return result


def describe_evaluation(result: dict[str, Any]) -> list[str]:
    """One line per label for a terminal."""
    lines = []
    for name, label in result["labels"].items():
        parts = [f"{name}: {label['n']} ECGs of {label['n_patients']} patients"]
        if "n_positive" in label:
            parts.append(f"{label['n_positive']} positive")
        for metric in ("auroc", "auprc", "rmse", "r2"):
            if metric in label:
                value = label[metric]
                between = f"{value['low']:.3f}–{value['high']:.3f}"
                parts.append(f"{metric.upper()} {value['value']:.3f} ({between})")
        lines.append(", ".join(parts))
        warning = label.get("auroc", {}).get("warning")
        lines += [f"  {warning}"] if warning else []
    lines += [f"{name}: not scored: {why}" for name, why in result["not_scored"].items()]
    return lines
