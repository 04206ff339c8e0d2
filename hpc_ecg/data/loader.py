"""From step numbers to arrays: the micro-batches of this rank, read one batch ahead by a thread.

Signals stay int16 until they are on the device, which halves the bytes to move. Batches are read
into reused buffers (a fresh one costs more in page faults than in copying), so the arrays of a
batch are valid only until the next batch is requested.
"""

# B records of the global batch, n records of a micro-batch, C leads, S samples, K labels

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TypeVar

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.stream import StreamReader, stream_epoch, stream_in_order

AHEAD = 1
"""Batches to read ahead. More were slower: they push each other out of the CPU's cache."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass. An empty one holds a dummy record of zeros with weight 0."""

    counts_nCS: np.ndarray
    """Or cached features [n, D] of a frozen backbone."""
    samples_n: np.ndarray | None
    """Samples of each record before its padding, int64 [n]; None if no record is padded."""
    positions: np.ndarray
    labels_nK: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The micro-batches of this rank in one step, and the labels and positions of all ranks."""

    step: int
    micro_batches: list[MicroBatch]
    global_labels_BK: np.ndarray
    positions: np.ndarray


def prefetch(
    dataset: Dataset, steps: Iterable[int], sampler: EpochSampler, rank_slice: RankSlice
) -> Iterator[StepBatch]:
    """Yield the batches of `steps`, in order; with data.read=stream, steps must be consecutive."""
    buffers = _buffers(dataset, sampler.config.batch_size)
    stream: StreamReader | None = None
    epoch = -1

    def read(step: int) -> StepBatch:
        nonlocal stream, epoch
        if step // sampler.steps_per_epoch != epoch:
            epoch = step // sampler.steps_per_epoch
            dataset.source.check_unchanged()
            if stream:
                stream.close()
            if dataset.streams:
                stream = stream_epoch(dataset, sampler, step, rank_slice)
        return collate_step(dataset, step, sampler, rank_slice, stream, next(buffers))

    try:
        yield from _read_ahead(read, steps)
    finally:
        if stream:
            stream.close()


def prefetch_in_order(dataset: Dataset, records: slice, batch_size: int) -> Iterator[MicroBatch]:
    """Yield these records of the split, in the order of the split, in batches."""
    dataset.source.check_unchanged()
    buffers = _buffers(dataset, batch_size)
    stream = stream_in_order(dataset, records) if dataset.streams else None

    def read(start: int) -> MicroBatch:
        positions = np.arange(start, min(start + batch_size, records.stop))
        return collate(dataset, positions, next(buffers), stream or dataset)

    try:
        yield from _read_ahead(read, range(records.start, records.stop, batch_size))
    finally:
        if stream:
            stream.close()


def _buffers(dataset: Dataset, batch_size: int) -> Iterator[np.ndarray]:
    """Cycle through one buffer to work on and AHEAD to fill; unused rows take no memory.

    They are parts of one block, since numpy asks for huge pages from 4 MiB on, and faults of small
    pages would cost more than the copying.
    """
    block = empty_rows(dataset, (AHEAD + 1) * batch_size)
    return cycle(np.split(block, AHEAD + 1))


def _read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `read(item)` for each item, in order, while a thread reads AHEAD items more."""
    thread = ThreadPoolExecutor(1, "reading")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(thread.submit(read, item))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def collate_step(
    dataset: Dataset,
    step: int,
    sampler: EpochSampler,
    rank_slice: RankSlice,
    stream: StreamReader | None = None,
    out: np.ndarray | None = None,
) -> StepBatch:
    """The batch of one step for this rank, read from `stream` or else from the dataset, into `out`
    [B, C, S] or else into a new array."""
    positions = sampler.batch(step)
    if out is None:
        out = empty_rows(dataset, len(positions))
    micro_batches = []
    for indices in sampler.micro_batches(step, rank_slice):
        micro_batches.append(collate(dataset, positions[indices], out, stream or dataset))
        out = out[max(len(indices), 1) :]
    return StepBatch(
        step=step,
        micro_batches=micro_batches,
        global_labels_BK=dataset.labels_NK[positions],
        positions=positions,
    )


def collate(
    dataset: Dataset, positions: np.ndarray, out: np.ndarray, reader: Dataset | StreamReader
) -> MicroBatch:
    """The records at these positions, read into `out`; without positions, a dummy of weight 0."""
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


def fill_up(micro: MicroBatch, num_rows: int) -> MicroBatch:
    """Add rows of zeros, for inference: batches of one shape run the same kernels, so that the
    output of a record does not depend on how many others there are."""
    counts_nCS, missing = micro.counts_nCS, num_rows - len(micro.counts_nCS)
    if missing <= 0:
        return micro
    samples_n = micro.samples_n
    if samples_n is not None:
        samples_n = np.pad(samples_n, (0, missing), constant_values=counts_nCS.shape[-1])
    blank = np.zeros((missing, *counts_nCS.shape[1:]), counts_nCS.dtype)
    return replace(micro, counts_nCS=np.concatenate([counts_nCS, blank]), samples_n=samples_n)


def empty_rows(dataset: Dataset, num_rows: int) -> np.ndarray:
    """An uninitialized array for `num_rows` records of a split."""
    return np.empty((num_rows, *dataset.record_shape), dataset.dtype)
