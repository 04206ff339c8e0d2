"""The end of a run: calibrate the best weights, predict validation with them, fit thresholds."""

from typing import Any

import numpy as np

from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.best_weights import write_validation
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.run_state import Run
from hpc_ecg.weights import load_model


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
