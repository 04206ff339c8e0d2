"""The best weights of a run: kept on the way, finished at the end, taken home from `best/`.

While the head alone trains, the best head lies aside as a few kilobytes and `best/` is written once
at the end of the stage. At the end of the run calibration is put into the head, so that it travels
with the weights wherever they go; thresholds are fitted after it, on validation alone.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hpc_ecg
from hpc_ecg.atomic_io import write_atomically, write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.evaluation.calibration import fit_calibration
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.scores import fit_operating_points
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.reading import read_checkpoint

logger = logging.getLogger("hpc_ecg")

ASIDE, CALIBRATE = "best-head.safetensors", "calibrate"


@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """What is kept of a run, and all that is written into the file beside the weights."""

    folder: RunFolder
    valid: Dataset
    provenance: list[dict[str, Any]]

    def save(self, model: ECGClassifier, trained: nn.Module) -> None:
        """`trained` (the model, or its head alone) holds the best weights so far."""
        if trained is not model:
            head = {name: tensor.detach().cpu() for name, tensor in trained.state_dict().items()}
            write_atomically(self._aside, lambda aside: save_file(head, aside))
            return
        self._write(model, model.state_dict(), self.provenance)
        self._aside.unlink(missing_ok=True)

    def finish(self, model: ECGClassifier) -> None:
        """Write best/ if its head still lies aside; `model` has the backbone that belongs to it."""
        if self._aside.exists():
            head = load_file(self._aside)
            self._write(model, model.state_dict() | head, self.provenance)
            self._aside.unlink()

    def calibrate(self, model: ECGClassifier, logits_NK: np.ndarray, kind: str) -> bool:
        """Fit on the logits of the best model and put slope and offset into its head, in best/;
        whether that was done. A label that cannot be fitted stays as it is, which is said and
        noted; so does a model that was calibrated before the run died."""
        if kind == "none" or any(step["action"] == CALIBRATE for step in self._done()):
            return False
        labels_NK = self.valid.labels_NK.astype(np.float64)
        fits: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(self.valid.label_names):
            try:
                fits[name] = fit_calibration(labels_NK[:, k], logits_NK[:, k], kind, name)
            except ValueError as error:
                logger.warning("not calibrated: %s", error)
                fits[name] = {"kind": "none", "slope": 1.0, "offset": 0.0, "reason": str(error)}
        slope_K, offset_K = (
            torch.tensor([fit[part] for fit in fits.values()], dtype=torch.float64)
            for part in ("slope", "offset")
        )
        state = model.state_dict()
        weight, bias = state["head.weight"].cpu().double(), state["head.bias"].cpu().double()
        state["head.weight"] = (slope_K[:, None] * weight).float()
        state["head.bias"] = (slope_K * bias + offset_K).float()
        write_json(self.folder.best / "calibration.json", fits)
        self._write(model, state, [*self.provenance, {"action": CALIBRATE, "labels": fits}])
        return True

    def _done(self) -> list[dict[str, Any]]:
        """What this run did to the file in best/; what others did before it does not count."""
        return read_checkpoint(self.folder.best).provenance[len(self.provenance) :]

    @property
    def _aside(self) -> Path:
        return self.folder.checkpoints / ASIDE

    def _write(
        self, model: ECGClassifier, state: dict[str, Tensor], provenance: list[dict[str, Any]]
    ) -> None:
        self.folder.best.mkdir(exist_ok=True)
        path, signal = self.folder.best / "model.safetensors", self.valid.shards.signal
        labels = self.valid.label_names
        save_model(path, state, model.architecture, labels, signal, provenance)


def provenance_of(init_report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was done to the weights before this run, and what this run does."""
    checkpoint = init_report["checkpoint"] or {"path": "random", "sha256": None, "provenance": []}
    before = checkpoint["provenance"]
    source = {"source": Path(checkpoint["path"]).name, "sha256": checkpoint["sha256"]}
    step = {"action": "finetune", **source, "head": init_report["head"]["taken"]}
    return [*before, step | {"seed": init_report["seed"], "version": hpc_ecg.__version__}]


def write_valid(folder: RunFolder, predictions: Predictions) -> None:
    """Predictions on validation, and the thresholds that are fitted there and nowhere else."""
    write_predictions(folder.predictions / "valid.parquet", predictions)
    if predictions.probability_NK is not None:
        write_json(folder.best / "operating_point.json", fit_operating_points(predictions))
