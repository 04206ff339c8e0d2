"""Which records each step sees, and which of them are this rank's: settings and a split in.

Everything follows from the step's number, so a run goes on at any step, with any number of ranks.
"""

# N records of the split, M records of an epoch, B records of a global batch, W ranks

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpc_ecg.data import order, sampling
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.lanes import LaneOrder, arrange_in_lanes
from hpc_ecg.data.settings import DataConfig


@dataclass(frozen=True, kw_only=True)
class RankSlice:
    """This rank's part of every batch."""

    rank: int = 0
    world_size: int = 1
    micro_batch_size: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochSampler:
    config: DataConfig
    seed: int
    label_N: np.ndarray
    word_N: np.ndarray | None
    """Of each record's patient, for data.sampling=one_per_patient."""
    shard_N: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, config: DataConfig, seed: int) -> "EpochSampler":
        """ValueError if these records cannot be sampled as asked."""
        is_by_patient = config.sampling == "one_per_patient"
        sampler = cls(
            config=config,
            seed=seed,
            label_N=dataset.labels_NK[:, 0],
            word_N=sampling.patient_words(dataset.patients) if is_by_patient else None,
            shard_N=dataset.shard_N,
        )
        _chosen(sampler, 0)
        return sampler

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(len(_chosen(self, 0)), self.config.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Positions of global batch `step`, counted from 0 over all epochs, int64 [<= B]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size = self.config.batch_size
        if self.config.order == "fixed_batches":
            return order.fixed_batches(len(self.label_N), size, self.seed, epoch)[index]
        if self.config.read == "stream":
            return self.lanes(epoch).positions_M[index * size :][:size]
        return _chosen(self, epoch)[index * size :][:size]

    def first_use(self) -> list[int]:
        """The shards, in the order in which the first epoch needs them."""
        in_use = self.shard_N[
            self.lanes(0).positions_M if self.config.read == "stream" else _chosen(self, 0)
        ]
        shards, first = np.unique(in_use, return_index=True)
        return shards[np.argsort(first)].tolist()

    def check_world(self, world_size: int) -> None:
        """ValueError if this many processes cannot share the lanes of a stream."""
        lanes = self.config.stream_lanes
        if self.config.read == "stream" and lanes % world_size:
            raise ValueError(
                f"data.stream_lanes={lanes} cannot be shared by {world_size} processes: give a "
                f"multiple of {world_size} (it sets the order, so keep it for the whole run)"
            )

    def lanes(self, epoch: int) -> LaneOrder:
        """The order of an epoch under data.read=stream."""
        return _in_lanes(self, epoch)

    def pieces(self, step: int, share: RankSlice) -> list[np.ndarray]:
        """This rank's places in the global batch, in pieces of a forward; as many on each rank."""
        num_items = len(self.batch(step))
        if self.config.read != "stream":
            places = np.arange(num_items)
            cuts = order.micro_batches(
                num_items, share.rank, share.world_size, share.micro_batch_size
            )
            return [places[cut] for cut in cuts]
        epoch, index = divmod(step, self.steps_per_epoch)
        first = index * self.config.batch_size
        rank_B = self.lanes(epoch).lane_M[first : first + num_items] % share.world_size
        # At the end of an epoch a rank's lanes may have run out, and another has more than its
        # part: in pieces of the usual size, so that memory is not a matter of luck.
        usual = -(-num_items // share.world_size)
        size = min(share.micro_batch_size or usual, usual)
        mine = np.flatnonzero(rank_B == share.rank)
        largest = np.bincount(rank_B).max()
        return [mine[start : start + size] for start in range(0, largest, size)]


@lru_cache(maxsize=4)
def _chosen(sampler: EpochSampler, epoch: int) -> np.ndarray:
    """The epoch's records, shuffled, int64 [M]."""
    kind, seed = sampler.config.sampling, sampler.seed
    if kind == "balanced":
        return sampling.balanced_epoch(sampler.label_N, seed, epoch)
    if sampler.word_N is not None:
        drawn = sampling.one_per_patient(sampler.word_N, seed, epoch)
        return drawn[order.epoch_order(len(drawn), seed, epoch)]
    return order.epoch_order(len(sampler.label_N), seed, epoch)


@lru_cache(maxsize=4)
def _in_lanes(sampler: EpochSampler, epoch: int) -> LaneOrder:
    chosen, config = _chosen(sampler, epoch), sampler.config
    where = (config.stream_lanes, config.stream_buffer)
    return arrange_in_lanes(chosen, sampler.shard_N, sampler.seed, epoch, *where)
