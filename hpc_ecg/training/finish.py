"""The end of a run: calibrate the best weights, predict validation with them, fit thresholds."""

from typing import Any

import numpy as np

from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.best_weights import write_validation
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.features import choose_stage_inputs
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.run_state import Run
from hpc_ecg.training.stages import trains_head_only
from hpc_ecg.weights import load_model


def finish_run(
    run: Run, model_config: ModelConfig, calibration: str, progress: Progress, stop: str
) -> None:
    """Write predictions/valid.parquet, best/operating_point.json and, last, finished.json.

    A calibrated model predicts again, instead of its logits being adjusted, so that the numbers are
    the same after a kill.
    """
    engine, best = run.engine, run.best
    model, logits_NK = _predict_with_best(run, model_config)
    if engine.run_on_rank_zero(lambda: best.calibrate(model, logits_NK, calibration)):
        logits_NK = _predict_with_best(run, model_config)[1]
    data = run.prepared.data
    predictions = as_predictions(data.valid, logits_NK, data.best_tracker.task)
    engine.run_on_rank_zero(lambda: write_validation(run.folder, predictions))
    engine.run_on_rank_zero(lambda: run.folder.finish(_summary(run, progress, stop)))


def _predict_with_best(run: Run, model_config: ModelConfig) -> tuple[ECGClassifier, np.ndarray]:
    """The model in best/ and its logits on validation, float32 [N, K]."""
    engine, data = run.engine, run.prepared.data
    engine.wait_for_all()  # rank 0 may still be writing the weights
    model = load_model(run.folder.best, model_config=model_config).to(engine.device)
    inputs = choose_stage_inputs(
        run.features,
        model,
        data.train,
        data.valid,
        head_only=trains_head_only(run.prepared.stages),
        trains=False,
    )
    engine.prepare_inference(inputs.module)
    return model, predict(engine, inputs.valid, data.sampler.config.batch_size)


def _summary(run: Run, progress: Progress, stop: str) -> dict[str, Any]:
    """What finished.json says of score and cost."""
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
