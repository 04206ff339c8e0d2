"""Features of a frozen backbone, computed once and kept on disk.

While nothing below the head trains, what the head sees of a record is always the same: it depends
on the weights, the signals and the arithmetic alone. The file is named by the digest of those, so
that every seed, learning rate and set of labels finds it. The size of a batch, the number of
processes and the kind of attention belong to the arithmetic: the last bits depend on them, and a
run's numbers may not depend on which other run came first. What comes out is the same split again,
whose `read` gives features; the head alone is then the model (`Probe`).
"""

# N records of the split, n records read, D width

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from hpc_ecg.atomic_io import sha256_of, wait_until_seen, write_atomically, write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.predict import predict

logger = logging.getLogger("hpc_ecg")

VERSION = 1  # of what the model computes; a change of its numbers makes old files useless


class Probe(nn.Module):
    """The head of a model alone: features [B, D] -> logits [B, K]; the model's own parameters."""

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

    def forward(
        self, ecg_BCS: Tensor, padding_mask: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> Tensor:
        return self.model.features(ecg_BCS, padding_mask, seeds_B)


class FeatureDataset(Dataset):
    """A split whose records are features, float32 [D] each."""

    def __init__(self, dataset: Dataset, features_ND: np.ndarray) -> None:
        vars(self).update(vars(dataset))
        self._features_ND = features_ND
        self.record_shape, self.dtype = features_ND.shape[1:], np.float32

    @property
    def millivolts_per_count(self) -> float:
        return 1.0

    @property
    def streams(self) -> bool:
        return False

    def samples(self, positions: np.ndarray) -> None:
        """What was padded was left out when they were computed."""

    def read(self, positions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self._features_ND[positions]
        out[: len(positions)] = self._features_ND[positions]
        return out[: len(positions)]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Where features are kept and how they are computed; every rank calls `of`."""

    engine: Engine
    setting: str | None
    """train.feature_cache"""
    batch_size: int
    run_dir: Path

    def of(self, model: ECGClassifier, backbone_sha256: str, dataset: Dataset) -> FeatureDataset:
        """The split as features of this model's backbone, from the cache or computed into it.
        ValueError: the cache's folder cannot be written."""
        engine = self.engine
        inputs = _inputs_of(model, dataset) | {
            "backbone_sha256": backbone_sha256,
            "precision": engine.precision,
            "device": engine.device_name,
            "processes": engine.world_size,
            "batch_size": self.batch_size,
        }
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        name = f"{digest[:32]}-{dataset.split}.npy"
        path = Path(engine.run_on_rank_zero(lambda: str(self._folder_for(dataset) / name)))
        lock = FileLock(f"{path}.lock")
        try:
            if not engine.run_on_rank_zero(lambda: _is_there_or_lock(path, lock)):
                logger.info("features of split %s: computed once, into %s", dataset.split, path)
                engine.prepare(Extractor(model))
                width = model.head.in_features
                features_ND = predict(engine, dataset, self.batch_size, width)
                engine.run_on_rank_zero(lambda: _write(path, features_ND, inputs))
        finally:
            lock.release()
        wait_until_seen(path)
        return FeatureDataset(dataset, np.load(path, mmap_mode="r"))

    def _folder_for(self, dataset: Dataset) -> Path:
        if self.setting != "auto":
            return _made(Path(self.setting or ""), "train.feature_cache=")
        shared, own = dataset.shards.folder / "features", self.run_dir / "features"
        if dataset.shards.url:
            return _made(own, "train.feature_cache=auto: ")
        try:
            return _made(shared, "train.feature_cache=auto: ")
        except ValueError as error:
            logger.info("%s: features are kept in %s, for this run alone", error, own)
            return _made(own, "train.feature_cache=auto: ")


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """What a stage works on: the model and signals or, while the head alone trains, the head and
    features."""

    module: nn.Module
    """What the engine runs."""
    kept: nn.Module
    """What checkpoints hold; shares the model's parameters."""
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
    """Features where the backbone stays what it was; those of the training split only if somebody
    trains. Dropout on the tokens that are pooled would make other ones each time: not cached."""
    if not head_only:
        return StageInputs(module=model, kept=model, train=train, valid=valid)
    probe = Probe(model)
    if cache.setting is None or model.final_dropout.p > 0:
        return StageInputs(module=model, kept=probe, train=train, valid=valid)
    digest = _digest_of(model.backbone)
    if trains:
        train = cache.of(model, digest, train)
    return StageInputs(module=probe, kept=probe, train=train, valid=cache.of(model, digest, valid))


def _digest_of(backbone: nn.Module) -> str:
    weights = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} ".encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return weights.hexdigest()


def _inputs_of(model: ECGClassifier, dataset: Dataset) -> dict[str, Any]:
    attention: Any = model.backbone.encoder.layers[0].self_attn
    padded_N = dataset.samples(np.arange(len(dataset)))
    padding = {} if padded_N is None else {"samples": padded_N.tolist()}
    return padding | {
        "version": VERSION,
        "heads": model.architecture.encoder_attention_heads,
        "attention": attention.kind,
        "pooling": model.pooling,
        "signal": asdict(dataset.shards.signal),
        "microvolts_per_count": dataset.shards.microvolts_per_count,
        "records_sha256": hashlib.sha256("".join(dataset.sha256_N).encode()).hexdigest(),
    }


def _made(folder: Path, what: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{what}{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{what}{folder} cannot be written")
    return folder


def _is_there_or_lock(path: Path, lock: FileLock) -> bool:
    """True if the features are there and whole; else this process holds the lock and makes them.
    Another process at work on them is waited for."""
    if _is_whole(path):
        return True
    lock.acquire()
    return _is_whole(path)


def _is_whole(path: Path) -> bool:
    about = path.with_suffix(".json")
    if not path.exists() or not about.exists():
        return False
    try:
        known = json.loads(about.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        known = None
    if sha256_of(path) == known:
        return True
    logger.warning("%s is not what was written (its SHA-256): computed again", path)
    return False


def _write(path: Path, features_ND: np.ndarray, inputs: dict[str, Any]) -> None:
    def save(aside: Path) -> None:
        with aside.open("wb") as file:
            np.save(file, features_ND)

    write_atomically(path, save)
    write_json(path.with_suffix(".json"), inputs | {"sha256": sha256_of(path)})
