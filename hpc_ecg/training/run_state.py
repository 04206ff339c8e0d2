"""The parts of a run, and those of one stage: how each is set up, resumed and ended."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpc_ecg.atomic_io import write_json
from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.config.load import to_yaml
from hpc_ecg.distributed.ddp_backend import DDPBackend
from hpc_ecg.distributed.ranks import slurm_job_facts
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.log import logger
from hpc_ecg.model.flops import peak_flops, training_flops
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.averaging import WeightAverager
from hpc_ecg.training.best_weights import BestWeights, provenance_of, write_validation
from hpc_ecg.training.checkpoint import Progress, load_checkpoint, newest_checkpoint
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, StageInputs, choose_stage_inputs
from hpc_ecg.training.meter import Meter
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.prepare import PreparedRun
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.stages import Stage, StageSchedule, trains_head_only
from hpc_ecg.weights import load_model


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

    def choose_inputs(self, model: ECGClassifier, stage: Stage, trains: bool) -> StageInputs:
        """The inputs of a stage. `trains`: False if the training split is not read."""
        data, stages = self.prepared.data, self.prepared.stages
        head_only = trains_head_only(stages, stage)
        return choose_stage_inputs(
            self.features, model, data.train, data.valid, head_only, trains=trains
        )


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What one stage trains, on which data, and when it does what."""

    stage: Stage
    schedule: StageSchedule
    inputs: StageInputs
    backend: DDPBackend
    average: WeightAverager


def start_run(
    folder: RunFolder, prepared: PreparedRun, engine: Engine, signals: StopSignals
) -> Run:
    """Claim the folder on rank 0 and assemble the parts of the run.

    ValueError if the folder is in use, or holds a run of other data, weights or precision.
    """
    config, data, start = prepared.config, prepared.data, prepared.start
    config_yaml = to_yaml(config)
    data.source.stage(data.sampler.shards_by_first_use())
    facts = _hardware_facts(engine) | {"data_index_sha256": data.shards.index_sha256}
    engine.run_on_rank_zero(lambda: folder.open(config_yaml, facts, start.report))
    if measured := engine.kernels and engine.kernels.measured:
        engine.run_on_rank_zero(lambda: write_json(folder.kernels, measured))
    engine.start_trackers(flatten(yaml.safe_load(config_yaml)))
    start.model.backbone.encoder.checkpoint_layers = config.engine.activation_checkpointing
    start.model.to(engine.device)
    # an augmented record has other features each time
    setting = None if config.augment.is_on else config.train.feature_cache
    features = FeatureCache(engine=engine, config=config, setting=setting)
    return Run(
        prepared=prepared,
        folder=folder,
        engine=engine,
        features=features,
        best=BestWeights(folder=folder, valid=data.valid, provenance=provenance_of(start.report)),
        signals=signals,
        meter=Meter(engine.world_size, engine.device),
    )


def restore_progress(run: Run) -> tuple[Progress, Path | None]:
    """The progress of the run and the checkpoint to load, if it resumes; records which it is."""
    checkpoints = run.folder.checkpoints
    newest = run.engine.run_on_rank_zero(lambda: newest_checkpoint(checkpoints))
    checkpoint, progress = newest or (None, Progress())
    run.meter.start_from(progress)
    event = "resumed" if newest else "started"
    run.record(event, step=progress.step, **_hardware_facts(run.engine))
    if newest:
        logger.info(f"{run.folder.path}: resuming from step {progress.step}")
    return progress, checkpoint


def _hardware_facts(engine: Engine) -> dict[str, object]:
    """What environment.json and metrics.jsonl record about this start."""
    return {
        "processes": engine.world_size,
        "device": engine.device_name,
        "precision": engine.precision,
        "slurm": slurm_job_facts(),
    }


