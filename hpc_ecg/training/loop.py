"""THE LOOP: one stage of a run, from its first step (or the checkpoint) to its last.

A step is saved before it is evaluated, so an evaluation that fails costs no training; one that was
due when the run died is done again.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from hpc_ecg.data.augment import AugmentConfig
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import prefetch
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import LossConfig, loss_sum, normalizer
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.averaging import WeightAverager
from hpc_ecg.training.best_weights import BestWeights
from hpc_ecg.training.checkpoint import Progress, load_checkpoint, save_checkpoint, update_progress
from hpc_ecg.training.engine import Engine, StepResult
from hpc_ecg.training.features import FeatureCache, StageInputs, choose_stage_inputs
from hpc_ecg.training.inputs import TrainingTransform, seed_of_step
from hpc_ecg.training.meter import Meter, SaveTimer
from hpc_ecg.training.nonfinite import not_finite
from hpc_ecg.training.optimizer import build_optimizer, set_rates
from hpc_ecg.training.outcome import BestTracker
from hpc_ecg.training.predict import predict
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.stage_schedule import StageSchedule
from hpc_ecg.training.stages import Stage
from hpc_ecg.training.workload import workload

logger = logging.getLogger("hpc_ecg")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run that its stages share."""

    sampler: EpochSampler
    augment: AugmentConfig
    loss: LossConfig
    seed: int
    folder: RunFolder
    engine: Engine
    cache: FeatureCache
    model: ECGClassifier
    train: Dataset
    best_tracker: BestTracker
    best: BestWeights
    wishes: StopSignals

    def note(self, event: str, **values: object) -> None:
        """metrics.jsonl is the first process's."""
        if self.engine.is_rank_zero:
            self.folder.append_event(event, **values)


def train_stage(
    run: Run, stage: Stage, head_only: bool, progress: Progress, meter: Meter, path: Path | None
) -> tuple[Progress, str]:
    """From `progress` (restored from the checkpoint at `path`) to the end of the stage, and why it
    ended. Raises Stopped, with everything saved, if somebody asked for it."""
    engine = run.engine
    schedule = StageSchedule.of(stage.train, run.sampler.steps_per_epoch, progress.stage_began)
    run.model.freeze(stage.freeze, stage.train.freeze_layers)
    view = choose_stage_inputs(
        run.cache, run.model, run.train, run.best_tracker.valid, head_only, schedule.steps > 0
    )
    saved = load_checkpoint(path, view.kept) if path else None
    build = partial(build_optimizer, config=stage.optim, device=engine.device)
    engine.prepare(view.module, build, stage.optim.clip_norm, saved.moments if saved else None)
    meter.works_at(*workload(run.model, run.train, stage, engine))
    average = WeightAverager(engine.ties.trained(), stage.train.average, stage.train.ema_decay)
    if saved:
        average.restore(engine.ties.in_parts(saved.average))
    engine.ties.scaler = progress.scaler
    if progress.step == schedule.began:
        run.note("stage", step=progress.step, stage=stage.name, of=schedule.end)

    # 5. The loop. A step is saved before it is evaluated, so an evaluation that fails costs no
    #    training; one that was due when the run died is done again.
    loss_of = partial(loss_sum, config=run.loss)
    steps = range(progress.step, schedule.end)
    batches = prefetch(view.train, steps, run.sampler, engine.share)
    timer = SaveTimer(stage.train.save_every_min)
    before: StepResult | None = None
    with progress_bar("steps", schedule.end, progress.step, engine.is_rank_zero) as advance:
        while True:
            if schedule.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                progress = _evaluate(run, view, average, schedule, progress)
                meter.restart()
            stop = schedule.reason_to_stop(progress)
            if stop:
                break
            with meter.waits():
                batch = next(batches)
            engine.seed_dropout(seed_of_step(run.seed, batch.step, engine.rank))
            lr = set_rates(
                engine.ties.optimizer, batch.step - schedule.began, schedule.steps, stage.optim
            )
            divide_by = normalizer(torch.from_numpy(batch.global_labels_BK), run.loss)
            run.wishes.save_now |= timer.is_due()
            result = engine.take_step(
                *(batch, loss_of, divide_by, view.train.millivolts_per_count),
                TrainingTransform(
                    dataset=run.train, augment=run.augment, seed=run.seed, step=batch.step
                ),
                run.wishes.told(),
                may_skip=stage.train.skip_nonfinite > 0,
            )
            meter.count(len(batch.positions))
            progress = meter.at_step(batch.step + 1, progress)
            if result.skipped:
                progress = _skip(run, progress, stage.train.skip_nonfinite)
            average.after_step(
                schedule.share_done(progress.step),
                stage.train.swa_start,
                schedule.evaluates_at(progress.step),
            )
            if schedule.logs_at(progress.step):
                _log(run, schedule, progress, {"lr": lr, **meter.values()}, result)
            # What the ranks asked for with the step before: a GPU is not waited for.
            is_signal, is_stop, is_save = before.wishes.tolist() if before else (0, 0, 0)
            before = result
            if schedule.saves_at(progress.step) or is_signal or is_stop or is_save:
                with timer.saves():
                    progress = _save(run, view, average, schedule, progress)
            if is_signal or is_stop:
                raise run.wishes.stopped(by_signal=bool(is_signal))
            advance(note=run.best_tracker.describe(progress))
    logger.info(
        "%s, stage %s: %s, stopped by %s",
        *(run.folder.path, stage.name, run.best_tracker.describe(progress), stop),
    )
    swa_began = schedule.began + stage.train.swa_start * schedule.steps
    if stage.train.average == "swa" and (progress.best_step or 0) < swa_began:
        logger.warning("the best weights are from before the mean of swa began: a single step's")
    engine.ties.collect()
    if engine.is_rank_zero:
        run.best.finish(run.model)
    return progress, stop


