"""From a micro-batch of counts to what the model takes: mV on the device, and a mask if needed."""

# n records of a micro-batch, C leads, S samples

from collections.abc import Callable

import torch
from torch import Tensor

from hpc_ecg.data.augment import AugmentConfig, augment, words_of
from hpc_ecg.data.batches import MicroBatch
from hpc_ecg.data.dataset import Dataset

Augment = Callable[[Tensor, MicroBatch], Tensor]


def model_inputs(
    micro: MicroBatch,
    device: torch.device,
    millivolts_per_count: float,
    change: Augment | None = None,
) -> tuple[Tensor, ...]:
    """The ECG [n, C, S] in mV (features pass as they are, with a factor of 1), and the padding mask
    [n, S] if a record ends in zeros that were never recorded."""
    # This waits until the copy is made: the array's memory is about to be used again.
    counts = torch.from_numpy(micro.counts_nCS).to(device)
    ecg_nCS = counts.float() * millivolts_per_count
    if change:
        ecg_nCS = change(ecg_nCS, micro)
    if micro.samples_n is None:
        return (ecg_nCS,)
    samples_n = torch.from_numpy(micro.samples_n).to(device)
    is_padded_nS = torch.arange(ecg_nCS.shape[-1], device=device) >= samples_n[:, None]
    return ecg_nCS.masked_fill(is_padded_nS[:, None], 0.0), is_padded_nS


def augment_step(dataset: Dataset, config: AugmentConfig, seed: int, step: int) -> Augment | None:
    """What this step does to its records in mV; None if nothing is asked for."""
    if not config.is_on:
        return None

    def change(ecg_nCS: Tensor, micro: MicroBatch) -> Tensor:
        sha256 = [dataset.sha256_N[position] for position in micro.positions]
        words_n = words_of(sha256, seed, step)
        return augment(ecg_nCS, words_n, config, dataset.shards.signal.sample_rate_hz)

    return change