def begin_stage(run: Run, stage: Stage, progress: Progress, checkpoint: Path | None) -> StageState:
    """Freeze what does not train, restore the checkpoint, wrap the model, make the optimizer."""
    engine, prepared = run.engine, run.prepared
    model, data = prepared.start.model, prepared.data
    schedule = StageSchedule(
        config=stage.train, epoch_steps=data.sampler.steps_per_epoch, began=progress.stage_began
    )
    model.freeze(stage.freeze, stage.train.freeze_layers)
    inputs = run.choose_inputs(model, stage, trains=schedule.steps > 0)
    moments, mean = load_checkpoint(checkpoint, inputs.saved_module) if checkpoint else ({}, {})
    backend = engine.prepare_training(
        inputs.module,
        partial(build_optimizer, config=stage.optim, device=engine.device),
        stage.optim.clip_norm,
        moments,
    )
    flops = training_flops(
        model.architecture, data.shards.signal.num_samples, stage.freeze, stage.train.freeze_layers
    )
    run.meter.set_workload(flops, peak_flops(engine.device_name, engine.precision))
    parameters = backend.trainable_parameters()
    average = WeightAverager(parameters, stage.train.average, stage.train.ema_decay)
    average.restore(backend.shard_like_params(mean))
    backend.scaler = progress.scaler
    if progress.step == schedule.began:
        run.record("stage", step=progress.step, stage=stage.name, of=schedule.end)
    return StageState(
        stage=stage, schedule=schedule, inputs=inputs, backend=backend, average=average
    )


def finish_stage(run: Run, state: StageState, progress: Progress, stop: str) -> None:
    """Leave the stage's weights in the model, and its best ones in best/."""
    config, schedule = state.stage.train, state.schedule
    score = run.prepared.data.best_tracker.describe(progress)
    logger.info(f"{run.folder.path}, stage {state.stage.name}: {score}, stopped by {stop}")
    swa_began = schedule.began + config.swa_start * schedule.steps
    if config.average == "swa" and (progress.best_step or 0) < swa_began:
        logger.warning("the best weights are those of a single step, from before swa began")
    state.backend.gather_weights()
    if run.engine.is_rank_zero:
        run.best.finish(run.prepared.start.model)


def finish_run(run: Run, progress: Progress, stop: str) -> None:
    """Write predictions/valid.parquet, best/operating_point.json and, last, finished.json.

    A calibrated model predicts validation again, rather than having its logits adjusted, so a run
    that was killed in between ends with the same numbers.
    """
    engine, best, config = run.engine, run.best, run.prepared.config
    model, logits_NK = _predict_with_best(run)
    if engine.run_on_rank_zero(lambda: best.calibrate(model, logits_NK, config.train.calibration)):
        logits_NK = _predict_with_best(run)[1]
    predictions = as_predictions(run.prepared.data.valid, logits_NK, config.data.task)
    engine.run_on_rank_zero(lambda: write_validation(run.folder, predictions))
    engine.run_on_rank_zero(lambda: run.folder.finish(_summary(run, progress, stop)))


def _predict_with_best(run: Run) -> tuple[ECGClassifier, np.ndarray]:
    """The model in best/ and its logits on validation, float32 [N, K]."""
    engine, config = run.engine, run.prepared.config
    engine.barrier()  # rank 0 may still be writing the weights
    model = load_model(run.folder.best, model_config=config.model).to(engine.device)
    if engine.kernels:
        engine.kernels.apply(model)
    inputs = run.choose_inputs(model, run.prepared.stages[-1], trains=False)
    engine.prepare_inference(inputs.module)
    return model, predict(engine, inputs.valid, config.data.batch_size)


def _summary(run: Run, progress: Progress, stop: str) -> dict[str, Any]:
    """The content of finished.json: score and cost."""
    progress = run.meter.at_step(progress.step, progress)
    return {
        "steps": progress.step,
        "metric": run.prepared.data.best_tracker.metric,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "skipped": progress.skipped,
        "train_seconds": progress.seconds,
        "process_seconds": progress.process_seconds,
        "energy_kwh": progress.energy_kwh,
        "ecg_per_s": run.meter.mean_rate(),
        "stopped": stop,
        "epochs": progress.step / run.prepared.data.sampler.steps_per_epoch,
        "processes": run.engine.world_size,
        "device": run.engine.device_name,
    }
