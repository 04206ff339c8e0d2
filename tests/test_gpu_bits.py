"""Random numbers are integer arithmetic: a GPU draws the bits that a CPU draws."""
# B batch, C leads, S samples, T tokens, D width

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpu_runs import CPU

from hpc_ecg.data.augment import _uniform, record_seeds
from hpc_ecg.data.loader import MicroBatch
from hpc_ecg.data.settings import AugmentConfig
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.hashing import multiply_shift, splitmix64
from hpc_ecg.model.dropout import RecordDropout, layer_seeds, token_seeds
from hpc_ecg.training.model_inputs import TrainingTransform, model_inputs

pytestmark = pytest.mark.gpu
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(40)]
ALL = {"lead_mask": 0.2, "noise_mv": 0.1, "wander_mv": 0.2, "powerline_mv": 0.05, "shift_s": 0.5}
ALL |= {"scale": 0.2}
EXACT = ("lead_mask", "shift_s")
"""Augmentations that only move or remove samples."""


def seeds(number, seed):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    drawn = torch.randint(-(2**63), 2**63 - 1, (number,), generator=generator)
    return torch.cat([edges, drawn])[:number]


def dropped(device, p, shape, seed, compiled=False):
    """Which elements are dropped, and the factor on the others."""
    num_records, num_tokens, _ = shape
    seeds_BT = token_seeds(seeds(num_records, seed).to(device), num_tokens)
    dropout = RecordDropout(p, stream=2).train()
    call = torch.compile(dropout, fullgraph=True) if compiled else dropout
    return call(torch.ones(shape, device=device), seeds_BT).cpu()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 257), (8, 156, 3072)], ids=str)
def test_dropout_drops_what_it_drops_on_a_cpu(gpu, p, shape, seed):
    found, expected = (dropped(device, p, shape, seed) for device in (gpu, CPU))
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    if shape[-1] > 1000:
        assert abs((expected == 0).float().mean().item() - p) < 0.01


@pytest.mark.slow
def test_compiled_dropout_drops_the_same(gpu):
    found = dropped(gpu, 0.1, (8, 156, 3072), 0, compiled=True)
    assert torch.equal(found == 0, dropped(CPU, 0.1, (8, 156, 3072), 0) == 0)


@pytest.mark.parametrize("function", [splitmix64, multiply_shift])
def test_a_hash_has_the_bits_of_a_cpu(gpu, function):
    numbers = seeds(10_000, 3)
    assert torch.equal(function(numbers.to(gpu)).cpu(), function(numbers))


def test_seeds_of_tokens_and_layers_are_those_of_a_cpu(gpu):
    found, expected = (
        layer_seeds(token_seeds(seeds(9, 4).to(device), 156), 12).cpu() for device in (gpu, CPU)
    )
    assert torch.equal(found, expected)


def test_uniform_numbers_have_the_bits_of_a_cpu(gpu):
    seeds_n11 = torch.from_numpy(record_seeds(DIGESTS, 3, 7))[:, None, None]
    found, expected = (_uniform(seeds_n11.to(device), 5, 12, 50).cpu() for device in (gpu, CPU))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kinds", [*ALL, "all"])
def test_an_augmented_record_is_that_of_a_cpu(gpu, kinds):
    config = AugmentConfig(**(ALL if kinds == "all" else {kinds: ALL[kinds]}))
    sine_S = 1000 * np.sin(np.arange(2500) / 30)
    counts_nCS = np.tile((np.linspace(0.2, 1, 12)[:, None] * sine_S).astype(np.int16), (40, 1, 1))
    micro = MicroBatch(
        counts_nCS=counts_nCS, samples_n=None, positions=np.arange(40), labels_nK=np.zeros((40, 1))
    )
    dataset = SimpleNamespace(sha256_N=DIGESTS, shards=SimpleNamespace(signal=SignalSpec()))
    change = TrainingTransform(dataset=dataset, augment=config, seed=0, step=1)
    found, expected, plain = (
        model_inputs(micro, device, 0.001, transform)[0].cpu()
        for device, transform in ((gpu, change), (CPU, change), (CPU, None))
    )
    assert not torch.equal(expected, plain)
    tolerance = 0 if kinds in EXACT else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
