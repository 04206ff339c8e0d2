"""From step numbers to arrays: the micro-batches of this rank, read ahead by one thread.

Signals stay int16 until they are on the device: half the bytes to move, and scaled there.
"""

# B records of the global batch, n records of a micro-batch, C leads, S samples, K labels

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hpc_ecg.data import order
from hpc_ecg.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward's worth. An empty piece holds one dummy record with weight 0."""

    counts_nCS: np.ndarray
    """Or features [n, D], where the backbone is frozen and they are cached."""
    labels_nK: np.ndarray
    weight: float


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What this rank does in one step, and what all ranks together do."""

    step: int
    micro_batches: list[MicroBatch]
    global_labels_BK: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Share:
    """This rank's part of every batch."""

    rank: int = 0
    world_size: int = 1
    micro_batch_size: int | None = None


def read_step(
    dataset: Dataset, step: int, batch_size: int, seed: int, share: Share, kind: str = "shuffled"
) -> StepBatch:
    """The batch of one step for this rank; `kind` is data.order."""
    positions = order.batch_of_step(step, len(dataset), batch_size, seed, kind)
    pieces = order.micro_batches(
        len(positions), share.rank, share.world_size, share.micro_batch_size
    )
    return StepBatch(
        step=step,
        micro_batches=[_read_piece(dataset, positions[piece]) for piece in pieces],
        global_labels_BK=dataset.labels_NK[positions],
        positions=positions,
    )


def read_ahead(
    dataset: Dataset,
    steps: Iterable[int],
    batch_size: int,
    seed: int,
    share: Share,
    kind: str = "shuffled",
) -> Iterator[StepBatch]:
    """The batches of `steps`, in order, each read while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for step in steps:
            following = reader.submit(read_step, dataset, step, batch_size, seed, share, kind)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()


def _read_piece(dataset: Dataset, positions: np.ndarray) -> MicroBatch:
    weight = 1.0
    if len(positions) == 0:
        positions, weight = np.array([0]), 0.0
    return MicroBatch(
        counts_nCS=dataset.read(positions), labels_nK=dataset.labels_NK[positions], weight=weight
    )
