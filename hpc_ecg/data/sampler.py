"""Which records each step sees: a pure function of seed and step, whatever the number of processes.

An epoch has ceil(M/B) global batches of B records; the last may be smaller. A batch is cut into
contiguous slices for the ranks, and a slice into micro-batches; every rank runs the same number of
forward passes. The step number alone gives the position in the data, so resuming is exact.

`data.sampling` chooses the records of an epoch:

all              every record once
balanced         as many positive as negative records; each class is cycled through, so that at any
                 time its records have been used equally often, give or take one
one_per_patient  one record of each patient, drawn by (seed, epoch, patient) alone: other patients
                 do not change the draw
"""

# N records of the split, M records of an epoch, B records of a global batch, P patients, W ranks

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.lanes import LaneOrder, arrange_in_lanes
from hpc_ecg.data.random_order import (
    BALANCED,
    NEGATIVE,
    PATIENTS,
    POSITIVE,
    RECORDS,
    random_bits,
    random_order,
)
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.hashing import splitmix64


@dataclass(frozen=True, kw_only=True)
class RankSlice:
    """Which part of every batch belongs to this rank, and how large its micro-batches are."""

    rank: int = 0
    world_size: int = 1
    micro_batch_size: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochSampler:
    config: DataConfig
    seed: int
    label_N: np.ndarray
    patient_N: np.ndarray | None
    """A number for each record's patient, for data.sampling=one_per_patient."""
    shard_N: np.ndarray

    @classmethod
    def for_split(cls, dataset: Dataset, config: DataConfig, seed: int) -> "EpochSampler":
        """The sampler of a split; ValueError if its records cannot be sampled as `config` asks."""
        is_by_patient = config.sampling == "one_per_patient"
        sampler = cls(
            config=config,
            seed=seed,
            label_N=dataset.labels_NK[:, 0],
            patient_N=hash_patients(dataset.patients) if is_by_patient else None,
            shard_N=dataset.shard_N,
        )
        _sample_epoch(sampler, 0)
        return sampler

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(_sample_epoch(self, 0)) // self.config.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Positions of the global batch of `step`, counted from 0 over all epochs, int64 [<= B]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size = self.config.batch_size
        if self.config.order == "fixed_batches":
            return fixed_batches(len(self.label_N), size, self.seed, epoch)[index]
        return self._epoch(epoch)[index * size :][:size]

    def shards_by_first_use(self) -> list[int]:
        """The shards in the order in which the first epoch needs them."""
        shards, first = np.unique(self.shard_N[self._epoch(0)], return_index=True)
        return shards[np.argsort(first)].tolist()

    def _epoch(self, epoch: int) -> np.ndarray:
        if self.config.read == "stream":
            return self.lanes(epoch).positions_M
        return _sample_epoch(self, epoch)

    def lanes(self, epoch: int) -> LaneOrder:
        """The order of an epoch under data.read=stream."""
        return _arrange_epoch(self, epoch)

    def check_world_size(self, world_size: int) -> None:
        """ValueError if this many processes cannot share the lanes of a stream."""
        lanes = self.config.stream_lanes
        if self.config.read == "stream" and lanes % world_size:
            raise ValueError(
                f"data.stream_lanes={lanes} cannot be shared by {world_size} processes: give a "
                f"multiple of {world_size} (it sets the order, so keep it for the whole run)"
            )

    def micro_batches(self, step: int, rank_slice: RankSlice) -> list[np.ndarray]:
        """Indices of this rank's records in the global batch, one int64 array per forward pass.

        All ranks get the same number of arrays; some may be empty.
        """
        num_items = len(self.batch(step))
        rank, world_size = rank_slice.rank, rank_slice.world_size
        if self.config.read != "stream":
            indices = np.arange(num_items)
            cuts = cut_micro_batches(num_items, rank, world_size, rank_slice.micro_batch_size)
            return [indices[cut] for cut in cuts]
        epoch, index = divmod(step, self.steps_per_epoch)
        first = index * self.config.batch_size
        rank_B = self.lanes(epoch).lane_M[first : first + num_items] % world_size
        # At the end of an epoch a rank's lanes may have run out, and another rank has more records
        # than usual. It takes more micro-batches of the usual size, so that memory does not grow.
        usual = -(-num_items // world_size)
        size = min(rank_slice.micro_batch_size or usual, usual)
        mine = np.flatnonzero(rank_B == rank)
        largest = np.bincount(rank_B).max()
        return [mine[start : start + size] for start in range(0, largest, size)]


@lru_cache(maxsize=4)
def _sample_epoch(sampler: EpochSampler, epoch: int) -> np.ndarray:
    """The epoch's records, shuffled, int64 [M]."""
    seed = sampler.seed
    if sampler.config.sampling == "balanced":
        return balanced_epoch(sampler.label_N, seed, epoch)
    if sampler.patient_N is not None:
        drawn = one_per_patient(sampler.patient_N, seed, epoch)
        return drawn[shuffled_epoch(len(drawn), seed, epoch)]
    return shuffled_epoch(len(sampler.label_N), seed, epoch)


@lru_cache(maxsize=4)
def _arrange_epoch(sampler: EpochSampler, epoch: int) -> LaneOrder:
    return arrange_in_lanes(
        _sample_epoch(sampler, epoch),
        sampler.shard_N,
        sampler.seed,
        epoch,
        lanes=sampler.config.stream_lanes,
        buffer=sampler.config.stream_buffer,
    )


@lru_cache(maxsize=2)
def shuffled_epoch(num_records: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..N-1, int64 [N]."""
    order = random_order(num_records, seed, epoch, RECORDS)
    order.flags.writeable = False  # shared by all callers through the cache
    return order


@lru_cache(maxsize=2)
def fixed_batches(num_records: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch in the order of fairseq-signals.

    Batches are cut once for all epochs, from the records in descending order of the values of one
    permutation; an epoch shuffles whole batches. fairseq-signals counts epochs from 1. With its
    seed (1) the batches equal those of its runs.
    """
    values = np.random.RandomState(seed).permutation(num_records)  # numpy froze this stream
    order = np.argsort(values)[::-1]
    order.flags.writeable = False
    batches = [order[start : start + batch_size] for start in range(0, num_records, batch_size)]
    np.random.RandomState(seed + epoch + 1).shuffle(batches)
    return batches


def balanced_epoch(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shuffled positions, int64 [M], where M is the number of labelled records.

    Half of them, rounded up, are positive. ValueError if a class has no record.
    """
    members = [np.flatnonzero(label_N == value) for value in (0, 1)]
    if not (len(members[0]) and len(members[1])):
        raise ValueError(
            f"data.sampling=balanced needs both classes in split train, got {len(members[0])} "
            f"negative and {len(members[1])} positive records"
        )
    total = len(members[0]) + len(members[1])
    sizes = (total // 2, total - total // 2)
    drawn = [
        member[_cycle(len(member), size * epoch, size, seed, stream)]
        for member, size, stream in zip(members, sizes, (NEGATIVE, POSITIVE), strict=True)
    ]
    return np.concatenate(drawn)[random_order(total, seed, epoch, BALANCED)]


def _cycle(num_items: int, start: int, count: int, seed: int, stream: int) -> np.ndarray:
    """Items `start` to `start + count - 1` of an endless sequence of permutations of 0..n-1."""
    first, last = start // num_items, (start + count - 1) // num_items
    rounds = [random_order(num_items, seed, n, stream) for n in range(first, last + 1)]
    return np.concatenate(rounds)[start - first * num_items :][:count]


def hash_patients(patients: Sequence[str]) -> np.ndarray:
    """A hash of each record's patient, uint64 [N], from the patient's name alone."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in patients)
    return np.frombuffer(digests, "<u8")


def one_per_patient(patient_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The position of one record of each patient, int64 [P], ascending."""
    patient_P, index_N, count_P = np.unique(patient_N, return_inverse=True, return_counts=True)
    by_patient = np.argsort(index_N, kind="stable")
    first_P = np.cumsum(count_P) - count_P
    key = random_bits(1, seed, epoch, PATIENTS)
    hash_P = splitmix64((patient_P ^ key).view(np.int64)).view(np.uint64)
    drawn_P = hash_P % count_P.astype(np.uint64)
    return np.sort(by_patient[first_P + drawn_P.astype(np.int64)])


def slice_of_rank(num_items: int, rank: int, world_size: int) -> slice:
    """A rank's contiguous part of 0..n-1: floor(n/W) or ceil(n/W) items; each item once."""
    return slice(rank * num_items // world_size, (rank + 1) * num_items // world_size)


def cut_micro_batches(
    num_items: int, rank: int, world_size: int, micro_batch_size: int | None
) -> list[slice]:
    """This rank's slice of a global batch, cut into as many micro-batches on every rank.

    A rank with fewer items gets empty ones (start == stop), for which the engine runs a forward
    pass with weight zero: with sharded weights every forward pass is collective.
    """
    mine = slice_of_rank(num_items, rank, world_size)
    largest = -(-num_items // world_size)
    size = min(micro_batch_size or largest, largest)
    starts = [mine.start + size * number for number in range(-(-largest // size))]
    return [slice(min(start, mine.stop), min(start + size, mine.stop)) for start in starts]
