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
    line = check_kernels(model, 2500, CPU, dtype, has_mask, backward=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad != ("extractor" in name) for name, p in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if (kind, dtype) == ("math", FP32):
        assert line == "kernels: those of the plain fp32 reference"
    else:
        assert line.startswith(f"kernels in {str(dtype)[6:]}: each layer within ")
        assert ", its gradients within " in line


class WrongBackward(torch.autograd.Function):
    """The same numbers forward; their gradient times `factor` backward."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


@pytest.mark.parametrize(("where", "has_mask"), [("input", True), ("weights", False)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_whose_gradients_are_off_is_named_first(monkeypatch, name, where, has_mask):
    model = tiny("math")
    module = dict(model.named_modules())[name]
    if where == "weights" and isinstance(module, SelfAttention):
        return  # its weights are those of its layers
    forward = type(module).forward

    def wrong(self, x, *more):
        if not torch.is_autocast_enabled("cpu") or not hasattr(self, "is_wrong"):
            return forward(self, x, *more)
        if where == "input":
            return forward(self, WrongBackward.apply(x, 2), *more)
        parameters = dict(self._parameters)
        for key, tensor in parameters.items():
            self._parameters[key] = None if tensor is None else WrongBackward.apply(tensor, 2)
        out = forward(self, x, *more)
        self._parameters.update(parameters)
        return out

    monkeypatch.setattr(type(module), "forward", wrong)
    module.is_wrong = True  # which its copies are, too; the reference has no autocast
    assert "fp32 reference" in check_kernels(model, 500, CPU, BF16, has_mask)
    with pytest.raises(ValueError, match=rf"^{name} is off by .* of its gradients \(allowed: 12"):
        check_kernels(model, 500, CPU, BF16, has_mask, backward=True)


def test_gradients_that_are_not_finite_are_named(monkeypatch):
    linear = F.linear

    def wrong(*inputs):
        factor = torch.nan if torch.is_autocast_enabled("cpu") else 1
        return WrongBackward.apply(linear(*inputs), factor)

    monkeypatch.setattr(F, "linear", wrong)
    with pytest.raises(ValueError, match=r"_proj is off by nan % of its gradients"):
        check_kernels(tiny(), 500, CPU, BF16, False, backward=True)


def test_gradients_that_no_layer_computes_are_compared_as_a_whole(monkeypatch):
    gelu = F.gelu
    monkeypatch.setattr(
        layers.F, "gelu", lambda x: WrongBackward.apply(gelu(x), 2 if x.dtype == BF16 else 1)
    )
    with pytest.raises(
        ValueError, match=r"^the model is off by .* its gradients \(allowed: 12 %\)"
    ):
        check_kernels(tiny(), 500, CPU, BF16, False, backward=True)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_wrong_backward_of_fused_attention_names_the_plain_one(monkeypatch, dtype):
    """As where a fused kernel gets one of its three gradients wrong."""
    fused = F.scaled_dot_product_attention
    for place in range(3):

        def wrong(*qkv, place=place, **more):
            return fused(
                *(WrongBackward.apply(x, 1 + (n == place)) for n, x in enumerate(qkv)), **more
            )

        monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
        with pytest.raises(
            ValueError, match=r"layers.0.self_attn is off .*set model.attention=math$"
        ):
            check_kernels(tiny("sdpa"), 500, CPU, dtype, True, backward=True)


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


def test_run_and_doctor_look_at_gradients_where_the_backbone_trains(monkeypatch, shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "train.max_epochs=1")
    probe = load_config(FinetuneConfig, [], [*words, "train.freeze=backbone"])
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, *args, **more: fused(WrongBackward.apply(q, 2), *args, **more),
    )
    config = load_config(FinetuneConfig, [], words)
    match = "backbone.encoder.layers.0.self_attn is off by 100 % of its gradients "
    with pytest.raises(ValueError, match=f"^{match}"):
        finetune(config)
    findings = [str(finding) for finding in diagnose(config)]
    assert any(line.startswith(f"error   kernels: {match}") for line in findings), findings
    assert not (tmp_path / "run").exists()
    assert finetune(probe).is_finished()
    assert evaluate(probe)
