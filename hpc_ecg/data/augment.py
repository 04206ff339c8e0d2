"""Augmentation on the device: ECGs in mV, each changed by its own random numbers.

The random numbers of a record are a function of (seed, step, record), from integer arithmetic that
is the same on every device, so the result depends neither on the number of processes nor on the
place in the batch. There is no generator: number i of a record is a hash of its seed and i
(SplitMix64; Steele, Lea and Flood 2014).
"""

# n records, C leads, S samples

import math

import numpy as np
import torch
from torch import Tensor

from hpc_ecg.data.settings import AugmentConfig
from hpc_ecg.hashing import GOLDEN_GAMMA, shift_right, splitmix64

WANDER_HZ = (0.05, 0.5)
# Each use of random numbers has its own range of counters.
LEADS, NOISE, WANDER, POWERLINE, SHIFT, SCALE = (use << 40 for use in range(6))


def record_seeds(sha256: list[str], seed: int, step: int) -> np.ndarray:
    """A seed for each record of a step, int64 [n], from the SHA-256 digests of the signals."""
    record_n = np.array([int(digest[:16], 16) for digest in sha256], np.uint64).view(np.int64)
    key = np.random.Philox(key=[seed, step]).random_raw(1).view(np.int64)
    return splitmix64(splitmix64(record_n) ^ key)


def augment(
    ecg_nCS: Tensor, seeds_n: np.ndarray | Tensor, config: AugmentConfig, sample_rate_hz: int
) -> Tensor:
    """Augmented copies [n, C, S] of ECGs in mV, by the records' seeds [n]."""
    seed_n11 = torch.as_tensor(seeds_n, device=ecg_nCS.device)[:, None, None]
    num_leads, num_samples = ecg_nCS.shape[1:]

    def uniform(use: int, *shape: int) -> Tensor:
        return _uniform(seed_n11, use, *shape)

    time_S = torch.arange(num_samples, device=ecg_nCS.device) / sample_rate_hz
    if config.scale:
        ecg_nCS = ecg_nCS * (1 + config.scale * (2 * uniform(SCALE, 1, 1) - 1))
    if config.shift_s:
        by_n1 = ((2 * uniform(SHIFT, 1, 1) - 1) * config.shift_s * sample_rate_hz).round().long()
        ecg_nCS = _shift(ecg_nCS, by_n1)
    if config.wander_mv:
        slow, fast = WANDER_HZ
        hz_nC1 = slow + (fast - slow) * uniform(WANDER, num_leads, 1)
        turn_nC1 = uniform(WANDER + num_leads, num_leads, 1)
        size_n11 = config.wander_mv * uniform(WANDER + 2 * num_leads, 1, 1)
        ecg_nCS = ecg_nCS + size_n11 * torch.sin(2 * math.pi * (hz_nC1 * time_S + turn_nC1))
    if config.powerline_mv:
        turn_nC1 = uniform(POWERLINE, num_leads, 1)
        size_n11 = config.powerline_mv * uniform(POWERLINE + num_leads, 1, 1)
        angle_nCS = 2 * math.pi * (config.powerline_hz * time_S + turn_nC1)
        ecg_nCS = ecg_nCS + size_n11 * torch.sin(angle_nCS)
    if config.noise_mv:
        size_n11 = config.noise_mv * uniform(NOISE, 1, 1)
        ecg_nCS = ecg_nCS + size_n11 * _normal(seed_n11, NOISE + 1, num_leads, num_samples)
    if config.lead_mask:
        is_masked_nC1 = uniform(LEADS, num_leads, 1) < config.lead_mask
        is_masked_nC1 &= ~is_masked_nC1.all(1, keepdim=True)
        ecg_nCS = ecg_nCS.masked_fill(is_masked_nC1, 0.0)
    return ecg_nCS


def _shift(ecg_nCS: Tensor, by_n11: Tensor) -> Tensor:
    source_n1S = torch.arange(ecg_nCS.shape[-1], device=ecg_nCS.device) - by_n11
    is_outside = (source_n1S < 0) | (source_n1S >= ecg_nCS.shape[-1])
    inside_nCS = source_n1S.clamp(0, ecg_nCS.shape[-1] - 1).expand_as(ecg_nCS)
    return ecg_nCS.gather(2, inside_nCS).masked_fill(is_outside, 0.0)


def _uniform(seed_n11: Tensor, first: int, rows: int, columns: int) -> Tensor:
    """Uniform in (0, 1), float32 [n, rows, columns], from each record's counter `first` on."""
    count = torch.arange(first, first + rows * columns, device=seed_n11.device)
    bits = splitmix64(seed_n11 + count.view(rows, columns) * GOLDEN_GAMMA)
    return (shift_right(bits, 41).float() + 0.5) / 2**23  # exact, and never 0 or 1


def _normal(seed_n11: Tensor, first: int, rows: int, columns: int) -> Tensor:
    """Standard normal, float32 [n, rows, columns] (Box and Muller 1958); uses twice the numbers."""
    radius = _uniform(seed_n11, first, rows, columns)
    turn = _uniform(seed_n11, first + rows * columns, rows, columns)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * turn)
