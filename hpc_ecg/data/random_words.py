"""Streams of random 64-bit words for the order of records, by (seed, epoch, stream)."""

import numpy as np

# One stream for each use, all different from that of `sampler.shuffled_epoch`.
NEGATIVE, POSITIVE, BALANCED, PATIENTS, SHARDS, CHUNKS = range(1, 7)


def random_words(num_words: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """uint64 [n]: raw Philox words, a stream that numpy promises to keep."""
    counter = [0, 0, 0, stream]
    return np.random.Philox(key=[seed, epoch], counter=counter).random_raw(num_words)
