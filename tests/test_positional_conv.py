"""The positional convolutions by FFT and by unfolding give the numbers of the direct one."""

import pytest
import torch

from hpc_ecg.model.layers import PositionalConv
from hpc_ecg.model.settings import POSITIONAL_CONV_KINDS


def conv_of(kernel, groups, width=24):
    conv, generator = PositionalConv(width, kernel, groups), torch.Generator().manual_seed(kernel)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return conv


def output_and_gradients(conv, kind, x_BTD):
    conv.kind = kind
    x_BTD = x_BTD.detach().requires_grad_()
    out = conv(x_BTD)
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    return [out, *torch.autograd.grad(out, [x_BTD, *conv.parameters()], noise.to(out.dtype))]


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 31, 156])
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (2, 4), (7, 24), (8, 4), (128, 2)])
@pytest.mark.parametrize("kind", ["fft", "unfold"])
def test_output_and_gradients_are_those_of_the_direct_one(kind, kernel, groups, num_tokens):
    conv, x_BTD = conv_of(kernel, groups), torch.randn(3, num_tokens, 24)
    direct = output_and_gradients(conv, "direct", x_BTD)
    for ours, theirs in zip(output_and_gradients(conv, kind, x_BTD), direct, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 1e-5 * (theirs.norm() + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", POSITIONAL_CONV_KINDS)
def test_half_precision_stays_within_its_tolerance_and_gives_the_same_dtype(kind, dtype):
    conv, x_BTD = conv_of(8, 4), torch.randn(3, 31, 24)
    exact = output_and_gradients(conv, "direct", x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        found = output_and_gradients(conv, kind, x_BTD.to(dtype))
    assert found[0].dtype == torch.bfloat16
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.float() - theirs).norm() <= 0.02 * theirs.norm()
