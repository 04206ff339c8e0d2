"""The kernels of a run are compared with the plain fp32 reference before it starts."""

import copy
import socket
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, TINY, words_for

from hpc_ecg.config.load import load_config
from hpc_ecg.model import layers
from hpc_ecg.model.attention import SelfAttention
from hpc_ecg.model.kernels import check_kernels
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.preflight.doctor import diagnose
from hpc_ecg.training.evaluate import evaluate, evaluate_weights
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model

CPU, FP32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
LAYERS = [
    name
    for name, module in build_model(TINY, 1, ModelConfig()).backbone.named_modules(
        prefix="backbone"
    )
    if isinstance(module, SelfAttention)
    or (not list(module.children()) and list(module.parameters()))
]


def tiny(kind="sdpa"):
    return build_model(TINY, 1, ModelConfig(attention=kind, activation_dropout=0.2)).train()


def break_layer(monkeypatch, name, factor):
    """Multiply the output of one layer, where it runs in bfloat16: in the reference it stays."""
    module = dict(build_model(TINY, 1, ModelConfig()).named_modules())[name]
    shapes = [p.shape for p in module.parameters()]
    forward = type(module).forward
    seen = {"count": 0}

    def wrong(self, *inputs):
        out = forward(self, *inputs)
        if not torch.is_autocast_enabled("cpu") or [p.shape for p in self.parameters()] != shapes:
            return out
        seen["count"] += 1
        return out * factor if self in seen["broken"] else out

    def deepcopy(model, copied=copy.deepcopy):
        model = copied(model)
        seen.setdefault("broken", []).append(dict(model.named_modules())[name])
        return model

    monkeypatch.setattr(type(module), "forward", wrong)
    monkeypatch.setattr("hpc_ecg.model.kernels.copy.deepcopy", deepcopy)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_off_by_100_percent_is_named_first(monkeypatch, name, has_mask):
    break_layer(monkeypatch, name, 2)
    with pytest.raises(ValueError, match="plain fp32 reference") as error:
        check_kernels(tiny("math"), 500, CPU, BF16, has_mask)
    line = str(error.value)
    assert line.startswith(f"{name} is off by ")
    assert f"in bfloat16 on cpu of {socket.gethostname()}" in line
    assert line.endswith("set engine.precision=fp32")
    assert "\n" not in line


def test_a_layer_that_gives_nan_is_named(monkeypatch):
    break_layer(monkeypatch, LAYERS[-1], torch.nan)
    with pytest.raises(ValueError, match=f"^{LAYERS[-1]} is off by nan %"):
        check_kernels(tiny(), 500, CPU, BF16, False)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_wrong_fused_attention_names_the_plain_one(monkeypatch, dtype):
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **more: 2 * fused(*args, **more)
    )
    first = "backbone.encoder.layers.0.self_attn"
    with pytest.raises(ValueError, match=rf"^{first} is off by .*; set model.attention=math$"):
        check_kernels(tiny("sdpa"), 500, CPU, dtype, True)
    assert "fp32 reference" in check_kernels(tiny("math"), 500, CPU, dtype, True)


def test_what_no_layer_does_is_compared_as_a_whole(monkeypatch):
    monkeypatch.setattr(layers.F, "gelu", lambda x: 2 * x if x.dtype == BF16 else F.relu(x))
    with pytest.raises(ValueError, match=r"^the model is off by .* \(allowed: 15 %\)"):
        check_kernels(tiny(), 500, CPU, BF16, False)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("kind", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("file", ["", "tiny_base_ssl.pt", "tiny_wcr_afib_5y.pt"])
def test_right_kernels_pass_and_leave_model_and_random_states_as_they_were(
    file, kind, dtype, has_mask
):
    config = ModelConfig(attention=kind, activation_dropout=0.2)
    model = build_model(TINY, 1, config)
    if file:
        model = load_model(FIXTURES / file, num_labels=1, model_config=config)
    model.train().freeze("stem")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    line = check_kernels(model, 2500, CPU, dtype, has_mask)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if (kind, dtype) == ("math", FP32):
        assert line == "kernels: those of the plain fp32 reference"
    else:
        assert line.startswith(f"kernels in {str(dtype)[6:]}: each layer within ")


@pytest.mark.slow
def test_a_compiled_model_is_compared_too(monkeypatch):
    line = check_kernels(tiny("math"), 500, CPU, FP32, False, compiled=True)
    assert line.startswith("kernels in float32: each layer within ")
    compiled = torch.nn.Module.compile

    def wrong(self, *args, **more):
        compiled(self, *args, **more)
        implementation = self._compiled_call_impl
        self._compiled_call_impl = lambda *inputs: 2 * implementation(*inputs) + 1

    monkeypatch.setattr(layers.EncoderLayer, "compile", wrong)
    with pytest.raises(ValueError, match=r"^the compiled model is off .*set engine.compile=false$"):
        check_kernels(tiny("math"), 500, CPU, FP32, False, compiled=True)


@pytest.mark.parametrize("kernel", [2, 7, 8, 10])
def test_a_stem_with_narrow_input_and_a_long_kernel_avoids_bfloat16_on_a_cpu(kernel):
    stem = ((32, kernel, 2), (32, 2, 2))
    model = build_model(replace(TINY, conv_feature_layers=stem), 1, ModelConfig())
    conv, ecg_BCS = model.stem.conv_layers[0]["0"], torch.randn(2, 12, 100)
    exact = conv(ecg_BCS).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", BF16):
        found = conv(ecg_BCS)
    assert found.dtype == BF16
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    assert torch.equal(found, exact) == (kernel >= 8)


def test_run_evaluation_and_doctor_stop_before_anything_is_written(monkeypatch, shards, tmp_path):
    good = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "good"))
    finetune(good)
    files = sorted((tmp_path / "good").rglob("*"))
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **more: 2 * fused(*args, **more)
    )
    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run"))
    match = r"^backbone.encoder.layers.0.self_attn is off .*set model.attention=math$"
    with pytest.raises(ValueError, match=match):
        finetune(config)
    with pytest.raises(ValueError, match=match):
        evaluate(good)
    with pytest.raises(ValueError, match=match):
        evaluate_weights(good, tmp_path / "good" / "best", tmp_path / "out", split="valid")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()
    assert sorted((tmp_path / "good").rglob("*")) == files
    findings = [str(finding) for finding in diagnose(config)]
    assert any(
        line.startswith("error   kernels: backbone.encoder.layers.0.self_attn is off by ")
        for line in findings
    )
    assert "skipped step: the kernels must be right first" in findings
    assert not (tmp_path / "run").exists()
    plain = load_config(
        FinetuneConfig, [], words_for(shards, tmp_path / "plain", "model.attention=math")
    )
    assert finetune(plain).is_finished()
