"""The order of a stream: a pure function of (seed, epoch) and the number of lanes.

An epoch's shards are shuffled and dealt to L lanes, each to the lane with the fewest records so
far. A lane reads one whole shard after another; the records of a shard are shuffled within chunks
that are as large as a reader can hold. The epoch takes a record from each lane in turn and skips
lanes that have run out. So files are read from front to back, and yet the index alone gives every
position, whatever the number of processes: rank r of W reads the lanes l with l % W = r.
"""

# N records of the split, M records of the epoch, G shards of the epoch

from dataclasses import dataclass

import numpy as np

from hpc_ecg.data.random_order import CHUNKS, SHARDS, random_bits, random_order


@dataclass(frozen=True, kw_only=True)
class LaneOrder:
    """One epoch: records in the order of use, int64, with the lane and chunk of each.

    Chunks ascend within a lane.
    """

    positions_M: np.ndarray
    lane_M: np.ndarray
    chunk_M: np.ndarray


def arrange_in_lanes(
    positions_M: np.ndarray, shard_N: np.ndarray, seed: int, epoch: int, lanes: int, buffer: int
) -> LaneOrder:
    """Order an epoch's records, of which some may occur several times, for reading as a stream.

    Positions must ascend in the order of the files. All repeats of a record are in one chunk.
    """
    sorted_M = np.sort(positions_M)
    shards_G, shard_M, size_G = np.unique(
        shard_N[sorted_M], return_inverse=True, return_counts=True
    )
    order_G = random_order(len(shards_G), seed, epoch, SHARDS)
    lane_G = _deal(size_G, order_G, lanes)
    turn_G = np.empty_like(order_G)
    turn_G[order_G] = np.arange(len(order_G))
    # Count distinct records, so that repeats of one are in the same chunk.
    count_M = np.cumsum(np.diff(sorted_M, prepend=-1) > 0) - 1
    chunk_M = turn_G[shard_M] * len(sorted_M) + count_M // buffer
    lane_M = lane_G[shard_M]
    shuffle_M = random_bits(len(sorted_M), seed, epoch, CHUNKS)
    by_lane = np.lexsort((shuffle_M, chunk_M, lane_M))
    lane_M, chunk_M = lane_M[by_lane], chunk_M[by_lane]
    rank_in_lane_M = np.arange(len(by_lane)) - np.searchsorted(lane_M, lane_M)
    in_turn = np.lexsort((lane_M, rank_in_lane_M))
    return LaneOrder(
        positions_M=sorted_M[by_lane][in_turn], lane_M=lane_M[in_turn], chunk_M=chunk_M[in_turn]
    )


def _deal(size_G: np.ndarray, order_G: np.ndarray, lanes: int) -> np.ndarray:
    """The lane of each shard, int64 [G]; lanes differ in length by at most one shard."""
    lane_G, filled = np.zeros(len(size_G), np.int64), np.zeros(lanes, np.int64)
    for shard in order_G:
        lane_G[shard] = np.argmin(filled)
        filled[lane_G[shard]] += size_G[shard]
    return lane_G
