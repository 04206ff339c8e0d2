"""Open data and weights, before anything is written; the run and the doctor share this."""

import logging
from dataclasses import dataclass

from hpc_ecg.data.dataset import Dataset, open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.data.settings import AugmentConfig
from hpc_ecg.data.source import ShardSource
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.best_tracker import BestTracker
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import Stage, check_parallel, describe_stages, stages_of
from hpc_ecg.weights.initialize import Initialized, initialize

logger = logging.getLogger("hpc_ecg")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    shards: ShardSet
    source: ShardSource
    train: Dataset
    valid: Dataset
    sampler: EpochSampler
    best_tracker: BestTracker


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    data: PreparedData
    start: Initialized
    stages: list[Stage]
    augment: AugmentConfig
    loss: LossConfig
    seed: int


def prepare_run(config: FinetuneConfig) -> PreparedRun:
    """ValueError for data, weights and settings that do not fit together."""
    return prepare_weights(config, prepare_data(config))


def prepare_data(config: FinetuneConfig) -> PreparedData:
    shards, labels = open_shards(config.data)
    source = ShardSource(shards, config.data)
    train, valid = (open_split(shards, split, labels, source) for split in ("train", "valid"))
    train_config = config.train
    return PreparedData(
        shards=shards,
        source=source,
        train=train,
        valid=valid,
        sampler=EpochSampler.for_split(train, config.data, config.seed),
        best_tracker=BestTracker(
            valid,
            config.data.task,
            train_config.best_metric,
            config.loss,
            train_config.best_decimals,
        ),
    )


def prepare_weights(config: FinetuneConfig, data: PreparedData) -> PreparedRun:
    stages = stages_of(config.train, config.optim, config.init.checkpoint is not None)
    check_parallel(config.train, config.engine.parallel)
    labels = data.train.label_names
    start = initialize(
        config.init,
        config.model,
        num_labels=len(labels),
        labels=labels,
        freeze=stages[0].train.freeze,
        freeze_layers=stages[0].train.freeze_layers,
        seed=config.seed,
    )
    _check_fits_data(start, data.shards, config.init.checkpoint)
    describe_stages(start, stages)
    return PreparedRun(
        data=data,
        start=start,
        stages=stages,
        augment=config.augment,
        loss=config.loss,
        seed=config.seed,
    )


def _check_fits_data(start: Initialized, shards: ShardSet, checkpoint: str | None) -> None:
    """The weights must have been trained on signals like those of the shards."""
    shards_name = f"data.shards={shards.name}"
    if start.signal is not None:
        weights_name = f"init.checkpoint={checkpoint}"
        check_same_signal(shards.signal, start.signal, shards_name, weights_name)
    leads, in_d = len(shards.signal.leads), start.architecture.in_d
    if leads != in_d:
        raise ValueError(f"model.in_d={in_d}, but {shards_name} has {leads} leads")


def log_weights(start: Initialized, checkpoint: str | None) -> None:
    counts, head = start.report["counts"], start.report["head"]
    logger.info(
        f"weights: {counts['tensors_loaded']} tensors from {checkpoint or 'nothing'}, "
        f"{counts['tensors_fresh']} new, {counts['tensors_ignored']} ignored, "
        f"{counts['tensors_frozen']} frozen; head: {head['taken']} ({head['reason']})"
    )
