"""The parts of a run, and what each of its stages trains: made at its start, settled at its end."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpc_ecg.distributed.backend import ParallelBackend
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.training.averaging import WeightAverager
from hpc_ecg.training.best_weights import BestWeights
from hpc_ecg.training.checkpoint import Progress, load_checkpoint
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, StageInputs, choose_stage_inputs
from hpc_ecg.training.meter import Meter
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import PreparedRun
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.stage_schedule import StageSchedule
from hpc_ecg.training.stages import Stage, trains_head_only
from hpc_ecg.training.workload import workload

logger = logging.getLogger("hpc_ecg")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run that its stages share."""

    prepared: PreparedRun
    folder: RunFolder
    engine: Engine
    features: FeatureCache
    best: BestWeights
    signals: StopSignals
    meter: Meter

    def record(self, event: str, **values: object) -> None:
        """Append to metrics.jsonl, on rank 0."""
        if self.engine.is_rank_zero:
            self.folder.append_event(event, **values)


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What one stage trains, on what, and when."""

    stage: Stage
    schedule: StageSchedule
    inputs: StageInputs
    backend: ParallelBackend
    average: WeightAverager


def begin_stage(run: Run, stage: Stage, progress: Progress, checkpoint: Path | None) -> StageState:
    """Freeze, restore the checkpoint, wrap the model, make the optimizer."""
    engine, prepared, train_config = run.engine, run.prepared, stage.train
    model, data = prepared.start.model, prepared.data
    steps_per_epoch = data.sampler.steps_per_epoch
    schedule = StageSchedule.from_config(train_config, steps_per_epoch, progress.stage_began)
    model.freeze(stage.freeze, train_config.freeze_layers)
    inputs = choose_stage_inputs(
        run.features,
        model,
        data.train,
        data.valid,
        head_only=trains_head_only(prepared.stages, stage),
        trains=schedule.steps > 0,
    )
    saved = load_checkpoint(checkpoint, inputs.saved_module) if checkpoint else None
    backend = engine.prepare_training(
        inputs.module,
        partial(build_optimizer, config=stage.optim, device=engine.device),
        stage.optim.clip_norm,
        saved.moments if saved else None,
    )
    run.meter.set_workload(*workload(model, data.train, stage, engine))
    parameters = backend.trainable_parameters()
    average = WeightAverager(parameters, train_config.average, train_config.ema_decay)
    if saved:
        average.restore(backend.shard_like_params(saved.average))
    backend.scaler = progress.scaler
    if progress.step == schedule.began:
        run.record("stage", step=progress.step, stage=stage.name, of=schedule.end)
    return StageState(
        stage=stage, schedule=schedule, inputs=inputs, backend=backend, average=average
    )


def finish_stage(run: Run, state: StageState, progress: Progress, stop: str) -> None:
    """Leave the stage's weights in the model, and its best ones in best/."""
    train_config, schedule = state.stage.train, state.schedule
    score = run.prepared.data.best_tracker.describe(progress)
    logger.info(f"{run.folder.path}, stage {state.stage.name}: {score}, stopped by {stop}")
    swa_began = schedule.began + train_config.swa_start * schedule.steps
    if train_config.average == "swa" and (progress.best_step or 0) < swa_began:
        logger.warning("the best weights are those of a single step, from before swa began")
    state.backend.gather_weights()
    if run.engine.is_rank_zero:
        run.best.finish(run.prepared.start.model)
