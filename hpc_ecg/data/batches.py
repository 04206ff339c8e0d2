"""From step numbers to arrays: the micro-batches of this rank.

Signals stay int16 until they are on the device: half the bytes to move, and scaled there.
"""

# B records of the global batch, n records of a micro-batch, C leads, S samples, K labels

from dataclasses import dataclass

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.stream import StreamReader


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward's worth. An empty piece holds one dummy record, zeros, with weight 0."""

    counts_nCS: np.ndarray
    """Or features [n, D], where the backbone is frozen and they are cached."""
    samples_n: np.ndarray | None
    """Samples before the zeros that a record was padded with; None if none of them was."""
    positions: np.ndarray
    labels_nK: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What this rank does in one step, and what all ranks together do."""

    step: int
    micro_batches: list[MicroBatch]
    global_labels_BK: np.ndarray
    positions: np.ndarray


def collate_step(
    dataset: Dataset,
    step: int,
    sampler: EpochSampler,
    share: RankSlice,
    reader: Dataset | StreamReader | None = None,
    out: np.ndarray | None = None,
) -> StepBatch:
    """The batch of one step for this rank, through `reader` (the dataset) and into `out` (arrays
    of its own)."""
    positions = sampler.batch(step)
    pieces = [positions[places] for places in sampler.pieces(step, share)]
    if out is None:
        out = empty_rows(dataset, len(positions))
    micro_batches = []
    for piece in pieces:
        micro_batches.append(collate(dataset, piece, out, reader or dataset))
        out = out[max(len(piece), 1) :]
    return StepBatch(
        step=step,
        micro_batches=micro_batches,
        global_labels_BK=dataset.labels_NK[positions],
        positions=positions,
    )


def collate(
    dataset: Dataset, positions: np.ndarray, out: np.ndarray, reader: Dataset | StreamReader
) -> MicroBatch:
    is_dummy = len(positions) == 0
    if is_dummy:
        positions, counts_nCS = np.zeros(1, np.int64), out[:1]
        counts_nCS[:] = 0
    else:
        counts_nCS = reader.read(positions, out)
    return MicroBatch(
        counts_nCS=counts_nCS,
        samples_n=None if is_dummy else dataset.samples(positions),
        positions=positions,
        labels_nK=dataset.labels_NK[positions],
        weight=0.0 if is_dummy else 1.0,
    )


def empty_rows(dataset: Dataset, num_rows: int) -> np.ndarray:
    return np.empty((num_rows, *dataset.record_shape), dataset.dtype)
