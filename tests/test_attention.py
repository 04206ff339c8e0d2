"""The fused kernel and the plain reference give the same attention."""
# B batch, T tokens, D width, H heads, E head width

import pytest
import torch

from hpc_ecg.model.attention import SelfAttention, attend

LENGTHS = torch.tensor([9, 5, 1])


def random_qkv(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, 9, 8, generator=generator).requires_grad_() for _ in range(3)]


def padding():
    return torch.arange(9) >= LENGTHS[:, None]


@pytest.mark.parametrize("mask_BT", [None, padding()], ids=["unmasked", "masked"])
def test_fused_and_plain_attention_agree_in_values_and_gradients(mask_BT):
    results = []
    for kind in ("sdpa", "math"):
        qkv = random_qkv()
        out = attend(*qkv, mask_BT, 0.0, kind)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in qkv)])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sdpa", "math"])
def test_masked_keys_do_not_reach_the_output(kind):
    q, k, v = random_qkv()
    out = attend(q, k, v, padding(), 0.0, kind)
    changed = v.detach().masked_fill(padding()[:, None, :, None], 100.0)
    torch.testing.assert_close(attend(q, k, changed, padding(), 0.0, kind), out)


@pytest.mark.parametrize("kind", ["sdpa", "math"])
def test_attention_drops_weights_only_in_training(kind):
    attention = SelfAttention(32, 4, dropout=0.5, kind=kind)
    x_BTD = torch.randn(2, 9, 32)
    assert not torch.equal(attention(x_BTD), attention(x_BTD))
    attention.eval()
    assert torch.equal(attention(x_BTD), attention(x_BTD))
