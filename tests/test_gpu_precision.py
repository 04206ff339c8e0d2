"""A GPU computes what a CPU computes in fp32, as closely as its arithmetic allows."""
# B batch, C leads, S samples

import numpy as np
import pytest
import torch
from conftest import TINY
from gpu_runs import CPU, SLOWLY, curve, needs_cuda, relative_error, start

from hpc_ecg.distributed.process_group import choose_hardware
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.kernels import check_kernels
from hpc_ecg.model.losses import loss_sum
from hpc_ecg.model.settings import LOSSES, LossConfig, ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import OptimConfig

pytestmark = pytest.mark.gpu
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {"fp32": 0.005, "bf16": 0.05, "fp16": 0.01}
"""Largest relative error of all logits; a GPU may round the inputs of fp32 convolutions to TF32."""
STRICT = 2e-5
"""In fp32 without TF32. Measured between two CPU kernels: below 1e-6."""
padded = pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
precisions = pytest.mark.parametrize("precision", DTYPES)


def batch(is_padded):
    generator = torch.Generator().manual_seed(1)
    ecg_BCS = 0.3 * torch.randn(6, 12, 500, generator=generator)
    seeds_B = torch.randint(-(2**63), 2**63 - 1, (6,), generator=generator)
    samples_B = torch.tensor([500, 400, 300, 250, 500, 77])
    is_padded_BS = torch.arange(500) >= samples_B[:, None]
    if not is_padded:
        return ecg_BCS, None, seeds_B
    return ecg_BCS.masked_fill(is_padded_BS[:, None], 0.0), is_padded_BS, seeds_B


def on(device, inputs):
    return [x if x is None else x.to(device) for x in inputs]


def logits_of(device, is_padded, precision="fp32", training=False):
    """Logits, and with `training` the gradients of all weights, under the autocast of a run."""
    model = build_model(TINY, 3, ModelConfig(), seed=1).to(device).train(training)
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        logits_BK = model(*on(device, batch(is_padded)))
    if not training:
        return logits_BK
    logits_BK.square().sum().backward()
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters()])


@padded
@precisions
def test_logits_are_close_to_those_of_the_cpu(gpu, precision, is_padded):
    found = logits_of(gpu, is_padded, precision)
    assert found.dtype == torch.float32 and found.device.type == gpu.type
    assert relative_error(found, logits_of(CPU, is_padded)) < TOLERANCE[precision]


@padded
@precisions
def test_gradients_are_close_to_those_of_the_cpu(gpu, precision, is_padded):
    found = logits_of(gpu, is_padded, precision, training=True)
    expected = logits_of(CPU, is_padded, training=True)
    assert relative_error(found, expected) < 2 * TOLERANCE[precision]


@padded
def test_fp32_without_tf32_is_fp32(gpu, is_padded):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = logits_of(gpu, is_padded)
    assert relative_error(found, logits_of(CPU, is_padded)) < STRICT


@padded
@precisions
def test_the_check_before_a_run_passes(gpu, precision, is_padded):
    model = build_model(TINY, 1, ModelConfig(), seed=1)
    line = check_kernels(model, 500, gpu, DTYPES[precision], is_padded, backward=True)
    assert line.startswith(f"kernels in {str(DTYPES[precision])[6:]}: each layer within")


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_device_and_precision_are_those_of_the_machine(gpu, device, precision):
    needs_cuda(gpu, "a CPU has no choice between devices")
    config, on_cpu = EngineConfig(device=device, precision=precision), device == "cpu"
    if on_cpu and precision == "fp16":
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            choose_hardware(config)
        return
    best = (
        "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) and not on_cpu else "fp32"
    )
    assert choose_hardware(config) == (on_cpu, best if precision == "auto" else precision)


@precisions
def test_a_run_has_the_curve_of_the_cpu(gpu, fp16_everywhere, shards, tmp_path, precision):
    on_cpu = start(shards, tmp_path / "cpu", CPU, SLOWLY, "engine.precision=fp32")
    on_gpu = start(shards, tmp_path / "gpu", gpu, SLOWLY, f"engine.precision={precision}")
    tolerance = 1e-3 if precision == "fp32" else 0.05
    np.testing.assert_allclose(curve(on_gpu), curve(on_cpu), rtol=tolerance, atol=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_the_cpu(gpu, name):
    generator = torch.Generator().manual_seed(2)
    targets_BK = torch.randint(0, 2, (16, 3), generator=generator).float()
    targets_BK[3, 1] = torch.nan
    values = []
    for device in (gpu, CPU):
        logits_BK = torch.linspace(-9, 9, 48).view(16, 3).to(device).requires_grad_()
        loss = loss_sum(logits_BK, targets_BK.to(device), LossConfig(name=name), None)
        loss.backward()
        values.append((loss.detach().cpu(), logits_BK.grad.cpu()))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)


def test_adamw_is_fused_on_a_gpu_alone(gpu):
    for device in (gpu, CPU):
        optimizer = build_optimizer(build_model(TINY, 1, ModelConfig()), OptimConfig(), device)
        assert optimizer.defaults["fused"] == (device.type == "cuda")
