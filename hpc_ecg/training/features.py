"""Features of a frozen backbone, computed once and kept on disk.

While only the head trains, its input for a record never changes: it depends on the weights, the
signals and the arithmetic. The cache file is named after a digest of these, so runs with other
seeds, learning rates or labels share it. Batch size, number of processes and attention kernel count
as arithmetic: they change the last bits, and a run's numbers must not depend on which other run
came first. Only files with a signature of this user are read: a folder of shards may come from
anybody. Training then reads a `FeatureDataset` and runs the head alone (`Probe`).
"""

# N records of the split, n records read, D width

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from hpc_ecg.atomic_io import wait_until_seen, write_atomically, write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.log import logger, waiting_for
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.safe_reading import check_map, read_json, sha256_of, watch_map
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.predict import predict
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.user_key import sign

VERSION = 1
"""Raise it when the model's numbers change, so that older files are no longer found."""


class Probe(nn.Module):
    """The head of a model: features [B, D] -> logits [B, K]; shares the model's parameters."""

    def __init__(self, model: ECGClassifier) -> None:
        super().__init__()
        self.head = model.head
        self._classify = model.classify

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return self._classify(pooled_BD)


class Extractor(nn.Module):
    """A model without its head: ECG [B, C, S] -> features [B, D]."""

    def __init__(self, model: ECGClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, ecg_BCS: Tensor, *others: Tensor | None) -> Tensor:
        return self.model.features(ecg_BCS, *others)


class FeatureDataset(Dataset):
    """A split whose records are features, float32 [D] each."""

    millivolts_per_count = 1.0
    streams = False

    def __init__(self, dataset: Dataset, features_ND: np.ndarray) -> None:
        vars(self).update(vars(dataset))
        self._path = str(getattr(features_ND, "filename", ""))
        watch_map(self._path, features_ND.base)
        self._features_ND = features_ND
        self.record_shape, self.dtype = features_ND.shape[1:], np.float32

    def samples(self, positions: np.ndarray) -> None:
        """None: the padding was masked when the features were computed."""

    def read(self, positions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        check_map(self._path)
        if out is None:
            return self._features_ND[positions]
        out[: len(positions)] = self._features_ND[positions]
        return out[: len(positions)]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Where features are kept, and what computes them."""

    engine: Engine
    config: FinetuneConfig
    setting: str | None
    """train.feature_cache, or None."""

    def load_or_compute(
        self, model: ECGClassifier, backbone_sha256: str, dataset: Dataset
    ) -> FeatureDataset:
        """The split as features of the backbone with this digest. Collective.

        ValueError if the folder of the cache cannot be written.
        """
        engine, batch_size = self.engine, self.config.data.batch_size
        inputs = _inputs_of(model, dataset) | {
            "backbone_sha256": backbone_sha256,
            "precision": engine.precision,
            "device": engine.device_name,
            "processes": engine.world_size,
            "batch_size": batch_size,
        }
        digest = sign(json.dumps(inputs, sort_keys=True))  # that of the first process counts
        name = f"{digest[:32]}-{dataset.split}.npy"
        path = Path(engine.run_on_rank_zero(lambda: str(self._folder_for(dataset) / name)))
        lock = FileLock(f"{path}.lock")
        try:
            if not engine.run_on_rank_zero(lambda: _is_cached_or_lock(path, lock, digest)):
                logger.info(f"features of split {dataset.split}: computed once, into {path}")
                engine.prepare_inference(Extractor(model))
                width = model.head.in_features
                features_ND = predict(engine, dataset, batch_size, width)
                engine.run_on_rank_zero(lambda: write_signed(path, features_ND, inputs, digest))
        finally:
            lock.release()
        wait_until_seen(path)
        return FeatureDataset(dataset, np.load(path, mmap_mode="r"))

    def _folder_for(self, dataset: Dataset) -> Path:
        if self.setting != "auto":
            return make_writable(Path(self.setting or ""), "train.feature_cache=")
        prefix, in_run = "train.feature_cache=auto: ", Path(self.config.run_dir) / "features"
        if not dataset.shards.url:
            try:
                return make_writable(dataset.shards.folder / "features", prefix)
            except ValueError as error:
                logger.info(f"{error}: features are kept in {in_run}, for this run only")
        return make_writable(in_run, prefix)


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """The model and its signals or, while only the head trains, the head and its features."""

    module: nn.Module
    """The module that the engine runs."""
    saved_module: nn.Module
    """The module that checkpoints hold; it shares the model's parameters."""
    train: Dataset
    valid: Dataset


def choose_stage_inputs(
    cache: FeatureCache,
    model: ECGClassifier,
    train: Dataset,
    valid: Dataset,
    head_only: bool,
    trains: bool = True,
) -> StageInputs:
    """Features if only the head trains, otherwise signals.

    The training split's features are computed only if the stage `trains`. Dropout on the tokens
    before pooling would change the features at each pass, so then nothing is cached.
    """
    saved = Probe(model) if head_only else model
    if not head_only or cache.setting is None or model.final_dropout.p > 0:
        return StageInputs(module=model, saved_module=saved, train=train, valid=valid)
    digest = _digest_of(model.backbone)
    if trains:
        train = cache.load_or_compute(model, digest, train)
    valid = cache.load_or_compute(model, digest, valid)
    return StageInputs(module=saved, saved_module=saved, train=train, valid=valid)


def _digest_of(backbone: nn.Module) -> str:
    weights = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} ".encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return weights.hexdigest()


def _inputs_of(model: ECGClassifier, dataset: Dataset) -> dict[str, Any]:
    attention: Any = model.backbone.encoder.layers[0].self_attn
    padded_N = dataset.samples(np.arange(len(dataset)))
    optional = {} if padded_N is None else {"samples": padded_N.tolist()}
    conv: Any = model.backbone.conv_pos["pos_conv"]
    if conv[0].kind not in ("auto", "direct"):
        optional["positional_conv"] = conv[0].kind
    return optional | {
        "version": VERSION,
        "heads": model.architecture.encoder_attention_heads,
        "attention": attention.kind,
        "pooling": model.pooling,
        "signal": asdict(dataset.shards.signal),
        "microvolts_per_count": dataset.shards.microvolts_per_count,
        "records_sha256": hashlib.sha256("".join(dataset.sha256_N).encode()).hexdigest(),
    }


def make_writable(folder: Path, prefix: str = "") -> Path:
    """Make the folder; ValueError, which starts with `prefix`, if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{prefix}{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{prefix}{folder} cannot be written")
    return folder


def _is_cached_or_lock(path: Path, lock: FileLock, digest: str) -> bool:
    """True if the features are cached and intact; otherwise this process holds the lock to compute.

    Waits while another process computes them.
    """
    if is_signed(path, digest):
        return True
    with waiting_for(f"waiting for another process that computes {path}"):
        lock.acquire()
    return is_signed(path, digest)


def is_signed(path: Path, digest: str) -> bool:
    description = path.with_suffix(".json")
    if not path.exists() or not description.exists():
        return False
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if read_json(description)["signature"] == sign(f"{digest} {sha256_of(path)}"):
            return True
    logger.warning(f"{path} is not as this user wrote it (signature): computed again")
    return False


def write_signed(path: Path, features_ND: np.ndarray, inputs: dict[str, Any], digest: str) -> None:
    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, features_ND)

    write_atomically(path, save)
    signature = sign(f"{digest} {sha256_of(path)}")
    write_json(path.with_suffix(".json"), inputs | {"signature": signature})
