"""What only a GPU can show: its kernels agree with the CPU's, and no step waits for it."""

import functools
import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import TINY, words_for

from hpc_ecg.config.load import load_config
from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.layers import PositionalConv
from hpc_ecg.model.measure_kernels import KINDS, KernelLoad, measure_kernel
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.training import loop, model_inputs
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
GPU = torch.device("cuda", 0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = ["compiled", pytest.param("triton", marks=pytest.mark.skipif(
    not find_spec("triton"), reason="triton is not installed"))]  # fmt: skip
# Head width 64, as published: some kernels take no narrower one.
WIDE = replace(TINY, encoder_embed_dim=256, encoder_ffn_embed_dim=512, conv_pos=128)


def on_gpu(dtype, **more):
    return KernelLoad(num_records=8, num_tokens=156, device=GPU, dtype=dtype, **more)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_attention_kernel_is_right_or_says_why_it_is_out(dtype, has_mask):
    found = measure_kernel(
        "attention", build_model(WIDE, 1, ModelConfig()), on_gpu(dtype, has_mask=has_mask)
    )
    candidates = found["candidates"]
    assert list(candidates) == list(KINDS["attention"])
    assert not [kind for kind, about in candidates.items() if "wrong" in about.get("out", "")]
    assert {"math", "sdpa", "efficient"} <= {k for k, about in candidates.items() if "ms" in about}
    if dtype != torch.float32 and not has_mask:
        assert "ms" in candidates["flash"], candidates["flash"]


@pytest.mark.parametrize("name", ["fa3", "fa4"])
def test_flash_attention_3_and_4_run_where_they_are_installed(name):
    module = {"fa3": "flash_attn_interface", "fa4": "flash_attn.cute"}[name]
    if not find_spec(module.partition(".")[0]):
        pytest.skip(f"{module} is not installed")
    model = build_model(WIDE, 1, ModelConfig())
    found = measure_kernel("attention", model, on_gpu(torch.bfloat16), ["math", name, "sdpa"])
    assert "ms" in found["candidates"][name], found["candidates"][name]
    assert torch.nn.attention.current_flash_attention_impl() is None, "put back for the next kernel"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [7, 128])
def test_each_positional_convolution_is_that_of_the_cpu(kernel, dtype):
    conv = PositionalConv(256, kernel, 16)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape))
    x_BTD = torch.randn(4, 155, 256)
    expected = conv(x_BTD)
    for kind in ("direct", "fft", "unfold"):
        conv.kind = kind
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = conv.to(GPU)(x_BTD.to(GPU, dtype))
        assert found.dtype == dtype
        error = (found.cpu().float() - expected).norm() / expected.norm()
        assert error < (0.005 if dtype != torch.bfloat16 else 0.02), kind  # fp32 may be TF32
        conv.cpu()


@pytest.mark.parametrize("after_gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_dropout_has_the_bits_of_the_cpu(kind, dtype, after_gelu):
    x_BTD, gradient = (torch.randn(3, 33, 3072).to(dtype) for _ in range(2))
    seeds_BT = token_seeds(torch.arange(3), 33)
    found = []
    for device, own in (("cpu", "plain"), (GPU, kind)):
        x = x_BTD.to(device).requires_grad_()
        out = RecordDropout(0.1, 3, own)(x, seeds_BT.to(device), after_gelu=after_gelu)
        found.append((out, *torch.autograd.grad(out, x, gradient.to(device))))
    for plain, ours in zip(*found, strict=True):
        assert torch.equal(ours.cpu() == 0, plain == 0)
        if after_gelu:
            digits = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
            torch.testing.assert_close(ours.cpu(), plain, rtol=digits, atol=digits)
        else:
            assert torch.equal(ours.cpu(), plain)


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_dropout_keeps_no_mask(kind):
    x_BTD = torch.randn(8, 156, 3072, device=GPU).requires_grad_()
    seeds_BT = token_seeds(torch.arange(8, device=GPU), 156)
    drop = functools.partial(RecordDropout(0.1, 3, kind), x_BTD, seeds_BT, after_gelu=True)
    drop()  # compiles
    before = torch.cuda.memory_allocated()
    out = drop()
    kept = torch.cuda.memory_allocated() - before - out.numel() * 4
    assert kept < 2 * seeds_BT.numel() * 8 + 4096


def test_counts_arrive_as_they_were_though_their_buffer_is_used_again():
    buffer, copies, sums = np.empty((64, 12, 2500), np.int16), [], []
    for number in range(20):
        buffer[:] = number
        copies.append(model_inputs._copy_ahead(buffer, GPU))
        sums.append(copies[-1].sum(dtype=torch.int64))
    assert [int(total) for total in sums] == [number * buffer.size for number in range(20)]
    assert all(bool((counts == number).all()) for number, counts in enumerate(copies))


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["augment.lead_mask=0.2", "augment.noise_mv=0.1", "augment.shift_s=0.5"],
        ["loss.pos_weight=[2.0]", "train.average=ema"],
        ["engine.micro_batch_size=5", "model.dropout=0.1"],
        ["loss.name=as"],
    ],
)
def test_no_step_between_logs_waits_for_the_gpu(monkeypatch, shards, tmp_path, more):
    """fp16 is the known exception: its loss scale is read in each step."""
    steps = []

    def strict(*arguments, step=loop.train_step):
        torch.cuda.set_sync_debug_mode("error" if len(steps) >= 2 else "default")
        steps.append(1)
        return step(*arguments)

    def may_wait(name):
        function = getattr(loop, name)

        def relaxed(*arguments):
            torch.cuda.set_sync_debug_mode("default")
            return function(*arguments)

        monkeypatch.setattr(loop, name, relaxed)

    monkeypatch.setattr(loop, "train_step", strict)
    for name in ("_log", "_save", "_evaluate", "finish_stage"):
        may_wait(name)
    own = ["engine.device=cuda", "engine.precision=bf16", "train.log_every=100", *more]
    try:
        finetune(load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run", *own)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) > 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_measures_once_and_goes_on_with_the_same_kernels(shards, tmp_path, precision):
    own = ["engine.device=cuda", f"engine.precision={precision}", "engine.kernels=measure"]
    words = words_for(shards, tmp_path / "run", *own)
    finetune(load_config(FinetuneConfig, [], [*words, "train.max_epochs=1"]))
    file = tmp_path / "run" / "kernels.json"
    kept = json.loads(file.read_text())
    assert kept["device"] == torch.cuda.get_device_name(0)
    assert set(kept["chosen"]) >= {"attention", "positional_conv", "record_dropout"}
    (tmp_path / "run" / "finished.json").unlink()
    finetune(load_config(FinetuneConfig, [], [*words, "train.max_epochs=1"]))
    assert json.loads(file.read_text()) == kept


def test_the_optimizer_is_one_kernel(shards, tmp_path):
    from hpc_ecg.training.optimizer import build_optimizer
    from hpc_ecg.training.settings import OptimConfig

    optimizer = build_optimizer(build_model(TINY, 1, ModelConfig()).to(GPU), OptimConfig(), GPU)
    assert all(group["fused"] for group in optimizer.param_groups)
