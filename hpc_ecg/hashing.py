"""Integer hashing with the same bits in numpy and in torch, on every device.

The random numbers of dropout, augmentation and sampling are hashes of counters: pure functions,
with no generator state to save. Arguments are int64 arrays or tensors, whose arithmetic wraps
around modulo 2^64 in both libraries; view numpy's uint64 as int64 first.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Int64 = TypeVar("Int64", "NDArray[np.int64]", "Tensor")

# The constants of SplitMix64 (Steele, Lea and Flood 2014) as signed numbers.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def splitmix64(x: Int64) -> Int64:
    """Hash neighbouring numbers to unrelated ones: the finalizer of SplitMix64, a bijection."""
    x = (x ^ shift_right(x, 30)) * MULTIPLIERS[0]
    x = (x ^ shift_right(x, 27)) * MULTIPLIERS[1]
    return x ^ shift_right(x, 31)


def multiply_shift(x: Int64) -> Int64:
    """One cheap round of hashing; after two rounds neighbouring numbers are unrelated."""
    x = (x ^ GOLDEN_GAMMA) * MULTIPLIERS[0]
    return (x ^ (x >> 32)) * MULTIPLIERS[1]


def shift_right(x: Int64, num_bits: int) -> Int64:
    """Shift in zeros, as for an unsigned number; `>>` alone would repeat the sign bit."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)
