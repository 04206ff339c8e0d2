"""One run, told once and in order: settings in, a run folder with the best weights out.

Starting again on the same folder goes on where it stopped; a finished run is left as it is.
Every process runs this same function; what must happen once happens on the first.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from hpc_ecg.config import to_yaml
from hpc_ecg.data.batches import StepBatch, read_ahead
from hpc_ecg.data.dataset import DataConfig, Dataset, open_shards, open_split
from hpc_ecg.data.order import steps_per_epoch
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import LossConfig, loss_sum, normalizer
from hpc_ecg.model.transformer import ModelConfig
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.training import checkpoint
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.engine import Engine, EngineConfig
from hpc_ecg.training.optimizer import OptimConfig, build_optimizer, lr_at
from hpc_ecg.training.outcome import Judge, open_run, save_best, write_valid
from hpc_ecg.training.plan import Meter, Plan, TrainConfig
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.weights import load_model
from hpc_ecg.weights.initialize import InitConfig, Initialized, initialize

logger = logging.getLogger("hpc_ecg")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All settings of one run."""

    run_dir: str = MISSING
    """Folder of this run; starting again on it goes on."""
    seed: int = 0
    """Sets new weights, order of records and dropout; never the split."""
    files: dict[str, str] = field(default_factory=dict)
    """Names for paths, to be used elsewhere as ${files.name}."""
    data: DataConfig = field(default_factory=DataConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


# What may differ when a run goes on: where things lie, and how fast or often, not what is computed.
RESULT_NEUTRAL = (
    *("run_dir", "files", "data.shards", "init.checkpoint", "train.save_every"),
    *("train.keep_checkpoints", "train.log_every", "engine.device", "engine.micro_batch_size"),
    *("engine.cpu_threads", "engine.timeout_min", "model.attention"),
)


def finetune(config: FinetuneConfig) -> RunFolder:
    """Start, or go on with, one run; returns its folder.

    Raises ValueError, before anything is written, for data, weights or a folder that do not fit.
    """
    folder = RunFolder(config.run_dir)

    # 1. A finished run is left as it is; a folder of another configuration is refused.
    folder.check_same_config(to_yaml(config), RESULT_NEUTRAL)
    if folder.finished.exists():
        logger.info("%s is finished: nothing to do", folder.path)
        return folder

    # 2. Data and weights: whatever does not fit fails here.
    shards, label_names = open_shards(config.data)
    train, valid = (open_split(shards, split, label_names) for split in ("train", "valid"))
    judge = Judge(valid, config.data.task, config.train.best_metric, config.loss)
    start = initialize(
        config.init, config.model, len(label_names), label_names, config.train.freeze, config.seed
    )
    if start.signal is not None:
        names = f"data.shards={config.data.shards}", f"init.checkpoint={config.init.checkpoint}"
        check_same_signal(shards.signal, start.signal, *names)

    # 3. The processes meet; the first one claims the folder and notes what starts from where.
    engine = Engine(config.engine)
    try:
        notes: dict[str, Any] = {
            "data_index_sha256": shards.index_sha256,
            "device": engine.device_name,
        }
        notes |= {"processes": engine.world_size, "precision": engine.precision}
        engine.on_first(
            lambda: open_run(folder, to_yaml(config), RESULT_NEUTRAL, notes, start.report)
        )
        summary = _train(config, folder, engine, start, train, judge)

        # 6. The best weights predict the validation split: thresholds come from there, and stay.
        engine.wait_for_all()  # the first process may still be writing them
        best = load_model(folder.best)
        engine.prepare(best)
        logits_NK = predict(engine, valid, config.data.batch_size)
        if engine.is_first:
            write_valid(folder, as_predictions(valid, logits_NK, config.data.task))
            folder.finish(summary)
        engine.wait_for_all()
    finally:
        folder.release()
        engine.close()
    return folder


def _train(
    config: FinetuneConfig,
    folder: RunFolder,
    engine: Engine,
    start: Initialized,
    train: Dataset,
    judge: Judge,
) -> dict[str, Any]:
    # 4. Model and optimizer on their device; then back to the newest checkpoint, if there is one.
    model = start.model.to(engine.device)
    optimizer = build_optimizer(model, config.optim, engine.device)
    progress = checkpoint.load_checkpoint(folder.checkpoints, model, optimizer) or Progress()
    engine.prepare(model, optimizer)
    plan = Plan.of(config.train, steps_per_epoch(len(train), config.data.batch_size))
    meter = Meter(progress.seconds)
    note = folder.append_event if engine.is_first else _say_nothing
    note("resumed" if progress.step else "started", step=progress.step, of=plan.total_steps)

    # 5. The loop. A step is saved before it is evaluated, so an evaluation that fails costs no
    #    training; one that was due when the run died is done again.
    per_count = train.shards.microvolts_per_count / 1000
    loss_of = partial(loss_sum, config=config.loss)
    steps = range(progress.step, plan.total_steps)
    batches = read_ahead(train, steps, config.data.batch_size, config.seed, engine.share)
    with progress_bar("steps", plan.total_steps, progress.step, engine.is_first) as advance:
        while True:
            if plan.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                logits_NK = predict(engine, judge.valid, config.data.batch_size)
                scores = engine.on_first(partial(judge.score, logits_NK))
                progress, is_best = judge.decide(progress, scores)
                if engine.is_first:
                    if is_best:
                        save_best(folder, engine.model, start.architecture, judge.valid)
                    checkpoint.update_progress(folder.checkpoints, progress)
                epoch = progress.step / plan.epoch_steps
                note("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
                logger.info(
                    "step %d of %d: validation loss %.4f, %s %.4f%s",
                    *(progress.step, plan.total_steps, scores["loss"], judge.metric),
                    *(scores["score"], ", the best so far" if is_best else ""),
                )
                meter.restart()
            stop = plan.reason_to_stop(progress)
            if stop:
                break
            batch = next(batches)
            torch.manual_seed(_seed_of_step(config.seed, batch.step, engine.rank))
            lr = lr_at(batch.step, plan.total_steps, config.optim)
            result = engine.take_step(
                batch.micro_batches,
                loss_of,
                normalizer(torch.from_numpy(batch.global_labels_BK), config.loss),
                lr,
                config.optim.clip_norm,
                per_count,
            )
            meter.count(len(batch.positions))
            progress = replace(progress, step=batch.step + 1, seconds=meter.seconds)
            if progress.step % config.train.log_every == 0 or progress.step == plan.total_steps:
                loss, grad_norm = float(result.loss), float(result.grad_norm)
                _check_finite(loss, batch, train)
                rates = {"lr": lr, "ecg_per_s": meter.rate(), "seconds": progress.seconds}
                epoch = progress.step / plan.epoch_steps
                note(
                    "step", step=progress.step, epoch=epoch, loss=loss, grad_norm=grad_norm, **rates
                )
            if plan.saves_at(progress.step):
                if engine.is_first:
                    checkpoint.save_checkpoint(
                        folder.checkpoints, progress, engine.model, optimizer, plan.keep_checkpoints
                    )
                engine.wait_for_all()
            advance(note=judge.describe(progress))
    logger.info("%s: %s, stopped by %s", folder.path, judge.describe(progress), stop)
    return {
        "stopped": stop,
        "steps": progress.step,
        "epochs": progress.step / plan.epoch_steps,
        "metric": judge.metric,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "train_seconds": meter.seconds,
        "ecg_per_s": meter.mean(),
        "processes": engine.world_size,
        "device": engine.device_name,
    }


def _seed_of_step(seed: int, step: int, rank: int) -> int:
    """Dropout is a function of (seed, step, rank): no generator state to save or to lose."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _check_finite(loss: float, batch: StepBatch, train: Dataset) -> None:
    if not math.isfinite(loss):
        first = ", ".join(train.records[position] for position in batch.positions[:5])
        raise ValueError(
            f"the loss is {loss} at step {batch.step + 1}; lower optim.lr, or look at the "
            f"{len(batch.positions)} records of this batch ({first} …)"
        )


def _say_nothing(event: str, **values: object) -> None:
    """metrics.jsonl is the first process's."""
