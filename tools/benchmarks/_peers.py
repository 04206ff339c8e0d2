"""The other ways of reading the same ECGs, for `data.py`: webdataset, a file for each ECG, and
the limit, a random gather in memory. All yield int16 tensors [batch, leads, samples]."""

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
    """At its best of what was tried: only the arrays are taken from the tar, and they are stacked
    once; its shuffle buffer is as large as it is by default in its own examples."""
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
    waiting = []
    for (array,) in pipeline:
        waiting.append(array)
        if len(waiting) == BATCH:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def file_batches(
    folder: Path, num_records: int, epoch: int, load: Callable[[Path, int], np.ndarray]
) -> Batches:
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


def memory_batches(everything: np.ndarray, epoch: int) -> Batches:
    out = np.empty((BATCH, 12, 2500), np.int16)
    order = np.random.default_rng(epoch).permutation(len(everything))
    for start in range(0, len(everything), BATCH):
        rows = order[start : start + BATCH]
        np.take(everything, rows, axis=0, out=out[: len(rows)], mode="clip")  # the fastest mode
        yield torch.from_numpy(out[: len(rows)])


def drop_from_cache(folder: Path) -> None:
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_files(folder: Path, everything: np.ndarray) -> None:
    for kind in ("npy", "mat"):
        (folder / kind).mkdir()
    for number, counts_CS in enumerate(everything):
        np.save(folder / "npy" / f"{number}.npy", counts_CS)
        scipy.io.savemat(folder / "mat" / f"{number}.mat", {"feats": counts_CS})
