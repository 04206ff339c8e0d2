"""From a micro-batch of counts to the input of the model: mV on the device.

Training adds augmentation and a seed for each record's dropout. Both are functions of (seed, step,
record), so they do not depend on the number of ranks.
"""

# n records of a micro-batch, C leads, S samples

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_ecg.data.augment import augment, record_seeds
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import MicroBatch
from hpc_ecg.data.settings import AugmentConfig

stream_of = functools.cache(torch.cuda.Stream)


@dataclass(frozen=True, kw_only=True)
class TrainingTransform:
    """Augmentation and dropout seeds for the records of one training step."""

    dataset: Dataset
    augment: AugmentConfig
    seed: int
    step: int

    def record_seeds(self, micro: MicroBatch) -> np.ndarray:
        """One seed per record, int64 [n], independent of rank and micro-batch."""
        sha256 = [self.dataset.sha256_N[position] for position in micro.positions]
        return record_seeds(sha256, self.seed, self.step)


def model_inputs(
    micro: MicroBatch,
    device: torch.device,
    millivolts_per_count: float,
    transform: TrainingTransform | None = None,
) -> tuple[Tensor | None, ...]:
    """The arguments of the model's forward pass.

    The ECG [n, C, S] in mV; the padding mask [n, S], or None if no record is padded; the seeds [n]
    of dropout. Cached features are passed as they are, with a factor of 1.
    """
    counts = _copy_ahead(micro.counts_nCS, device)
    ecg_nCS = counts * float(millivolts_per_count)  # to float32 in the same pass
    if counts.ndim == 2:
        return (ecg_nCS,)
    seeds_n = transform.record_seeds(micro) if transform else None
    seeds = None if seeds_n is None else torch.from_numpy(seeds_n).to(device, non_blocking=True)
    if transform and seeds is not None and transform.augment.is_on:
        rate_hz = transform.dataset.shards.signal.sample_rate_hz
        ecg_nCS = augment(ecg_nCS, seeds, transform.augment, rate_hz)
    if micro.samples_n is None:
        return ecg_nCS, None, seeds
    samples_n = torch.from_numpy(micro.samples_n).to(device, non_blocking=True)
    is_padded_nS = torch.arange(ecg_nCS.shape[-1], device=device) >= samples_n[:, None]
    return ecg_nCS.masked_fill(is_padded_nS[:, None], 0.0), is_padded_nS, seeds


def _copy_ahead(counts_nCS: np.ndarray, device: torch.device) -> Tensor:
    """The counts on the device; on a CPU the same memory. A GPU copies them on a stream of their
    own, while it computes the step before, from pinned memory that torch keeps until then."""
    counts = torch.from_numpy(counts_nCS)
    if device.type != "cuda":
        return counts
    copying, computing = stream_of(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        counts = counts.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(copying)
    counts.record_stream(computing)
    return counts


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator, which dropout inside fused attention uses.

    A function of (seed, step, rank), so there is no generator state to save.
    """
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
