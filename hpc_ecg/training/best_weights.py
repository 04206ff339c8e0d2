"""The best weights of a run, in `best/`: saved during training, calibrated at the end.

While only the head trains, the best head is saved as a file of a few kilobytes, and `best/` is
written once at the end of the stage. At the end of the run the calibration is merged into the head,
so that it stays with the weights. Thresholds are fitted after that, on validation alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpc_ecg.atomic_io import write_atomically, write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.evaluation.calibration import fit_calibration
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.evaluation.scores import fit_operating_points
from hpc_ecg.log import logger
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.version import __version__
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.reading import read_checkpoint

BEST_HEAD, CALIBRATE = "best-head.safetensors", "calibrate"


@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """Writes the weights with their signal, labels and provenance."""

    folder: RunFolder
    valid: Dataset
    provenance: list[dict[str, Any]]

    def save(self, model: ECGClassifier, saved_module: nn.Module) -> None:
        """Save the current weights; `saved_module` is a Probe if only the head trains."""
        if saved_module is not model:
            state = saved_module.state_dict()
            head = {name: tensor.detach().cpu() for name, tensor in state.items()}
            write_atomically(self._head_path, lambda path: save_file(head, path))
            return
        self._write(model, model.state_dict(), self.provenance)
        self._head_path.unlink(missing_ok=True)

    def finish(self, model: ECGClassifier) -> None:
        """Write best/ if only a head was saved so far; `model` has the backbone of that head."""
        if self._head_path.exists():
            head = load_file(self._head_path)
            self._write(model, model.state_dict() | head, self.provenance)
            self._head_path.unlink()

    def calibrate(self, model: ECGClassifier, logits_NK: np.ndarray, kind: str) -> bool:
        """Fit slope and offset on the best model's logits [N, K] and merge them into its head.

        Returns whether best/ changed: a model that was calibrated before the run died stays as it
        is. So does a label that cannot be fitted, with a warning and a line in calibration.json.
        """
        if kind == "none":
            return False
        steps_of_this_run = read_checkpoint(self.folder.best).provenance[len(self.provenance) :]
        if any(step["action"] == CALIBRATE for step in steps_of_this_run):
            return False
        labels_NK = self.valid.labels_NK.astype(np.float64)
        patient_N = np.array(self.valid.patients)
        fits: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(self.valid.label_names):
            try:
                data, weight_N = (labels_NK[:, k], logits_NK[:, k]), self.valid.weights_NK[:, k]
                fits[name] = fit_calibration(*data, kind, name, patient_N, weight_N.astype(float))
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

    @property
    def _head_path(self) -> Path:
        return self.folder.checkpoints / BEST_HEAD

    def _write(
        self, model: ECGClassifier, state: dict[str, Tensor], provenance: list[dict[str, Any]]
    ) -> None:
        self.folder.best.mkdir(exist_ok=True)
        path, signal = self.folder.best / "model.safetensors", self.valid.shards.signal
        labels = self.valid.label_names
        save_model(path, state, model.architecture, labels, signal, provenance)


def provenance_of(init_report: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that produced the weights, including this run."""
    checkpoint = init_report["checkpoint"] or {"path": "random", "sha256": None, "provenance": []}
    before = checkpoint["provenance"]
    source = {"source": Path(checkpoint["path"]).name, "sha256": checkpoint["sha256"]}
    step = {"action": "finetune", **source, "head": init_report["head"]["taken"]}
    made = {name: of["made"] for name, of in init_report.get("update", {}).items()}
    step |= {"update": made} if made else {}
    return [*before, step | {"seed": init_report["seed"], "version": __version__}]


def write_validation(folder: RunFolder, predictions: Predictions) -> None:
    """Write the predictions on validation, and the thresholds fitted to them."""
    write_predictions(folder.predictions / "valid.parquet", predictions)
    if predictions.probability_NK is not None:
        points = fit_operating_points(predictions)
        for name, by_method in points.items():
            if warning := next(iter(by_method.values())).get("warning"):
                logger.warning("%s: %s, and so do the best step and the calibration", name, warning)
        write_json(folder.best / "operating_point.json", points)