def _log(
    run: Run,
    schedule: StageSchedule,
    progress: Progress,
    values: dict[str, float],
    result: StepResult,
) -> None:
    _check_finite(run)
    values |= {"loss": float(result.loss), "grad_norm": float(result.grad_norm)}
    values |= {"skipped": progress.skipped, "seconds": progress.seconds}
    values |= {"epoch": progress.step / schedule.epoch_steps}
    run.note("step", step=progress.step, **values)
    run.engine.track(values, progress.step)


def _save(
    run: Run,
    view: StageInputs,
    average: WeightAverager,
    schedule: StageSchedule,
    progress: Progress,
) -> Progress:
    """A checkpoint of weights, moments and progress; all ranks take part in collecting them."""
    _check_finite(run)
    engine = run.engine
    progress = replace(progress, scaler=engine.ties.scaler)
    engine.ties.collect()
    moments, mean = engine.ties.moments(), engine.ties.whole(average.state())
    where = run.folder.checkpoints, progress, view.kept
    engine.run_on_rank_zero(
        lambda: save_checkpoint(*where, moments, schedule.keep_checkpoints, mean)
    )
    run.wishes.saved()
    return progress


def _evaluate(
    run: Run,
    view: StageInputs,
    average: WeightAverager,
    schedule: StageSchedule,
    progress: Progress,
) -> Progress:
    """Score the validation split, note the outcome, and keep these weights if they are the best."""
    with average.applied():
        logits_NK = predict(run.engine, view.valid, run.sampler.config.batch_size)
        scores = run.engine.run_on_rank_zero(partial(run.best_tracker.score, logits_NK))
        progress, is_best = run.best_tracker.decide(progress, scores)
        if is_best:
            run.engine.ties.collect()
            run.engine.run_on_rank_zero(lambda: run.best.save(run.model, view.kept))
    run.engine.run_on_rank_zero(lambda: update_progress(run.folder.checkpoints, progress))
    epoch = progress.step / schedule.epoch_steps
    run.note("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
    run.engine.track({f"valid_{name}": value for name, value in scores.items()}, progress.step)
    logger.info(
        "step %d of %d: validation loss %.4f, %s %.4f%s",
        *(progress.step, schedule.end, scores["loss"], run.best_tracker.metric),
        *(scores["score"], ", the best so far" if is_best else ""),
    )
    return progress


def _check_finite(run: Run) -> None:
    """Before anything is noted or saved: weights that diverged must not replace good ones."""
    step = run.engine.first_bad_step()
    if step is not None:
        raise not_finite(run.folder, run.sampler, run.train, step)


def _skip(run: Run, progress: Progress, budget: int) -> Progress:
    progress = replace(progress, skipped=progress.skipped + 1)
    error = not_finite(run.folder, run.sampler, run.train, progress.step - 1)
    if progress.skipped > budget:
        raise error
    run.note("skipped", step=progress.step, count=progress.skipped)
    logger.warning("%s: skipped (%d of train.skip_nonfinite)", error, progress.skipped)
    return progress
