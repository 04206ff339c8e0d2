"""Random permutations of an epoch, by (seed, epoch, stream): pure functions with stable bits."""

import numpy as np

# One stream for each use.
RECORDS, NEGATIVE, POSITIVE, BALANCED, PATIENTS, SHARDS, CHUNKS = range(7)


def random_bits(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Random 64-bit integers, uint64 [count], from Philox (Salmon et al. 2011).

    numpy promises to keep the raw stream of a bit generator, but not what the methods of its
    Generator make of it.
    """
    counter = [0, 0, 0, stream]
    return np.random.Philox(key=[seed, epoch], counter=counter).random_raw(count)


def random_order(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of 0..count-1, int64 [count]."""
    return np.argsort(random_bits(count, seed, epoch, stream), kind="stable")
