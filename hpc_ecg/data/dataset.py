"""One split of a set of shards, ready to train on: `data` settings in, a Dataset out.

Labels and identities lie in memory; signals stay in the shards, which are mapped and read by the
byte offsets of the index.
"""

# N records of the split, K labels, C leads, S samples

import hashlib
import mmap
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from omegaconf import MISSING

from hpc_ecg.data import order, splits
from hpc_ecg.data.shards import LABEL_PREFIX, ShardSet, read_shard_set

TASKS = ("binary", "multilabel", "regression")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    shards: str = MISSING
    """Folder of shards, as tools/shard_ecgs.py writes it."""
    task: str = "binary"
    """What the labels are: binary (one label), multilabel or regression."""
    labels: list[str] = field(default_factory=list)
    """Labels to train on, in the head's order; [] = all labels of the shards."""
    batch_size: int = 128
    """Records of one optimizer step, over all processes together."""
    order: str = "shuffled"
    """shuffled = anew each epoch; fixed_batches = as the reference: batches are cut once and only
    their order changes (its own batches with seed=1)."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"data.task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.order not in order.KINDS:
            raise ValueError(f"data.order must be {' or '.join(order.KINDS)}, got {self.order!r}")
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {self.batch_size}")


class Dataset:
    """Records of one split: labels, identities, and signals by position."""

    def __init__(self, shards: ShardSet, split: str, label_names: list[str]) -> None:
        index = shards.index[shards.index["split"] == split]
        self.split = split
        self.shards = shards
        self.label_names = label_names
        columns = [LABEL_PREFIX + name for name in label_names]
        self.labels_NK = index[columns].to_numpy(np.float32, copy=True)
        self.records: list[str] = index["record"].tolist()
        self.patients: list[str] = index["patient"].tolist()
        self._shard_N = index["shard"].to_numpy()
        self._offset_N = index["offset"].to_numpy()
        self.sha256_N: list[str] = index["sha256"].tolist()
        self._verified_N = np.zeros(len(index), bool)
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.records)

    @property
    def millivolts_per_count(self) -> float:
        """What makes the model's input of what `read` gives."""
        return self.shards.microvolts_per_count / 1000

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The signals at these positions, int16 counts [n, C, S]."""
        signal = self.shards.signal
        shape = (len(signal.leads), signal.num_samples)
        out_NCS = np.empty((len(positions), *shape), np.int16)
        for row, position in enumerate(positions):
            data = self._map(int(self._shard_N[position]))
            start = int(self._offset_N[position])
            array = np.frombuffer(data, np.int16, count=shape[0] * shape[1], offset=start)
            if not self._verified_N[position]:
                self._verify(array, int(position))
            out_NCS[row] = array.reshape(shape)
        return out_NCS

    def _verify(self, array: np.ndarray, position: int) -> None:
        """Once per record and process: what is read must be what was written."""
        if hashlib.sha256(array.tobytes()).hexdigest() != self.sha256_N[position]:
            path = self.shards.shard_path(int(self._shard_N[position]))
            raise ValueError(
                f"{path} is damaged: a record in it is not the one that was written (its SHA-256); "
                "copy the shard again, or write the shards again"
            )
        self._verified_N[position] = True

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with self.shards.shard_path(shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


def open_shards(config: DataConfig) -> tuple[ShardSet, list[str]]:
    """The set of shards and the labels to use; ValueError if they do not fit `data.task`."""
    shards = read_shard_set(config.shards)
    names = config.labels or shards.label_names
    unknown = [name for name in names if name not in shards.label_names]
    if unknown:
        raise ValueError(
            f"data.labels: {', '.join(unknown)} not in {config.shards}, "
            f"which has {', '.join(shards.label_names)}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"data.labels: {', '.join(names)} names a label twice")
    if config.task == "binary" and len(names) != 1:
        raise ValueError(
            f"data.task=binary needs one label, got {len(names)} ({', '.join(names)}); "
            "choose one with data.labels=[…], or data.task=multilabel"
        )
    if config.task != "regression":
        for name in names:
            _check_zero_or_one(shards.index, name, config)
    _check_patients_apart(shards)
    return shards, names


def open_split(shards: ShardSet, split: str, label_names: list[str]) -> Dataset:
    """One split; ValueError if it is empty, or if one of its labels is missing in every record."""
    dataset = Dataset(shards, split, label_names)
    if len(dataset) == 0:
        counts = shards.description["records"]
        raise ValueError(f"split {split} of {shards.folder} is empty (records: {counts})")
    for k, name in enumerate(label_names):
        if np.isnan(dataset.labels_NK[:, k]).all():
            raise ValueError(f"label {name} is missing in every record of split {split}")
    return dataset


def _check_zero_or_one(index: pd.DataFrame, name: str, config: DataConfig) -> None:
    values = index[LABEL_PREFIX + name]
    wrong = index[~(values.isna() | values.isin([0, 1]))]
    if len(wrong):
        row = int(wrong["key"].iloc[0]) + 1
        raise ValueError(
            f"label {name} does not fit data.task={config.task}: row {row} "
            f"has {values[wrong.index[0]]:g} ({len(wrong)} such records); allowed are 0, 1 and "
            "empty (missing); for other numbers use data.task=regression"
        )


def _check_patients_apart(shards: ShardSet) -> None:
    index = shards.index
    rows, of_rows = index["key"].astype(int).tolist(), index["split"].tolist()
    splits.check_apart(index["patient"].tolist(), of_rows, rows, "one patient")
    splits.check_apart(index["sha256"].tolist(), of_rows, rows, "an identical signal")
