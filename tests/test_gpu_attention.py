"""Attention kernels of a GPU agree with the plain fp32 reference on the CPU, or say why not."""
# B batch, T tokens, H heads, E head width

import pytest
import torch
from gpu_runs import CPU, needs_cuda

from hpc_ecg.model.attention import SelfAttention, attend
from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.kernels import explain_attention

pytestmark = pytest.mark.gpu
LENGTHS = torch.tensor([31, 5, 1])
OFF = RecordDropout(0.0, stream=1)
OF_A_GPU = ("cudnn", "efficient", "varlen")
KINDS = ("auto", "flash", "sdpa", "math", *OF_A_GPU)


@pytest.fixture(autouse=True)
def _torch_has_the_kernel(request):
    if request.node.callspec.params.get("kind") == "varlen":
        pytest.importorskip("torch.nn.attention.varlen", reason="torch 2.10 has varlen attention")


def padding(device):
    return (torch.arange(31) >= LENGTHS[:, None]).to(device)


def run(device, dtype, kind, is_masked, dropout=OFF):
    """Output and gradients on the CPU in fp32, without those of padded tokens."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(3, 4, 31, 64, generator=generator) for _ in range(3)]
    qkv = [x.to(torch.bfloat16).to(device, dtype).requires_grad_() for x in qkv]
    mask_BT = padding(device) if is_masked else None
    seeds_BT = token_seeds(torch.tensor([5, 6, 7], device=device), 31)
    out = attend(*qkv, mask_BT, kind, dropout, seeds_BT)
    if mask_BT is not None:
        out = out.masked_fill(mask_BT[:, None, :, None], 0.0)
    out.float().square().sum().backward()
    return [x.detach().float().cpu() for x in (out, *(x.grad for x in qkv))]


@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_kernel_agrees_with_the_plain_reference(gpu, dtype, kind, is_masked):
    if kind in OF_A_GPU:
        needs_cuda(gpu, f"{kind} is a kernel of GPUs")
    attention = SelfAttention(256, 4, 0.0, kind)
    if gpu.type == "cuda" and kind == "flash" and is_masked:
        with pytest.raises(ValueError, match="attention=flash cannot run on cuda"):
            explain_attention(attention, 31, gpu, dtype, True)
        return
    assert f"on {gpu.type} in" in explain_attention(attention, 31, gpu, dtype, is_masked)
    found = run(gpu, dtype, kind, is_masked)
    for ours, plain in zip(found, run(CPU, torch.float32, "math", is_masked), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["auto", "efficient", "sdpa", "math"])
def test_in_fp32_a_kernel_agrees_more_closely(gpu, kind):
    if kind in OF_A_GPU:
        needs_cuda(gpu, f"{kind} is a kernel of GPUs")
    found, expected = run(gpu, torch.float32, kind, True), run(CPU, torch.float32, "math", True)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["flash", "cudnn", "varlen"])
def test_a_kernel_for_half_precision_refuses_fp32_in_one_line(gpu, kind):
    needs_cuda(gpu, "a CPU refuses other kernels")
    attention = SelfAttention(256, 4, 0.0, kind)
    with pytest.raises(ValueError, match=f"model.attention={kind} cannot run on cuda") as error:
        explain_attention(attention, 31, gpu, torch.float32, kind == "varlen")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["auto", "math"])
def test_dropout_by_record_drops_the_weights_that_a_cpu_drops(gpu, kind):
    dropout = RecordDropout(0.3, stream=1).train()
    found, expected = (run(d, torch.float32, kind, True, dropout) for d in (gpu, CPU))
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)
