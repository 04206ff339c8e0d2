"""Other ways to read the same ECGs, for `data.py`: webdataset, one file per ECG, and as the limit a
random gather in memory. All yield int16 tensors [batch, leads, samples]."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.io
import torch
import webdataset

BATCH = 64
Batches = Iterator[torch.Tensor]


def webdataset_batches(shards: Path) -> Batches:
    """The fastest pipeline that we tried: it takes only the arrays from the tar, and stacks them
    once. The shuffle buffers have the sizes of webdataset's own examples."""
    pipeline = (
        webdataset.WebDataset(
            sorted(map(str, shards.glob("*.tar"))),
            shardshuffle=100,
            nodesplitter=None,
            workersplitter=None,
            select_files=lambda name: name.endswith(".npy"),
        )
        .shuffle(1000)
        .decode()
        .to_tuple("ecg.npy")
    )
    pending = []
    for (array,) in pipeline:
        pending.append(array)
        if len(pending) == BATCH:
            yield torch.from_numpy(np.stack(pending))
            pending = []
    if pending:
        yield torch.from_numpy(np.stack(pending))


def file_batches(
    folder: Path, num_records: int, epoch: int, load: Callable[[Path, int], np.ndarray]
) -> Batches:
    """Shuffled batches from one file per ECG, which `load(folder, number)` reads."""
    out = np.empty((BATCH, 12, 2500), np.int16)
    order = np.random.default_rng(epoch).permutation(num_records).tolist()
    for start in range(0, num_records, BATCH):
        numbers = order[start : start + BATCH]
        for row, number in enumerate(numbers):
            out[row] = load(folder, number)
        yield torch.from_numpy(out[: len(numbers)])


def load_npy(folder: Path, number: int) -> np.ndarray:
    return np.load(folder / "npy" / f"{number}.npy")


def load_mat(folder: Path, number: int) -> np.ndarray:
    return scipy.io.loadmat(str(folder / "mat" / f"{number}.mat"))["feats"]


def memory_batches(counts_NCS: np.ndarray, epoch: int) -> Batches:
    """Shuffled batches gathered from one array into a reused buffer."""
    out = np.empty((BATCH, 12, 2500), np.int16)
    order = np.random.default_rng(epoch).permutation(len(counts_NCS))
    for start in range(0, len(counts_NCS), BATCH):
        rows = order[start : start + BATCH]
        np.take(counts_NCS, rows, axis=0, out=out[: len(rows)], mode="clip")  # the fastest mode
        yield torch.from_numpy(out[: len(rows)])


def drop_from_cache(folder: Path) -> None:
    """Drop all files below `folder` from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_files(folder: Path, counts_NCS: np.ndarray) -> None:
    """Write each ECG as npy/<number>.npy and mat/<number>.mat."""
    for kind in ("npy", "mat"):
        (folder / kind).mkdir()
    for number, counts_CS in enumerate(counts_NCS):
        np.save(folder / "npy" / f"{number}.npy", counts_CS)
        scipy.io.savemat(folder / "mat" / f"{number}.mat", {"feats": counts_CS})
