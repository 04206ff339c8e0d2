"""THE LOOP: one stage of a run, from its first step (or the checkpoint) to its last.

A step is saved before it is evaluated, so an evaluation that fails costs no training; one that was
due when the run died is done again.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hpc_ecg.data.ahead import read_ahead
from hpc_ecg.data.augment import AugmentConfig
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.schedule import Schedule
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import LossConfig, loss_sum, normalizer
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.training.averaging import Average
from hpc_ecg.training.best import BestWeights
from hpc_ecg.training.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
    update_progress,
)
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, View, view_of
from hpc_ecg.training.inputs import augment_step
from hpc_ecg.training.optimizer import build_optimizer, set_rates
from hpc_ecg.training.outcome import Judge
from hpc_ecg.training.plan import Meter, Plan
from hpc_ecg.training.predict import predict
from hpc_ecg.training.stages import Stage

logger = logging.getLogger("hpc_ecg")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run that its stages share."""

    schedule: Schedule
    augment: AugmentConfig
    loss: LossConfig
    seed: int
    folder: RunFolder
    engine: Engine
    cache: FeatureCache
    model: ECGClassifier
    train: Dataset
    judge: Judge
    best: BestWeights

    def note(self, event: str, **values: object) -> None:
        """metrics.jsonl is the first process's."""
        if self.engine.is_first:
            self.folder.append_event(event, **values)


def train_stage(
    run: Run, stage: Stage, head_only: bool, progress: Progress, meter: Meter, path: Path | None
) -> tuple[Progress, str]:
    """From `progress` (restored from the checkpoint at `path`) to the end of the stage, and why it
    ended."""
    engine = run.engine
    epoch_steps = run.schedule.steps_per_epoch
    plan = Plan.of(stage.train, epoch_steps, progress.stage_began)
    run.model.freeze(stage.freeze, stage.train.freeze_layers)
    trains = plan.steps > 0
    view = view_of(run.cache, run.model, run.train, run.judge.valid, head_only, trains)
    optimizer = build_optimizer(view.module, stage.optim, engine.device)
    average = Average(view.kept, stage.train.average, stage.train.ema_decay)
    if path:
        average.restore(load_checkpoint(path, view.kept, optimizer))
    engine.prepare(view.module, optimizer)
    engine.scaler = progress.scaler
    if progress.step == plan.began:
        run.note("stage", step=progress.step, stage=stage.name, of=plan.end)

    # 5. The loop. A step is saved before it is evaluated, so an evaluation that fails costs no
    #    training; one that was due when the run died is done again.
    loss_of = partial(loss_sum, config=run.loss)
    steps = range(progress.step, plan.end)
    batches = read_ahead(view.train, steps, run.schedule, engine.share)
    with progress_bar("steps", plan.end, progress.step, engine.is_first) as advance:
        while True:
            if plan.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                progress = _evaluate(run, view, average, plan, progress)
                meter.restart()
            stop = plan.reason_to_stop(progress)
            if stop:
                break
            batch = next(batches)
            engine.seed_dropout(_seed_of_step(run.seed, batch.step, engine.rank))
            lr = set_rates(optimizer, batch.step - plan.began, plan.steps, stage.optim)
            divide_by = normalizer(torch.from_numpy(batch.global_labels_BK), run.loss)
            result = engine.take_step(
                *(batch, loss_of, divide_by, stage.optim.clip_norm),
                view.train.millivolts_per_count,
                augment_step(run.train, run.augment, run.seed, batch.step),
            )
            meter.count(len(batch.positions))
            progress = meter.at_step(batch.step + 1, progress)
            average.after_step(
                plan.share_done(progress.step),
                stage.train.swa_start,
                plan.evaluates_at(progress.step),
            )
            if plan.logs_at(progress.step):
                _check_finite(run)
                values = {"loss": float(result.loss), "grad_norm": float(result.grad_norm)}
                values |= {"lr": lr, "ecg_per_s": meter.rate(), "seconds": progress.seconds}
                run.note("step", step=progress.step, epoch=progress.step / epoch_steps, **values)
            if plan.saves_at(progress.step):
                _check_finite(run)
                progress = replace(progress, scaler=engine.scaler)
                if engine.is_first:
                    save_checkpoint(
                        *(run.folder.checkpoints, progress, view.kept, optimizer),
                        *(plan.keep_checkpoints, average.state()),
                    )
                engine.wait_for_all()
            advance(note=run.judge.describe(progress))
    logger.info(
        "%s, stage %s: %s, stopped by %s",
        run.folder.path,
        stage.name,
        run.judge.describe(progress),
        stop,
    )
    swa_began = plan.began + stage.train.swa_start * plan.steps
    if stage.train.average == "swa" and (progress.best_step or 0) < swa_began:
        logger.warning("the best weights are from before the mean of swa began: a single step's")
    if engine.is_first:
        run.best.finish(run.model)
    return progress, stop


def _evaluate(run: Run, view: View, average: Average, plan: Plan, progress: Progress) -> Progress:
    """Score the validation split, note the outcome, and keep these weights if they are the best."""
    with average.applied():
        logits_NK = predict(run.engine, view.valid, run.schedule.config.batch_size)
        scores = run.engine.on_first(partial(run.judge.score, logits_NK))
        progress, is_best = run.judge.decide(progress, scores)
        if run.engine.is_first and is_best:
            run.best.save(run.model, view.kept)
    if run.engine.is_first:
        update_progress(run.folder.checkpoints, progress)
    epoch = progress.step / plan.epoch_steps
    run.note("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
    logger.info(
        "step %d of %d: validation loss %.4f, %s %.4f%s",
        *(progress.step, plan.end, scores["loss"], run.judge.metric),
        *(scores["score"], ", the best so far" if is_best else ""),
    )
    return progress


def _seed_of_step(seed: int, step: int, rank: int) -> int:
    """Dropout is a function of (seed, step, rank): no generator state to save or to lose."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _check_finite(run: Run) -> None:
    """Before anything is noted or saved: weights that diverged must not replace good ones."""
    step = run.engine.first_bad_step()
    if step is not None:
        positions = run.schedule.batch(step)
        first = ", ".join(run.train.keys[position] for position in positions[:5])
        raise ValueError(
            f"loss or gradient is not finite at step {step + 1}; lower optim.lr, or look at the "
            f"{len(positions)} records of its batch (keys {first} …)"
        )
