"""Which records a step sees: a pure function of (seed, epoch), whatever the number of processes.

An epoch has ceil(N/B) global batches of B, the last one short. A batch is cut into contiguous
slices for the ranks, and a slice into micro-batches; every rank runs the same number of forwards.
The position in the data is the step number and nothing else, so resume is exact. `fixed_batches`
is the order of the reference: the same records always meet in a batch.
"""

# N records of the split, B records of a global batch

from functools import lru_cache

import numpy as np

KINDS = ("shuffled", "fixed_batches")


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    return -(-num_records // batch_size)


@lru_cache(maxsize=2)
def epoch_order(num_records: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..N-1, int64 [N].

    Sorting raw Philox words (Salmon et al. 2011) rather than `permutation()`: numpy promises the
    stream of a bit generator for ever, but not what its Generator methods make of it.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(num_records)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False  # shared by all callers through the cache
    return order


@lru_cache(maxsize=2)
def fixed_batches(num_records: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch as fairseq-signals makes them: cut once, for all epochs, of the
    records sorted downwards by the values of one permutation; an epoch shuffles whole batches. It
    counts epochs from 1. With its seed (1) these are its batches, held against its own runs."""
    values = np.random.RandomState(seed).permutation(num_records)  # this stream is frozen for ever
    order = np.argsort(values)[::-1]
    order.flags.writeable = False
    batches = [order[start : start + batch_size] for start in range(0, num_records, batch_size)]
    np.random.RandomState(seed + epoch + 1).shuffle(batches)
    return batches


def slice_of_rank(num_items: int, rank: int, world_size: int) -> slice:
    """The contiguous part of 0..n-1 for a rank: floor(n/W) or ceil(n/W) items, all items once."""
    return slice(rank * num_items // world_size, (rank + 1) * num_items // world_size)


def micro_batches(
    num_items: int, rank: int, world_size: int, micro_batch_size: int | None
) -> list[slice]:
    """This rank's slice of a global batch in pieces; as many pieces on every rank.

    A rank with less to do gets empty pieces (start == stop), for which the engine runs a
    zero-weight forward: with sharded weights every forward is collective.
    """
    mine = slice_of_rank(num_items, rank, world_size)
    largest = -(-num_items // world_size)
    size = min(micro_batch_size or largest, largest)
    starts = [mine.start + size * piece for piece in range(-(-largest // size))]
    return [slice(min(start, mine.stop), min(start + size, mine.stop)) for start in starts]
