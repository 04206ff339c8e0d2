"""All kinds of attention agree with the plain reference, or say why they cannot run."""
# B batch, T tokens, D width, H heads, E head width

import inspect
import math

import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F

from hpc_ecg.model.attention import SelfAttention, attend
from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.kernels import explain_attention
from hpc_ecg.model.settings import ModelConfig

LENGTHS = torch.tensor([9, 5, 1])
CPU = torch.device("cpu")
OFF = RecordDropout(0.0, stream=1)


def random_qkv(device=CPU, dtype=torch.float32, width=8):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, 4, 9, width, generator=generator).to(device, dtype).requires_grad_()
        for _ in range(3)
    ]


def padding(device=CPU):
    return (torch.arange(9) >= LENGTHS[:, None]).to(device)


def run(kind, mask_BT, **options):
    """Output and gradients, without those of padded tokens."""
    qkv = random_qkv(**options)
    out = attend(*qkv, mask_BT, kind, OFF)
    if mask_BT is not None:
        out = out.masked_fill(mask_BT[:, None, :, None], 0.0)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in qkv)]


@pytest.mark.parametrize("mask_BT", [None, padding()], ids=["unmasked", "masked"])
@pytest.mark.parametrize("kind", ["auto", "flash", "sdpa"])
def test_fused_and_plain_attention_agree_in_values_and_gradients(kind, mask_BT):
    for fused, plain in zip(run(kind, mask_BT), run("math", mask_BT), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def varlen_by_loop(q, k, v, ends_q, ends_k, longest_q, longest_k):
    """The documented result of varlen_attn, [tokens, H, E], one sequence after another."""
    assert torch.equal(ends_q, ends_k)
    assert ends_q.dtype == torch.int32
    assert longest_q == longest_k == ends_q.diff().max()
    parts = [
        F.scaled_dot_product_attention(*(x[start:end].transpose(0, 1)[None] for x in (q, k, v)))[
            0
        ].transpose(0, 1)
        for start, end in ends_q.unfold(0, 2, 1).tolist()
    ]
    return torch.cat(parts)


def test_attention_by_lengths_cuts_the_batch_where_padding_begins(monkeypatch):
    signature = inspect.signature(torch.nn.attention.varlen.varlen_attn)
    order = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(signature.parameters)[:7] == order
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_by_loop)
    for ours, plain in zip(run("varlen", padding()), run("math", padding()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "flash", "sdpa", "math"])
def test_masked_keys_do_not_reach_the_output(kind):
    q, k, v = random_qkv()
    out = attend(q, k, v, padding(), kind, OFF)
    changed = v.detach().masked_fill(padding()[:, None, :, None], 100.0)
    torch.testing.assert_close(attend(q, k, changed, padding(), kind, OFF), out)


@pytest.mark.parametrize("kind", ["auto", "sdpa", "math"])
def test_attention_drops_weights_only_in_training(kind):
    attention = SelfAttention(32, 4, dropout=0.5, kind=kind)
    x_BTD = torch.randn(2, 9, 32)
    assert not torch.equal(attention(x_BTD), attention(x_BTD))
    attention.eval()
    assert torch.equal(attention(x_BTD), attention(x_BTD))


@pytest.mark.parametrize("kind", ["auto", "math"])
def test_attention_dropout_depends_on_the_record_alone(kind):
    attention = SelfAttention(32, 4, dropout=0.5, kind=kind)
    x_BTD, seeds_BT = torch.randn(3, 9, 32), token_seeds(torch.tensor([5, 6, 7]), 9)
    whole = attention(x_BTD, None, seeds_BT)
    for i in range(3):
        torch.testing.assert_close(attention(x_BTD[i:][:1], None, seeds_BT[i:][:1]), whole[i:][:1])
    assert not torch.allclose(attention(x_BTD, None, seeds_BT + 1), whole)


def test_attention_dropout_keeps_the_mean():
    q_BHTE = torch.zeros(64, 4, 9, 8)
    drop = RecordDropout(0.3, stream=1)
    out = attend(q_BHTE, q_BHTE, q_BHTE + 1, None, "math", drop, token_seeds(torch.arange(64), 9))
    spread = math.sqrt(0.3 / 0.7 / (64 * 4 * 9 * 9))
    assert abs(out.mean().item() - 1) < 4 * spread


@pytest.mark.parametrize(
    ("kind", "dtype", "p", "ending"),
    [
        ("auto", torch.float32, 0.0, "flash_attention (torch's own choice)"),
        ("auto", torch.bfloat16, 0.0, "math (faster than a CPU's fused kernel"),
        ("auto", torch.float32, 0.1, "math (attention dropout by record)"),
        ("flash", torch.float32, 0.0, "flash (requested)"),
        ("sdpa", torch.float32, 0.1, "math (torch's own choice)"),
        ("math", torch.float32, 0.0, "math (requested)"),
    ],
)
@pytest.mark.parametrize("has_mask", [False, True])
def test_the_log_line_names_the_kernel_and_the_reason(kind, dtype, p, ending, has_mask):
    line = explain_attention(SelfAttention(32, 4, p, kind), 9, CPU, dtype, has_mask)
    assert f"on cpu in {str(dtype)[6:]} {'with' if has_mask else 'without'} padding" in line
    assert ending in line


@pytest.mark.parametrize(
    ("kind", "p", "reason"),
    [
        ("cudnn", 0.0, "No viable backend"),
        ("efficient", 0.0, "No viable backend"),
        ("flash", 0.1, "do not support non-zero dropout"),
        ("varlen", 0.0, "Could not run"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_torchs_reason(kind, p, reason):
    attention = SelfAttention(32, 4, p, kind)
    with pytest.raises(ValueError, match=f"model.attention={kind} cannot run on cpu") as error:
        explain_attention(attention, 9, CPU, torch.float32, True)
    assert reason in str(error.value)
    assert len(str(error.value)) < 250
    assert "\n" not in str(error.value)


def test_attention_by_lengths_refuses_attention_dropout():
    with pytest.raises(ValueError, match="varlen has no dropout"):
        ModelConfig(attention="varlen", attention_dropout=0.1)


def test_the_plain_reference_leaves_the_chosen_flash_attention_active(monkeypatch):
    """The kernels' check compares with the reference, and compiled layers choose nothing after."""
    active = []
    impls = torch.nn.attention
    monkeypatch.setattr(impls, "current_flash_attention_impl", lambda: (active or [None])[0])
    monkeypatch.setattr(impls, "activate_flash_attention_impl", active.append)
    monkeypatch.setattr(impls, "restore_flash_attention_impl", active.clear)
    for kind, expected in (("fa3", ["FA3"]), ("math", ["FA3"]), ("sdpa", []), ("math", [])):
        attend(*random_qkv(), None, kind, OFF)
        assert active == expected, kind
