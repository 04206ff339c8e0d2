"""Read shards from front to back, through webdataset's pipeline.

The order is known in advance (lanes.py); a thread per lane reads the next chunk while the current
one is used. A resumed run starts at the first chunk that it needs, and skips what comes before it
in that shard. Every record is verified against the index; a shard that lacks one is damaged.
"""

# n records read, C leads, S samples

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.shards.format import ARRAY_SUFFIX, parse_array

CHUNK = 64
"""Records in memory at once when a split is read in its own order."""
Chunk = dict[int, np.ndarray]
"""Position -> counts [C, S]."""


def read_shard(
    dataset: Dataset, shard: int, positions: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, counts [C, S]) of these records of a shard, in the order of the file.

    ValueError names a shard that cannot be read, lacks a record, or holds a changed signal.
    """
    from webdataset import DataPipeline, pipelinefilter
    from webdataset.tariterators import group_by_keys, tar_file_expander

    wanted = {dataset.keys[position]: position for position in positions}

    def is_wanted(name: str) -> bool:
        key, dot, ending = name.partition(".")
        return key in wanted and dot + ending == ARRAY_SUFFIX

    with dataset.source.open(shard) as file:
        samples = iter(
            DataPipeline(  # without splitters: the shards are already dealt to ranks
                [[{"url": dataset.source.name(shard), "stream": file}]],
                pipelinefilter(tar_file_expander)(select_files=is_wanted),
                pipelinefilter(group_by_keys)(),
            )
        )
        while wanted:
            try:
                sample = next(samples, None)
                if sample is None:
                    raise ValueError(f"{len(wanted)} records are missing")
                record = parse_array(sample["ecg.npy"], dataset.record_shape)
            except Exception as error:  # tarfile and file systems raise many kinds
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise ValueError(dataset.damage(shard, reason)) from None
            position = wanted.pop(sample["__key__"])
            dataset.verify(record, position)
            yield position, record


def read_lane(dataset: Dataset, chunks: Sequence[np.ndarray]) -> Iterator[Chunk]:
    """Yield the chunks of a lane in order; each holds ascending positions of one shard."""
    for shard, group in groupby(chunks, key=lambda chunk: int(dataset.shard_N[chunk[0]])):
        shard_chunks = list(group)
        records = read_shard(dataset, shard, np.concatenate(shard_chunks).tolist())
        for chunk in shard_chunks:
            yield dict(islice(records, len(chunk)))


class StreamReader:
    """Reads a known sequence of records; `read` must follow it from first to last."""

    def __init__(
        self, dataset: Dataset, positions_n: np.ndarray, lane_n: np.ndarray, chunk_n: np.ndarray
    ) -> None:
        """The sequence [n], and the lane and chunk of each record; chunks ascend in each lane."""
        self._lane_of = dict(zip(positions_n.tolist(), lane_n.tolist(), strict=True))
        self._chunk_of = dict(zip(positions_n.tolist(), chunk_n.tolist(), strict=True))
        lanes = np.unique(lane_n).tolist()
        self._threads = ThreadPoolExecutor(max(len(lanes), 1), "stream")
        self._readers: dict[int, Iterator[Chunk]] = {}
        for lane in lanes:
            mine, chunks = positions_n[lane_n == lane], chunk_n[lane_n == lane]
            cuts = np.flatnonzero(np.diff(chunks)) + 1
            parts = [np.unique(part) for part in np.split(mine, cuts)]
            self._readers[lane] = read_lane(dataset, parts)
        self._ahead = {lane: self._next(lane) for lane in lanes}
        self._held: dict[int, tuple[int, Chunk]] = dict.fromkeys(lanes, (-1, {}))

    def read(self, positions: np.ndarray, out_nCS: np.ndarray) -> np.ndarray:
        """Read the next records of the sequence, int16 counts, into the first rows of `out_nCS`."""
        for row, position in enumerate(positions.tolist()):
            lane, chunk = self._lane_of[position], self._chunk_of[position]
            if self._held[lane][0] != chunk:
                self._held[lane] = (chunk, self._ahead[lane].result())
                self._ahead[lane] = self._next(lane)
            out_nCS[row] = self._held[lane][1][position]
        return out_nCS[: len(positions)]

    def _next(self, lane: int) -> "Future[Chunk]":
        return self._threads.submit(next, self._readers[lane], {})

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def stream_epoch(
    dataset: Dataset, sampler: EpochSampler, step: int, rank_slice: RankSlice
) -> StreamReader:
    """A reader of a rank's records from this step to the end of its epoch."""
    epoch, index = divmod(step, sampler.steps_per_epoch)
    lanes = sampler.lanes(epoch)
    is_mine_M = lanes.lane_M % rank_slice.world_size == rank_slice.rank
    is_mine_M[: index * sampler.config.batch_size] = False
    return StreamReader(
        dataset,
        positions_n=lanes.positions_M[is_mine_M],
        lane_n=lanes.lane_M[is_mine_M],
        chunk_n=lanes.chunk_M[is_mine_M],
    )


def stream_in_order(dataset: Dataset, records: slice) -> StreamReader:
    """A reader of consecutive records of a split: one lane, in chunks that do not cross shards."""
    positions_n = np.arange(records.start, records.stop)
    shard_n = dataset.shard_N[positions_n]
    first_n = np.searchsorted(shard_n, shard_n)
    chunk_n = first_n + (np.arange(len(shard_n)) - first_n) // CHUNK
    return StreamReader(dataset, positions_n, np.zeros_like(shard_n), chunk_n)
