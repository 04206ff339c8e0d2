"""From prepared ECGs to logits, always in batches of one size.

A record's logit does not depend on the others of its batch, nor on how full the batch is: what is
missing is filled with zeros, so every batch has the same shape and runs the same kernels.
"""
# B batch, C leads, S samples, M members of an ensemble, K labels

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from hpc_ecg.data.loader import MicroBatch
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.model.kernels import check_kernels
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.try_kernels import DTYPES
from hpc_ecg.weights import load_model
from hpc_ecg.weights.onnx_export import check_installed

GAUSSIAN = "abstention.safetensors"
"""Beside the weights: mean and covariance of the features of training, of no single person."""
MV_PER_COUNT = MICROVOLTS_PER_COUNT / 1000


class Forward(Protocol):
    takes_padded: bool

    def __call__(
        self, counts_BCS: NDArray[np.int16], samples_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Logits [B, M, K] of a whole batch; `samples_B`: recorded samples, zeros follow them."""


class _Ensemble(nn.Module):
    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return torch.stack([member(*inputs) for member in self.members], dim=1)


class WithFeatures(nn.Module):
    """Logits, and behind them the mean over tokens of what an encoder layer, by default the last,
    gives: [B, K + D]."""

    def __init__(self, model: ECGClassifier, layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        if layer is not None:
            del model.backbone.encoder.layers[layer:]

    def forward(self, ecg_BCS: Tensor, *others: Tensor | None) -> Tensor:
        pooled_BD = self.model.features(ecg_BCS, *others)
        return torch.cat([self.model.classify(pooled_BD), pooled_BD], dim=1)


def far_from_training(
    outputs_BX: NDArray[np.float32], gaussian: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Replace the features of [B, K + D] by their Mahalanobis distance: [B, K + 1]."""
    logits_BK, pooled_BD = np.split(outputs_BX, [-len(gaussian["mean"])], axis=1)
    far_B = np.linalg.norm((pooled_BD - gaussian["mean"]) @ gaussian["whiten"], axis=1)
    return np.column_stack([logits_BK, far_B])


class TorchForward:
    """The model in torch, as `evaluate` runs it."""

    takes_padded = True

    def __init__(self, model: ModelSource, engine: Engine) -> None:
        """ValueError if a kernel is wrong on this hardware, or weights changed."""
        num_labels = None if model.labels else 1  # of a file without a head, for features
        members = [load_model(f, num_labels, model_config=model.config.model) for f in model.files]
        self._samples, self._engine = model.signal.num_samples, engine
        dtype = DTYPES[engine.precision]
        check_kernels(members[0], self._samples, engine.device, dtype, has_mask=False)
        self._skip = 0 if model.layer is None else len(members[0].head.bias)
        self._gaussian: dict[str, NDArray[np.float32]] = {}
        if model.abstains and model.abstention["score"] == "distance":
            self._gaussian = load_file(model.files[0].with_name(GAUSSIAN))
        if self._skip or self._gaussian:
            engine.prepare_inference(WithFeatures(members[0], model.layer))
        else:
            engine.prepare_inference(members[0] if len(members) == 1 else _Ensemble(members))

    def __call__(
        self, counts_BCS: NDArray[np.int16], samples_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        is_padded = bool((samples_B < self._samples).any())
        micro = MicroBatch(
            counts_nCS=counts_BCS,
            samples_n=samples_B if is_padded else None,
            positions=np.zeros(len(counts_BCS), np.int64),
            labels_nK=np.empty((len(counts_BCS), 0), np.float32),
        )
        logits = self._engine.infer(micro, MV_PER_COUNT).cpu().numpy()
        logits = far_from_training(logits, self._gaussian) if self._gaussian else logits
        return logits if logits.ndim == 3 else logits[:, None, self._skip :]


class OnnxForward:
    """A file that `hpc-ecg weights convert` wrote, through ONNX Runtime on the CPU."""

    takes_padded = False

    def __init__(self, path: Path, threads: int = 0) -> None:
        check_installed()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, counts_BCS: NDArray[np.int16], samples_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        (logits_BK,) = self._session.run(
            None, {"ecg": counts_BCS.astype(np.float32) * np.float32(MV_PER_COUNT)}
        )
        return np.asarray(logits_BK)[:, None]
