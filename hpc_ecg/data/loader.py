"""Batches that are read by a thread while the one before them is worked on.

They are read into arrays that are used in turn (a fresh one costs more in page faults than in
copying), so the arrays of a batch hold until the next batch is asked for, and no longer.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np

from hpc_ecg.data.batches import MicroBatch, StepBatch, collate, collate_step, empty_rows
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.stream import StreamReader, stream_epoch, stream_in_order

AHEAD = 1
"""Batches that are read ahead. More were slower: they push each other out of the cache."""


def prefetch(
    dataset: Dataset, steps: Iterable[int], sampler: EpochSampler, share: RankSlice
) -> Iterator[StepBatch]:
    """The batches of `steps`, in order; under data.read=stream they follow each other."""
    buffers = _buffers(dataset, sampler.config.batch_size)
    reader: StreamReader | None = None
    epoch = -1

    def read(step: int) -> StepBatch:
        nonlocal reader, epoch
        if dataset.streams and step // sampler.steps_per_epoch != epoch:
            epoch = step // sampler.steps_per_epoch
            if reader:
                reader.close()
            reader = stream_epoch(dataset, sampler, step, share)
        return collate_step(dataset, step, sampler, share, reader, next(buffers))

    try:
        yield from _ahead(read, steps)
    finally:
        if reader:
            reader.close()


def prefetch_in_order(dataset: Dataset, records: slice, batch_size: int) -> Iterator[MicroBatch]:
    """That part of the split, in its own order, in batches."""
    buffers = _buffers(dataset, batch_size)
    reader: Any = stream_in_order(dataset, records) if dataset.streams else dataset

    def read(start: int) -> MicroBatch:
        positions = np.arange(start, min(start + batch_size, records.stop))
        return collate(dataset, positions, next(buffers), reader)

    try:
        yield from _ahead(read, range(records.start, records.stop, batch_size))
    finally:
        if reader is not dataset:
            reader.close()


def _buffers(dataset: Dataset, batch_size: int) -> Iterator[np.ndarray]:
    """One to work on and AHEAD to fill, in turn. Rows that are not used take no memory. One block:
    numpy asks for huge pages from 4 MiB on, and small pages would cost more than the copying."""
    block = empty_rows(dataset, (AHEAD + 1) * batch_size)
    return cycle(np.split(block, AHEAD + 1))


def _ahead(read: Callable[[int], Any], items: Iterable[int]) -> Iterator[Any]:
    """What `read` makes of each item, in order; AHEAD items are read while one is worked on."""
    thread = ThreadPoolExecutor(1, "reading")
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(thread.submit(read, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
