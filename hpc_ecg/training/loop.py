"""THE LOOP: one stage of a run, from its first step (or a checkpoint) to its last.

A checkpoint is saved before an evaluation, so an evaluation that fails costs no training; one that
was due when the run died is done on resume.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from hpc_ecg.data.loader import prefetch
from hpc_ecg.distributed.stop_signals import Requests
from hpc_ecg.log import progress_bar
from hpc_ecg.model.losses import loss_sum, normalizer
from hpc_ecg.training.checkpoint import Progress, save_checkpoint, update_progress
from hpc_ecg.training.engine import StepResult
from hpc_ecg.training.meter import SaveTimer
from hpc_ecg.training.model_inputs import TrainingTransform, seed_of_step
from hpc_ecg.training.nonfinite import check_finite, nonfinite_error
from hpc_ecg.training.optimizer import set_rates
from hpc_ecg.training.predict import predict
from hpc_ecg.training.run_state import Run, StageState, begin_stage, finish_stage
from hpc_ecg.training.stage_schedule import StageSchedule
from hpc_ecg.training.stages import Stage

logger = logging.getLogger("hpc_ecg")


def train_stage(
    run: Run, stage: Stage, progress: Progress, checkpoint: Path | None
) -> tuple[Progress, str]:
    """Train from `progress` (restored from `checkpoint`) to the end of the stage.

    Returns the progress and why the stage ended. Raises Preempted, with everything saved, if a
    signal or a file asked the run to stop.
    """
    engine, prepared, signals = run.engine, run.prepared, run.signals
    data, train_config = prepared.data, stage.train
    state = begin_stage(run, stage, progress, checkpoint)
    schedule, average, dataset = state.schedule, state.average, state.inputs.train
    loss_of = partial(loss_sum, config=prepared.loss)
    steps = range(progress.step, schedule.end)
    batches = prefetch(dataset, steps, data.sampler, engine.rank_slice)
    timer = SaveTimer(train_config.save_every_min)
    previous: StepResult | None = None
    with progress_bar("steps", schedule.end, progress.step, engine.is_rank_zero) as advance:
        while True:
            # a. Evaluate if it is due, also where the run died before it could.
            if schedule.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                progress = _evaluate(run, state, progress)
                run.meter.restart()
            stop = schedule.reason_to_stop(progress)
            if stop:
                break

            # b. One step.
            with run.meter.waiting_for_data():
                batch = next(batches)
            engine.seed_dropout(seed_of_step(prepared.seed, batch.step, engine.rank))
            stage_step = batch.step - schedule.began
            lr = set_rates(state.backend.optimizer, stage_step, schedule.steps, stage.optim)
            if timer.is_due():
                signals.request_save()
            result = engine.take_step(
                batch,
                loss_of,
                divide_by=normalizer(torch.from_numpy(batch.global_labels_BK), prepared.loss),
                millivolts_per_count=dataset.millivolts_per_count,
                transform=TrainingTransform(
                    dataset=data.train,
                    augment=prepared.augment,
                    seed=prepared.seed,
                    step=batch.step,
                ),
                requests=signals.poll(),
                may_skip=train_config.skip_nonfinite > 0,
            )
            run.meter.count(len(batch.positions))
            progress = run.meter.at_step(batch.step + 1, progress)
            if result.skipped:
                progress = _skip(run, progress, train_config.skip_nonfinite)
            average.after_step(
                schedule.share_done(progress.step),
                train_config.swa_start,
                is_validated=schedule.evaluates_at(progress.step),
            )

            # c. Log and save; stop if asked. The requests are those of the step before, so that
            #    nothing waits for the GPU.
            if schedule.logs_at(progress.step):
                _log(run, schedule, progress, lr, result)
            requests = Requests(*previous.requests.tolist()) if previous else Requests()
            previous = result
            if schedule.saves_at(progress.step) or any(requests):
                with timer.saving():
                    progress = _save(run, state, progress)
            if requests.preempt or requests.stop:
                raise signals.preempted(by_signal=bool(requests.preempt))
            advance(note=data.best_tracker.describe(progress))
    finish_stage(run, state, progress, stop)
    return progress, stop


def _log(
    run: Run, schedule: StageSchedule, progress: Progress, lr: float, result: StepResult
) -> None:
    check_finite(run.engine, run.folder, run.prepared.data)
    values = {
        "lr": lr,
        **run.meter.values(),
        "loss": float(result.loss),
        "grad_norm": float(result.grad_norm),
        "skipped": progress.skipped,
        "seconds": progress.seconds,
        "epoch": progress.step / schedule.epoch_steps,
    }
    run.record("step", step=progress.step, **values)
    run.engine.track(values, progress.step)


def _save(run: Run, state: StageState, progress: Progress) -> Progress:
    """Write a checkpoint of weights, moments and progress; all ranks take part in gathering."""
    check_finite(run.engine, run.folder, run.prepared.data)
    backend = state.backend
    progress = replace(progress, scaler=backend.scaler)
    backend.gather_weights()
    moments = backend.moments()
    average = backend.full_tensors(state.average.state())
    run.engine.run_on_rank_zero(
        lambda: save_checkpoint(
            run.folder.checkpoints,
            progress,
            state.inputs.saved_module,
            moments,
            keep=state.schedule.keep_checkpoints,
            average=average,
        )
    )
    run.signals.clear_save()
    return progress


def _evaluate(run: Run, state: StageState, progress: Progress) -> Progress:
    """Score validation, record the outcome, and keep these weights if they are the best so far."""
    engine, data = run.engine, run.prepared.data
    tracker, model = data.best_tracker, run.prepared.start.model
    with state.average.applied():
        logits_NK = predict(engine, state.inputs.valid, data.sampler.config.batch_size)
        scores = engine.run_on_rank_zero(partial(tracker.score, logits_NK))
        progress, is_best = tracker.update(progress, scores)
        if is_best:
            state.backend.gather_weights()
            engine.run_on_rank_zero(lambda: run.best.save(model, state.inputs.saved_module))
    engine.run_on_rank_zero(lambda: update_progress(run.folder.checkpoints, progress))
    epoch = progress.step / state.schedule.epoch_steps
    run.record("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
    engine.track({f"valid_{name}": value for name, value in scores.items()}, progress.step)
    logger.info(
        f"step {progress.step} of {state.schedule.end}: validation loss {scores['loss']:.4f}, "
        f"{tracker.metric} {scores['score']:.4f}{', the best so far' if is_best else ''}"
    )
    return progress


def _skip(run: Run, progress: Progress, budget: int) -> Progress:
    progress = replace(progress, skipped=progress.skipped + 1)
    error = nonfinite_error(run.folder, run.prepared.data, progress.step - 1)
    if progress.skipped > budget:
        raise error
    run.record("skipped", step=progress.step, count=progress.skipped)
    logger.warning(f"{error}: skipped ({progress.skipped} of train.skip_nonfinite)")
    return progress
