"""One run, told once and in order: settings in, a run folder with the best weights out.

Starting again on the same folder goes on where it stopped; a finished run is left as it is.
Every process runs this same function; what must happen once happens on the first.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from hpc_ecg.cluster import this_job
from hpc_ecg.config import to_yaml
from hpc_ecg.data.batches import read_ahead
from hpc_ecg.data.dataset import DataConfig, Dataset, open_shards, open_split
from hpc_ecg.data.order import batch_of_step, steps_per_epoch
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import LossConfig, loss_sum, normalizer
from hpc_ecg.model.transformer import ModelConfig
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.training.checkpoint import (
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    update_progress,
)
from hpc_ecg.training.engine import Engine, EngineConfig
from hpc_ecg.training.optimizer import OptimConfig, build_optimizer, lr_at
from hpc_ecg.training.outcome import Judge, check_start, open_run, save_best, write_valid
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


def finetune(config: FinetuneConfig) -> RunFolder:
    """Start, or go on with, one run; returns its folder.

    Raises ValueError, before anything is written, for data, weights or a folder that do not fit.
    """
    folder = RunFolder(config.run_dir)

    # 1. A finished run is left as it is; a folder of another configuration is refused.
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info("%s is finished: nothing to do", folder.path)
        return folder

    # 2. Data and weights: whatever does not fit fails here.
    shards, labels = open_shards(config.data)
    train, valid = (open_split(shards, split, labels) for split in ("train", "valid"))
    judge = Judge(valid, config.data.task, config.train.best_metric, config.loss)
    start = initialize(
        config.init, config.model, len(labels), labels, config.train.freeze, config.seed
    )
    check_start(start, shards, config.init.checkpoint)

    # 3. The processes meet; the first one claims the folder and notes what starts from where.
    engine = Engine(config.engine)
    try:
        place = {"processes": engine.world_size, "device": engine.device_name}
        place |= {"precision": engine.precision, "slurm": this_job()}
        notes = place | {"data_index_sha256": shards.index_sha256}
        engine.on_first(lambda: open_run(folder, to_yaml(config), notes, start.report))
        summary = _train(config, folder, engine, start, train, judge, place)

        # 6. The best weights predict the validation split: thresholds come from there, and stay.
        engine.wait_for_all()  # the first process may still be writing them
        engine.prepare(load_model(folder.best, model_config=config.model))
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
    place: dict[str, Any],
) -> dict[str, Any]:
    # 4. Model and optimizer on their device; then back to the newest checkpoint, if there is one.
    model = start.model.to(engine.device)
    optimizer = build_optimizer(model, config.optim, engine.device)
    newest = engine.on_first(lambda: newest_checkpoint(folder.checkpoints))
    progress = Progress()
    if newest:
        path, progress = newest
        load_checkpoint(path, model, optimizer)
        logger.info("%s: going on from step %d", folder.path, progress.step)
    engine.prepare(model, optimizer)
    engine.scaler = progress.scaler
    plan = Plan.of(config.train, steps_per_epoch(len(train), config.data.batch_size))
    meter = Meter(progress, engine.world_size)
    note = folder.append_event if engine.is_first else _say_nothing
    note("resumed" if newest else "started", step=progress.step, of=plan.total_steps, **place)
    if engine.is_first and newest and progress.best_step == progress.step:
        save_best(folder, model, judge.valid)  # the run may have died just before it did

    # 5. The loop. A step is saved before it is evaluated, so an evaluation that fails costs no
    #    training; one that was due when the run died is done again.
    per_count = train.shards.microvolts_per_count / 1000
    loss_of = partial(loss_sum, config=config.loss)
    steps = range(progress.step, plan.total_steps)
    batches = read_ahead(train, steps, config.data.batch_size, config.seed, engine.share)
    with progress_bar("steps", plan.total_steps, progress.step, engine.is_first) as advance:
        while True:
            if plan.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                progress = _evaluate(config, folder, engine, judge, progress, plan, note)
                meter.restart()
            stop = plan.reason_to_stop(progress)
            if stop:
                break
            batch = next(batches)
            torch.manual_seed(_seed_of_step(config.seed, batch.step, engine.rank))
            lr = lr_at(batch.step, plan.total_steps, config.optim)
            divide_by = normalizer(torch.from_numpy(batch.global_labels_BK), config.loss)
            result = engine.take_step(
                batch, loss_of, divide_by, lr, config.optim.clip_norm, per_count
            )
            meter.count(len(batch.positions))
            progress = meter.at_step(batch.step + 1, progress)
            if plan.logs_at(progress.step):
                _check_finite(engine, train, config)
                values = {
                    "loss": float(result.loss),
                    "grad_norm": float(result.grad_norm),
                    "lr": lr,
                }
                values |= {"ecg_per_s": meter.rate(), "seconds": progress.seconds}
                epoch = progress.step / plan.epoch_steps
                note("step", step=progress.step, epoch=epoch, **values)
            if plan.saves_at(progress.step):
                _check_finite(engine, train, config)
                progress = replace(progress, scaler=engine.scaler)
                if engine.is_first:
                    save_checkpoint(
                        folder.checkpoints, progress, engine.model, optimizer, plan.keep_checkpoints
                    )
                engine.wait_for_all()
            advance(note=judge.describe(progress))
    logger.info("%s: %s, stopped by %s", folder.path, judge.describe(progress), stop)
    progress = meter.at_step(progress.step, progress)
    return {
        "stopped": stop,
        "steps": progress.step,
        "epochs": progress.step / plan.epoch_steps,
        "metric": judge.metric,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "train_seconds": progress.seconds,
        "process_seconds": progress.process_seconds,
        "ecg_per_s": meter.mean(),
        "processes": engine.world_size,
        "device": engine.device_name,
    }


def _evaluate(
    config: FinetuneConfig,
    folder: RunFolder,
    engine: Engine,
    judge: Judge,
    progress: Progress,
    plan: Plan,
    note: Callable[..., None],
) -> Progress:
    """Score the validation split, note the outcome, and keep these weights if they are the best."""
    logits_NK = predict(engine, judge.valid, config.data.batch_size)
    scores = engine.on_first(partial(judge.score, logits_NK))
    progress, is_best = judge.decide(progress, scores)
    if engine.is_first:
        update_progress(folder.checkpoints, progress)
        if is_best:
            save_best(folder, engine.model, judge.valid)
    epoch = progress.step / plan.epoch_steps
    note("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
    logger.info(
        "step %d of %d: validation loss %.4f, %s %.4f%s",
        *(progress.step, plan.total_steps, scores["loss"], judge.metric),
        *(scores["score"], ", the best so far" if is_best else ""),
    )
    return progress


def _seed_of_step(seed: int, step: int, rank: int) -> int:
    """Dropout is a function of (seed, step, rank): no generator state to save or to lose."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _check_finite(engine: Engine, train: Dataset, config: FinetuneConfig) -> None:
    """Before anything is noted or saved: weights that diverged must not replace good ones."""
    step = engine.first_bad_step()
    if step is not None:
        positions = batch_of_step(step, len(train), config.data.batch_size, config.seed)
        first = ", ".join(train.records[position] for position in positions[:5])
        raise ValueError(
            f"loss or gradient is not finite at step {step + 1}; lower optim.lr, or look at the "
            f"{len(positions)} records of its batch ({first} …)"
        )


def _say_nothing(event: str, **values: object) -> None:
    """metrics.jsonl is the first process's."""
