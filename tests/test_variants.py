"""The variants of the model that benchmarks measure compute what the model computes."""

import pytest
import torch
from benchmarks.variants import _step_with_fft, convolve_by_fft, measure_variants
from conftest import TINY

from hpc_ecg.model.layers import PositionalConv
from hpc_ecg.model.transformer import ModelConfig, build_model


@pytest.mark.parametrize(("kernel", "groups"), [(8, 4), (9, 2), (128, 1), (1, 4)])
@pytest.mark.parametrize("num_tokens", [5, 31, 156])
def test_the_positional_convolution_by_fft_is_the_direct_one(kernel, groups, num_tokens):
    conv = PositionalConv(24, kernel, groups)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(2, num_tokens, 24, requires_grad=True)
    results = []
    for out in (conv(x_BTD), convolve_by_fft(conv, x_BTD)):
        conv.zero_grad()
        x_BTD.grad = None
        out.square().sum().backward()
        results.append([out.detach(), x_BTD.grad, *(p.grad.clone() for p in conv.parameters())])
    for direct, fft in zip(*results, strict=True):
        assert (fft - direct).abs().max() <= 1e-5 * direct.abs().max()


def test_a_step_by_fft_leaves_the_model_as_it_was():
    model = build_model(TINY, 1, ModelConfig()).train()
    (conv,) = (m for m in model.modules() if isinstance(m, PositionalConv))
    ecg_BCS, seeds_B = torch.randn(1, 12, 500), torch.arange(1)
    before = model(ecg_BCS, None, seeds_B)
    _step_with_fft(model, ecg_BCS, seeds_B)
    assert "forward" not in vars(conv)
    assert torch.equal(model(ecg_BCS, None, seeds_B), before)


@pytest.mark.slow
def test_every_variant_is_measured():
    numbers = measure_variants(TINY, batch_size=2, repeats=1)
    names = ("fft", "plain", "torch", "off", "checkpoint", "compiled")
    assert {f"variant_{name}_to_own" for name in names} < set(numbers)
    assert all(number > 0 for number in numbers.values())
