"""One split of a set of shards, ready to train on: settings of `data` in, a Dataset out.

Labels and identities are in memory; signals stay in the source and are read at the byte offsets
that the index gives.
"""

# N records of the split, n records read, K labels, C leads, S samples

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_ecg.cohort import splits
from hpc_ecg.cohort.table import WEIGHT_PREFIX
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.source import ShardSource
from hpc_ecg.data.views import as_split, keep_label_fraction, replace_labels
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.classes import ADVICE, find_lacks
from hpc_ecg.shards.format import HEAD, LABEL_PREFIX, ShardSet, check_key, rows_of_keys
from hpc_ecg.shards.remote import open_shard_set


class Dataset:
    """The records of one split: labels [N, K], identities, and signals by position 0..N-1."""

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        label_names: list[str],
        source: ShardSource | None = None,
    ) -> None:
        index = shards.index[shards.index["split"] == split]
        self.split = split
        self.shards = shards
        self.source = source or ShardSource(shards)
        self.label_names = label_names
        columns = [LABEL_PREFIX + name for name in label_names]
        self.labels_NK = index[columns].to_numpy(np.float32, copy=True)
        ones_N = pd.Series(1.0, index.index)
        weights = {name: index.get(WEIGHT_PREFIX + name, ones_N) for name in label_names}
        weights_NK = pd.DataFrame(weights, index=index.index).to_numpy(np.float32)
        self.weights_NK = np.nan_to_num(weights_NK)
        self.records: list[str] = index["record"].tolist()
        self.patients: list[str] = index["patient"].tolist()
        self.keys: list[str] = index["key"].tolist()
        self.sha256_N: list[str] = index["sha256"].tolist()
        self.shard_N = index["shard"].to_numpy()
        self._start_N = index["offset"].to_numpy() // 2  # in counts
        self._verified_N = np.zeros(len(index), bool)
        length = shards.signal.num_samples
        self.record_shape: tuple[int, ...] = (len(shards.signal.leads), length)
        self.dtype: type[np.generic] = np.int16
        samples_N = index["samples"].to_numpy() if "samples" in index else None
        self.is_padded = samples_N is not None and bool((samples_N < length).any())
        self._samples_N = samples_N if self.is_padded else None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def streams(self) -> bool:
        """Whether shards are read from front to back (data.read=stream)."""
        return self.source.streams

    @property
    def millivolts_per_count(self) -> float:
        """Factor from what `read` returns to the input of the model."""
        return self.shards.microvolts_per_count / 1000

    def samples(self, positions: np.ndarray) -> np.ndarray | None:
        """Samples of each record before its padding, int64 [n]; None if no record is padded."""
        if self._samples_N is None or not len(positions):
            return None
        samples_n = self._samples_N[positions]
        return samples_n if (samples_n < self.shards.signal.num_samples).any() else None

    def read(self, positions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The signals at these positions, int16 counts [n, C, S], in the first rows of `out` if
        given. ValueError for a shard that cannot be read or is damaged."""
        if out is None:
            out = np.empty((len(positions), *self.record_shape), self.dtype)
        size = math.prod(self.record_shape)
        shards, starts = self.shard_N[positions].tolist(), self._start_N[positions].tolist()
        files = self.source.files(set(shards))
        head = HEAD // 2
        records: list[Any] = [
            files[shard][start - head : start + size] if shard in files else None
            for shard, start in zip(shards, starts, strict=True)
        ]
        remote = [row for row, record in enumerate(records) if record is None]
        if remote:
            blobs = self.source.ranges(
                [shards[row] for row in remote],
                [2 * starts[row] - HEAD for row in remote],
                2 * size + HEAD,
            )
            for row, blob in zip(remote, blobs, strict=True):
                records[row] = np.frombuffer(blob, np.int16)
        # once per process, but remote records each time they are read
        for row in {*np.flatnonzero(~self._verified_N[positions]), *remote}:
            shard = self.source.name(shards[row])
            check_key(shard, self.keys[positions[row]], records[row][:head].tobytes())
            self.verify(records[row][head:], int(positions[row]))
        records = [record[head:] for record in records]
        if records:
            np.concatenate(records, out=out[: len(records)].reshape(-1))
        return out[: len(records)]

    def verify(self, record: np.ndarray, position: int) -> None:
        """ValueError if a record differs from what was written (SHA-256)."""
        if hashlib.sha256(record.data).hexdigest() != self.sha256_N[position]:
            reason = "a record has changed since it was written (SHA-256)"
            raise ValueError(self.damage(int(self.shard_N[position]), reason))
        self._verified_N[position] = True

    def damage(self, shard: int, reason: str) -> str:
        """The message for a damaged shard."""
        return (
            f"{self.source.name(shard)} is damaged: {reason}; copy the shard again, or make it "
            "again with: hpc-ecg data repair"
        )


def open_shards(config: DataConfig) -> tuple[ShardSet, list[str]]:
    """The set of shards, with fold, label table and label fraction applied, and the labels to use.

    ValueError if settings and shards do not fit together.
    """
    shards = open_shard_set(config.shards, config.allow_pipe)
    shards = replace(shards, index=as_split(shards.index, vars(config)))
    if config.label_table is not None:
        path = Path(config.label_table)
        index, names = replace_labels(shards.index, path, config.labels, config.ids_as_written)
        digest = hashlib.sha256((shards.index_sha256 + sha256_of(path)).encode()).hexdigest()
        shards = replace(shards, index=index, label_names=names, index_sha256=digest)
    names = config.labels or shards.label_names
    _check_labels(config, shards, names)
    _check_patients_apart(shards)
    if config.label_fraction < 1:
        is_class = config.task != "regression"
        share, seed = config.label_fraction, config.label_seed or 0
        index = keep_label_fraction(shards.index, names, share, is_class, seed)
        shards = replace(shards, index=index)
    return shards, names


def open_split(
    shards: ShardSet, split: str, label_names: list[str], source: ShardSource | None = None
) -> Dataset:
    """One split; ValueError if it is empty, none of its records has a label or, for training, a
    label is missing in every record."""
    dataset = Dataset(shards, split, label_names, source)
    if len(dataset) == 0:
        counts = shards.index["split"].value_counts().to_dict()
        raise ValueError(f"split {split} of {shards.name} is empty (records: {counts})")
    is_missing_K = np.isnan(dataset.labels_NK).all(axis=0)
    if is_missing_K.all() or (split == "train" and is_missing_K.any()):
        name = label_names[int(is_missing_K.argmax())]
        raise ValueError(f"label {name} is missing in every record of split {split}")
    return dataset


def check_classes(
    shards: ShardSet, labels: list[str], config: DataConfig, trains: bool
) -> list[str]:
    """ValueError if in a split, as fold, label table and label fraction leave it, no label has both
    classes (for regression: a label has no value). Returns a line for each of several labels that
    is left out. The split train counts if the run `trains`, and test if there is one."""
    is_class = config.task != "regression"
    lines = []
    lacks = [lack for lack in find_lacks(shards.index, labels) if is_class or not lack.known]
    for split in ("train", "valid", "test") if trains else ("valid", "test"):
        found = [lack for lack in lacks if lack.split == f"split {split}"]
        if found and (len(found) == len(labels) or not is_class):
            reasons = "; ".join(map(str, found[:3])) + ("; …" if len(found) > 3 else "")
            raise ValueError(f"data.shards={shards.name}: {reasons}; {ADVICE}")
        for lack in found:
            what = "it cannot be learned" if split == "train" else "no score there counts it"
            lines.append(f"{lack}: {what}; its predictions are written")
    return lines


def _check_labels(config: DataConfig, shards: ShardSet, names: list[str]) -> None:
    unknown = [name for name in names if name not in shards.label_names]
    if unknown:
        raise ValueError(
            f"data.labels: {', '.join(unknown)} not in {shards.name}, "
            f"which has {', '.join(shards.label_names)}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"data.labels: {', '.join(names)} has a label twice")
    if config.task == "binary" and len(names) != 1:
        raise ValueError(
            f"data.task=binary needs one label, got {len(names)} ({', '.join(names)}); "
            "choose one with data.labels=[…], or data.task=multilabel"
        )
    if config.task != "regression":
        for name in names:
            _check_zero_or_one(shards.index, name, config)


def _check_zero_or_one(index: pd.DataFrame, name: str, config: DataConfig) -> None:
    values = index[LABEL_PREFIX + name]
    wrong = index[~(values.isna() | values.isin([0, 1]))]
    if len(wrong):
        row = rows_of_keys(wrong["key"])[0] + 1
        raise ValueError(
            f"label {name} does not fit data.task={config.task}: row {row} "
            f"has {values[wrong.index[0]]:g} ({len(wrong)} such records); allowed are 0, 1 and "
            "empty (missing); for other numbers use data.task=regression"
        )


def _check_patients_apart(shards: ShardSet) -> None:
    index = shards.index[shards.index["split"] != "left_out"]
    rows = rows_of_keys(index["key"])
    splits.check_no_leakage(index["patient"], index["split"], rows, "one patient")
    splits.check_no_leakage(index["sha256"], index["split"], rows, "an identical signal")
