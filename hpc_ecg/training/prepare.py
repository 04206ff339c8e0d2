"""Open data and weights before anything is written; both the run and the doctor start with this."""

from dataclasses import dataclass

from hpc_ecg.data.dataset import Dataset, check_classes, open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.data.source import ShardSource
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.log import logger
from hpc_ecg.reporting.numbers import count
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.best_tracker import BestTracker
from hpc_ecg.training.open_run import with_start
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import Stage, check_parallel, describe_stages, stages_of
from hpc_ecg.weights.initialize import Initialized, initialize


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The opened shards, their splits, and what the settings make of them."""

    shards: ShardSet
    source: ShardSource
    train: Dataset
    valid: Dataset
    sampler: EpochSampler
    best_tracker: BestTracker
    left_out: list[str]
    """A line for each label that a split lacks a class of."""


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can start: its settings, data, initialized model and stages."""

    config: FinetuneConfig
    data: PreparedData
    start: Initialized
    stages: list[Stage]


def prepare_run(config: FinetuneConfig) -> PreparedRun:
    """Open everything; ValueError if data, weights and settings do not fit together."""
    data = prepare_data(config)
    for line in data.left_out:
        logger.warning(line)
    return prepare_weights(config, data)


def prepare_data(config: FinetuneConfig) -> PreparedData:
    """Open the shards; ValueError if they do not fit the settings."""
    shards, labels = open_shards(config.data)
    left_out = check_classes(shards, labels, config.data, config.train.trains)
    source = ShardSource(shards, config.data)
    first = "valid" if config.data.all_validate and not config.train.trains else "train"
    train, valid = (open_split(shards, split, labels, source) for split in (first, "valid"))
    return PreparedData(
        shards=shards,
        source=source,
        left_out=left_out,
        train=train,
        valid=valid,
        sampler=EpochSampler.for_split(train, config.data, config.seed),
        best_tracker=BestTracker(valid, config),
    )


def prepare_weights(config: FinetuneConfig, data: PreparedData) -> PreparedRun:
    """Initialize the model; ValueError if weights and data or settings do not fit together."""
    config = with_start(config)
    stages = stages_of(config.train, config.optim, config.init.path is not None)
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
    return PreparedRun(config=config, data=data, start=start, stages=stages)


def _check_fits_data(start: Initialized, shards: ShardSet, checkpoint: str | None) -> None:
    """ValueError if the weights were trained on signals unlike those of the shards."""
    shards_name = f"data.shards={shards.name}"
    if start.signal is not None:
        weights_name = f"init.checkpoint={checkpoint}"
        check_same_signal(shards.signal, start.signal, shards_name, weights_name)
    leads, in_d = len(shards.signal.leads), start.architecture.in_d
    if leads != in_d:
        raise ValueError(f"model.in_d={in_d}, but {shards_name} has {leads} leads")


def describe_weights(run: PreparedRun) -> str:
    counts, head = run.start.report["counts"], run.start.report["head"]
    return (
        f"{count(counts['tensors_loaded'], 'tensor')} from {run.config.init.checkpoint}, "
        f"{counts['tensors_fresh']} new, {counts['tensors_ignored']} ignored, "
        f"{counts['tensors_frozen']} frozen; head: {head['taken']} ({head['reason']})"
    )
