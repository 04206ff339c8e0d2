"""The training loop: one stage of a run, from its first step (or a checkpoint) to its last.

A checkpoint is saved before each evaluation, so a failing evaluation costs no training. An
evaluation that was due when the run died is done on resume.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from hpc_ecg.atomic_io import write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import StepBatch, prefetch
from hpc_ecg.distributed.stop_signals import NO_REQUESTS, Requests
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.model.losses import loss_sum, normalizer
from hpc_ecg.training.checkpoint import Progress, save_checkpoint, update_progress
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.meter import SaveTimer
from hpc_ecg.training.model_inputs import TrainingTransform, seed_of_step
from hpc_ecg.training.optimizer import set_rates
from hpc_ecg.training.predict import predict
from hpc_ecg.training.prepare import PreparedRun
from hpc_ecg.training.run_state import Run, StageState, begin_stage, finish_stage
from hpc_ecg.training.stages import Stage, StageSchedule
from hpc_ecg.training.step_result import StepResult


def train_stage(
    run: Run, stage: Stage, progress: Progress, checkpoint: Path | None
) -> tuple[Progress, str]:
    """Train from `progress` (restored from `checkpoint`) to the end of the stage.

    Returns the progress and why the stage ended. Raises Preempted, with everything saved, if a
    signal or a file asked the run to stop; ValueError if loss or gradient is not finite.
    """
    engine, prepared, signals = run.engine, run.prepared, run.signals
    data, config = prepared.data, stage.train
    state = begin_stage(run, stage, progress, checkpoint)
    schedule, average, dataset = state.schedule, state.average, state.inputs.train
    steps = range(progress.step, schedule.end)
    batches = prefetch(dataset, steps, data.sampler, engine.rank_slice)
    timer = SaveTimer(config.save_every_min)
    previous: StepResult | None = None
    compiles = engine.kernels and engine.kernels.kernels["compile"] == "compiled"
    loss = "compiling at the first step" if compiles else ""
    size = data.sampler.config.batch_size
    with progress_bar("steps", schedule.end, progress.step, engine.is_rank_zero, size) as advance:
        advance(0, loss)
        while True:
            # a. Evaluate if it is due, or was due when the run died.
            if schedule.evaluates_at(progress.step) and progress.evaluated_step < progress.step:
                progress = _evaluate(run, state, progress)
                run.meter.restart()
            stop = schedule.reason_to_stop(progress)
            if stop:
                break

            # b. One step.
            with run.meter.waiting_for_data():
                batch = next(batches)
            stage_step = batch.step - schedule.began
            lr = set_rates(state.backend.optimizer, stage_step, schedule.steps, stage.optim)
            if timer.is_due():
                signals.request_save()
            may_skip = config.skip_nonfinite > 0
            result = train_step(engine, prepared, dataset, batch, signals.poll(), may_skip)
            run.meter.count(len(batch.positions))
            progress = run.meter.at_step(batch.step + 1, progress)
            if result.skipped:
                progress = _skip(run, progress, config.skip_nonfinite)
            average.after_step(
                schedule.fraction_done(progress.step),
                config.swa_start,
                is_validated=schedule.evaluates_at(progress.step),
            )

            # c. Log, save, and stop if asked to. Requests are read one step late, so that nothing
            #    waits for the GPU.
            if schedule.logs_at(progress.step):
                loss = f"loss {_log(run, schedule, progress, lr, result):.4f}"
            requests = previous.requests() if previous else NO_REQUESTS
            previous = result
            if schedule.saves_at(progress.step) or any(requests):
                with timer.saving():
                    progress = _save(run, state, progress)
            if requests.preempt or requests.stop:
                raise signals.preempted(by_signal=bool(requests.preempt))
            advance(note=", ".join(filter(None, (loss, data.best_tracker.describe(progress)))))
    finish_stage(run, state, progress, stop)
    return progress, stop


def train_step(
    engine: Engine,
    prepared: PreparedRun,
    dataset: Dataset,
    batch: StepBatch,
    requests: Requests = NO_REQUESTS,
    may_skip: bool = False,
) -> StepResult:
    """One optimizer step with the run's loss, augmentation and seeds, also for the doctor.

    `dataset`: the split that `batch` was read from, as signals or as features.
    """
    config = prepared.config
    engine.seed_dropout(seed_of_step(config.seed, batch.step, engine.rank))
    is_weighted = config.loss.ipcw
    weights_BK = torch.from_numpy(dataset.weights_NK[batch.positions]) if is_weighted else None
    return engine.take_step(
        batch,
        lambda logits, targets, micro: loss_sum(
            logits,
            targets,
            config.loss,
            torch.as_tensor(micro.weights_nK).to(logits.device, non_blocking=True)
            if is_weighted
            else None,
        ),
        divide_by=normalizer(torch.from_numpy(batch.global_labels_BK), config.loss, weights_BK),
        millivolts_per_count=dataset.millivolts_per_count,
        transform=TrainingTransform(
            dataset=prepared.data.train, augment=config.augment, seed=config.seed, step=batch.step
        ),
        requests=requests,
        may_skip=may_skip,
    )


def _log(
    run: Run, schedule: StageSchedule, progress: Progress, lr: float, result: StepResult
) -> float:
    _check_finite(run)
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
    return float(result.loss)


def _save(run: Run, state: StageState, progress: Progress) -> Progress:
    """Write a checkpoint of weights, moments and progress. Collective."""
    _check_finite(run)
    backend = state.backend
    progress = replace(progress, scaler=backend.scaler)
    backend.gather_weights()
    moments = backend.moments()
    average = backend.full_tensors(state.average.state())
    folder, keep = run.folder.checkpoints, state.stage.train.keep_checkpoints
    content = progress, state.inputs.saved_module, moments
    run.engine.run_on_rank_zero(lambda: save_checkpoint(folder, *content, keep, average))
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
    # The line comes first: killed between the two, the run evaluates and records again.
    epoch = progress.step / state.schedule.epoch_steps
    run.record("eval", step=progress.step, epoch=epoch, best=is_best, **scores)
    engine.run_on_rank_zero(lambda: update_progress(run.folder.checkpoints, progress))
    engine.track({f"valid_{name}": value for name, value in scores.items()}, progress.step)
    best = f", the best {tracker.metric} so far" if is_best else ""
    logger.info(
        f"step {progress.step} of {state.schedule.end}: validation loss {scores['loss']:.4f}, "
        f"{tracker.metric} {scores['score']:.4f}{best}"
    )
    return progress


def _skip(run: Run, progress: Progress, budget: int) -> Progress:
    """Count a skipped step; ValueError once there are more than `budget`."""
    progress = replace(progress, skipped=progress.skipped + 1)
    error = _nonfinite_error(run, progress.step - 1)
    if progress.skipped > budget:
        raise error
    run.record("skipped", step=progress.step, count=progress.skipped)
    logger.warning(f"{error}: skipped ({progress.skipped} of train.skip_nonfinite)")
    return progress


def _check_finite(run: Run) -> None:
    """Called before anything is logged or saved: diverged weights must not replace good ones."""
    step = run.engine.first_bad_step()
    if step is not None:
        raise _nonfinite_error(run, step)


def _nonfinite_error(run: Run, step: int) -> ValueError:
    """Write a file that lists the records of the step's batch; return the error that names it."""
    train = run.prepared.data.train
    positions = run.prepared.data.sampler.batch(step)
    batch = [{"key": train.keys[p], "record": train.records[p]} for p in positions]
    path = run.folder.path / f"nonfinite-step-{step + 1:07d}.json"
    write_json(path, {"step": step + 1, "batch": batch})
    return ValueError(
        f"loss or gradient is not finite at step {step + 1}; lower optim.lr, or look at the "
        f"{len(batch)} records of its batch, listed in {path}"
    )
