"""The best weights of a run: kept on the way, finished at the end, taken home from `best/`.

While the head alone trains, the best head lies aside as a few kilobytes and `best/` is written once
at the end of the stage. At the end of the run calibration is put into the head, so that it travels
with the weights wherever they go; thresholds are fitted after it, on validation alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.evaluation.calibration import fit_calibration
from hpc_ecg.evaluation.evaluate import fit_operating_points
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.run_folder import RunFolder
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.writing import write_json, write_whole

ASIDE, CALIBRATED = "best-head.safetensors", "calibrated"


def save_best(folder: RunFolder, model: ECGClassifier, trained: nn.Module, valid: Dataset) -> None:
    """`trained` (the model, or its head alone) holds the best weights so far."""
    if trained is not model:
        head = {name: tensor.detach().cpu() for name, tensor in trained.state_dict().items()}
        write_whole(_aside(folder), lambda aside: save_file(head, aside))
        return
    _write_model(folder, model, model.state_dict(), valid)
    _aside(folder).unlink(missing_ok=True)


def finish_best(folder: RunFolder, model: ECGClassifier, valid: Dataset) -> None:
    """Write best/ if its head still lies aside; `model` has the backbone that belongs to it."""
    if _aside(folder).exists():
        head = load_file(_aside(folder))
        _write_model(folder, model, model.state_dict() | head, valid)
        _aside(folder).unlink()


def calibrate(
    folder: RunFolder, model: ECGClassifier, valid: Dataset, logits_NK: np.ndarray, kind: str
) -> np.ndarray:
    """Fit on the logits of the best model and put slope and offset into its head, and into best/;
    returns the logits of the calibrated model. A model that was calibrated before the run died is
    left as it is."""
    if kind == "none" or _was_calibrated(folder):
        return logits_NK
    labels_NK = valid.labels_NK.astype(np.float64)
    fits = {
        name: fit_calibration(labels_NK[:, k], logits_NK[:, k], kind, name)
        for k, name in enumerate(valid.label_names)
    }
    slope_K = torch.tensor([fit["slope"] for fit in fits.values()], dtype=torch.float64)
    offset_K = torch.tensor([fit["offset"] for fit in fits.values()], dtype=torch.float64)
    state = model.state_dict()
    weight, bias = state["head.weight"].cpu().double(), state["head.bias"].cpu().double()
    state["head.weight"] = (slope_K[:, None] * weight).float()
    state["head.bias"] = (slope_K * bias + offset_K).float()
    _write_model(folder, model, state, valid, [{CALIBRATED: fits}])
    write_json(folder.best / "calibration.json", fits)
    return (logits_NK * slope_K.numpy() + offset_K.numpy()).astype(np.float32)


def _was_calibrated(folder: RunFolder) -> bool:
    return any(CALIBRATED in entry for entry in read_checkpoint(folder.best).provenance)


def write_valid(folder: RunFolder, predictions: Predictions) -> None:
    """Predictions on validation, and the thresholds that are fitted there and nowhere else."""
    write_predictions(folder.predictions / "valid.parquet", predictions)
    if predictions.probability_NK is not None:
        write_json(folder.best / "operating_point.json", fit_operating_points(predictions))


def _aside(folder: RunFolder) -> Path:
    return folder.checkpoints / ASIDE


def _write_model(
    folder: RunFolder,
    model: ECGClassifier,
    state: dict[str, Tensor],
    valid: Dataset,
    provenance: list[dict[str, Any]] | None = None,
) -> None:
    """best/model.safetensors, with sizes, labels, SignalSpec and what was done in it."""
    folder.best.mkdir(exist_ok=True)
    path, signal = folder.best / "model.safetensors", valid.shards.signal
    save_model(path, state, model.architecture, valid.label_names, signal, provenance)
