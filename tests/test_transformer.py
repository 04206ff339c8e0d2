"""The model against the original's arrays, stage by stage, and its own promises."""
# B batch, C leads or channels, S samples, T tokens, D width, K labels

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from hpc_ecg.model.architecture import (
    Architecture,
    format_conv_layers,
    parse_conv_layers,
    resolve_architecture,
)
from hpc_ecg.model.layers import ChannelNorm, PositionalConv
from hpc_ecg.model.transformer import (
    ECGClassifier,
    ModelConfig,
    build_model,
    build_on_meta,
)
from hpc_ecg.weights import load_model
from hpc_ecg.weights.mapping import file_key

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 1e-5


def arrays(name):
    return {k: torch.tensor(v) for k, v in np.load(FIXTURES / f"{name}.npz").items()}


def padding_of(reference):
    if "lengths" not in reference:
        return None
    return torch.arange(reference["x"].shape[2]) >= reference["lengths"][:, None]


@pytest.fixture
def classifier():
    return load_model(FIXTURES / "tiny_wcr_afib_5y.pt")


def stages(model, ecg_BCS, padding_BS=None):
    """Every intermediate array under the fixture's names, [B, time, channel] after the stem."""
    seen, backbone = {}, model.backbone
    stem = backbone.feature_extractor
    hooks = [
        backbone.layer_norm.register_forward_hook(lambda m, i, o: seen.update(feat_ln=o)),
        backbone.post_extract_proj.register_forward_hook(lambda m, i, o: seen.update(proj_in=o)),
        backbone.conv_pos["pos_conv"].register_forward_hook(
            lambda m, i, o: seen.update(conv_pos=F.gelu(o))
        ),
        backbone.encoder.layer_norm.register_forward_hook(lambda m, i, o: seen.update(enc_ln=o)),
        *(
            layer.register_forward_hook(lambda m, i, o, n=n: seen.update({f"layer{n}": o}))
            for n, layer in enumerate(backbone.encoder.layers)
        ),
        *(
            layer["0"].register_forward_pre_hook(lambda m, i, n=n: seen.update({f"conv{n}": i[0]}))
            for n, layer in enumerate(stem.conv_layers, start=-1)
        ),
        stem.register_forward_hook(lambda m, i, o: seen.update(conv3=o)),
    ]
    with torch.no_grad():
        seen["encoder_out"], mask_BT = backbone.extract(ecg_BCS, padding_BS)
        seen["pooled"] = model.pool(seen["encoder_out"], mask_BT)
        seen["logits"] = model(ecg_BCS, padding_BS)
    for hook in hooks:
        hook.remove()
    return seen, mask_BT


@pytest.mark.parametrize("pooling", ["mean", "nonzero"])
@pytest.mark.parametrize("name", ["nomask", "padded", "2500", "short_row"])
def test_every_stage_agrees_with_the_original(classifier, name, pooling):
    reference = arrays(f"tiny_fwd_{name}")
    classifier.pooling = pooling
    seen, mask_BT = stages(classifier, reference["x"], padding_of(reference))
    if mask_BT is not None:
        assert torch.equal(mask_BT, reference["token_padding_mask"])
    compared = reference.keys() - {"x", "lengths", "token_padding_mask"}
    for stage in compared:
        error = (seen[stage] - reference[stage]).abs()
        tokens = mask_BT is not None and error.ndim == 3 and not stage.startswith("conv")
        assert (error[~mask_BT] if tokens else error).max() <= TOLERANCE, stage


@pytest.mark.parametrize("kind", ["sdpa", "math"])
@pytest.mark.parametrize("name", ["nomask", "padded"])
def test_features_of_the_pretrained_file_agree_with_the_original(name, kind):
    model = load_model(FIXTURES / "tiny_base_ssl.pt", num_labels=1)
    for layer in model.backbone.encoder.layers:
        layer.self_attn.kind = kind
    reference, features = arrays(f"tiny_fwd_{name}"), arrays("tiny_base_features")[f"x_{name}"]
    with torch.no_grad():
        x_BTD, mask_BT = model.backbone.extract(reference["x"], padding_of(reference))
    error = (x_BTD - features).abs()
    assert (error if mask_BT is None else error[~mask_BT]).max() <= TOLERANCE


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_gradients_for_a_frozen_a_damped_and_a_trained_stem_are_the_originals(classifier, factor):
    reference = arrays(f"tiny_grads_nomask_fgm{factor}")
    if factor == 0.0:
        classifier.freeze("stem")
    else:
        classifier.backbone.stem_gradient = factor
    logits = classifier(arrays("tiny_fwd_nomask")["x"])
    F.binary_cross_entropy_with_logits(logits, reference["__target__"], reduction="sum").backward()
    gradients = {file_key(n, "classifier"): p.grad for n, p in classifier.named_parameters()}
    present = {key for key, gradient in gradients.items() if gradient is not None}
    assert present == {key for key in reference if not key.startswith("__")}
    for key in present:
        # The true gradient of a key bias is 0 (softmax ignores it): only its size is comparable.
        # 2e-5: the original keeps tokens before records in memory, so that norms add up the same
        # gradients in another order (seen: 1.2e-5 in one norm's bias, below 1e-5 in all others).
        scale = 1.0 if "k_proj.bias" in key else reference[key].abs().max()
        error = (gradients[key] - reference[key]).abs().max()
        assert error <= TOLERANCE and error <= 2e-5 * scale, key


def test_the_published_model_has_90_374_017_parameters():
    model = build_on_meta(Architecture(), 1)
    assert sum(p.numel() for p in model.parameters()) == 90_374_017
    tokens, _ = model.backbone.extract(torch.empty(1, 12, 2500, device="meta"))
    assert tokens.shape == (1, 156, 768)


def test_names_shapes_and_order_are_those_of_the_full_size_files():
    state = build_on_meta(Architecture(), 1).state_dict()
    for layout, total in (("base_ssl", 215), ("wcr_afib_5y", 209)):
        kind = "base_ssl" if layout == "base_ssl" else "classifier"
        keys = json.loads((FIXTURES / f"keys_{layout}.json").read_text())
        ours = {file_key(name, kind): list(t.shape) for name, t in state.items()}
        ours = {k: s for k, s in ours.items() if kind == "classifier" or "proj." not in k[:5]}
        extra = [key for key in keys if key not in ours]
        assert len(keys) == total
        assert len(extra) == (8 if kind == "base_ssl" else 0)
        assert list(ours) == [key for key in keys if key not in extra]
        assert all(keys[key] == shape for key, shape in ours.items())


def test_a_mask_of_all_leads_equals_the_mask_of_one(classifier):
    reference = arrays("tiny_fwd_padded")
    mask_BS = padding_of(reference)
    mask_BCS = mask_BS[:, None].expand(-1, 12, -1)
    assert torch.equal(classifier(reference["x"], mask_BS), classifier(reference["x"], mask_BCS))


def test_a_mask_that_differs_between_leads_is_refused(classifier):
    mask_BCS = torch.zeros(1, 12, 500, dtype=torch.bool)
    mask_BCS[0, 3, 400:] = True
    with pytest.raises(ValueError, match="must agree over the leads"):
        classifier(torch.randn(1, 12, 500), mask_BCS)


def test_a_mask_without_padding_changes_nothing(classifier):
    ecg_BCS = arrays("tiny_fwd_nomask")["x"]
    mask_BS = torch.zeros(len(ecg_BCS), 500, dtype=torch.bool)
    torch.testing.assert_close(classifier(ecg_BCS, mask_BS), classifier(ecg_BCS))


def test_gelu_in_bfloat16_is_the_fp32_gelu_rounded_once():
    x = torch.randn(4096).bfloat16()
    assert torch.equal(F.gelu(x), F.gelu(x.float()).bfloat16())


def test_gelu_in_float16_is_the_fp32_gelu_within_one_rounding():
    x = torch.randn(4096).half()  # a CPU takes another erf for fp16, a GPU the same
    torch.testing.assert_close(F.gelu(x), F.gelu(x.float()).half(), rtol=2**-10, atol=2**-20)


def test_the_channel_norm_is_computed_in_fp32_under_autocast():
    norm, x_BCT = ChannelNorm(4, 4), torch.randn(2, 4, 100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_BCT = norm(x_BCT)
    assert torch.equal(out_BCT, F.group_norm(x_BCT.float(), 4).bfloat16())


def test_bfloat16_autocast_stays_near_float32(classifier):
    ecg_BCS = arrays("tiny_fwd_nomask")["x"]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(ecg_BCS).float()
    assert (logits - classifier(ecg_BCS)).abs().max() < 0.05


def test_the_mean_and_the_nonzero_count_differ_only_under_dropout():
    model = ECGClassifier(TINY, 1, ModelConfig(final_dropout=0.5))
    x_BTD = torch.ones(1, 31, 48)
    assert (model.pool(x_BTD) != 1.0).any()
    model.pooling = "nonzero"  # dropped elements leave the mean: what stays is 1 / (1 - 0.5)
    assert torch.equal(model.pool(x_BTD), torch.full((1, 48), 2.0))
    assert torch.equal(model.eval().pool(x_BTD), torch.ones(1, 48))


@pytest.mark.parametrize("part", ["none", "stem", "backbone"])
def test_a_frozen_part_stays_in_eval_mode_and_builds_no_graph(part):
    model = build_model(TINY, 1, ModelConfig())
    model.freeze(part)
    model.train()
    assert model.training
    assert model.head.training
    assert model.backbone.training == (part != "backbone")
    assert model.stem.training == (part == "none")
    assert all(not m.training for m in model.stem.modules()) == (part != "none")
    features = model.stem(torch.randn(1, 12, 500))
    assert features.requires_grad == (part == "none")
    model.freeze("none")
    assert all(m.training for m in model.modules())


def test_an_unknown_part_cannot_be_frozen():
    with pytest.raises(ValueError, match="none, stem, backbone, got 'head'"):
        build_on_meta(TINY, 1).freeze("head")


def test_random_weights_depend_on_the_seed_and_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (
        build_model(TINY, 2, ModelConfig(), seed).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    fc1 = first["backbone.encoder.layers.0.fc1.weight"]
    assert abs(fc1.std().item() - 0.02) < 0.001
    assert all(torch.isfinite(tensor).all() for tensor in first.values())


@pytest.mark.slow
def test_torch_compile_finds_one_graph_in_the_unmasked_path(classifier):
    explanation = torch._dynamo.explain(classifier)(torch.randn(1, 12, 500))
    assert explanation.graph_break_count == 0


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(256, 2, 2)] * 4", ((256, 2, 2),) * 4),
        ("[(512, 10, 5)] + [(512, 3, 2)] * 2", ((512, 10, 5), (512, 3, 2), (512, 3, 2))),
        ("[(8, 2, 2), (16, 3, 1)]", ((8, 2, 2), (16, 3, 1))),
    ],
)
def test_conv_layers_are_read_from_the_originals_string_and_written_back(text, layers):
    assert parse_conv_layers(text, "x") == layers
    assert parse_conv_layers(format_conv_layers(layers), "x") == layers


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "[(1, 2, 2)] * 10**9",
        "[(1, 2, 2)] * 33",
        "[]",
        "[(1, 2)]",
        "[(1, 2, 0)]",
        "[(1, 2, True)]",
        "[(1, 2, 2.0)]",
        "(" * 500,
        "",
        "[(1,2,2)] * -1",
        None,
        7,
        "[(1, 2, 2)] * 32 * 32",
        "[(x, 2, 2)]",
    ],
)
def test_any_other_conv_string_is_refused_and_never_evaluated(text):
    with pytest.raises(ValueError, match="conv_feature_layers"):
        parse_conv_layers(text, "model.conv_feature_layers")


def test_open_sizes_come_from_the_checkpoint_or_are_the_published_ones():
    assert resolve_architecture(ModelConfig(), None) == Architecture()
    assert resolve_architecture(ModelConfig(), TINY) == TINY
    same = ModelConfig(encoder_layers=2, conv_feature_layers="[(16, 2, 2)]*4")
    assert resolve_architecture(same, TINY) == TINY
    assert resolve_architecture(ModelConfig(encoder_layers=3), None).encoder_layers == 3


@pytest.mark.parametrize(
    ("config", "of_checkpoint", "words"),
    [
        (ModelConfig(encoder_layers=6), TINY, ["model.encoder_layers=6", "have 2"]),
        (
            ModelConfig(conv_feature_layers="[(8, 2, 2)] * 4"),
            TINY,
            ["model.conv_feature_layers=[(8, 2, 2)] * 4", "have [(16, 2, 2)] * 4"],
        ),
        (ModelConfig(encoder_attention_heads=7), None, ["model.encoder_attention_heads=7", "768"]),
        (ModelConfig(conv_pos_groups=5), None, ["model.conv_pos_groups=5 must divide"]),
        (ModelConfig(in_d=0), None, ["model.in_d must be between 1 and", "got 0"]),
    ],
)
def test_an_impossible_size_is_named_with_both_values(config, of_checkpoint, words):
    with pytest.raises(ValueError, match="model") as error:
        resolve_architecture(config, of_checkpoint)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dropout": 1.0}, "model.dropout must be in [0, 1), got 1.0"),
        ({"final_dropout": -0.1}, "model.final_dropout must be in"),
        ({"attention": "eager"}, "varlen, sdpa, math, got 'eager'"),
        ({"pooling": "max"}, "model.pooling must be one of mean, nonzero, got 'max'"),
        ({"stem_gradient": 0.0}, "train.freeze=stem"),
    ],
)
def test_a_wrong_model_setting_is_named(change, words):
    with pytest.raises(ValueError, match="model") as error:
        build_on_meta(TINY, 1, dataclasses.replace(ModelConfig(), **change))
    assert words in str(error.value)


def test_equal_widths_need_no_projection_as_in_the_original():
    same = dataclasses.replace(TINY, conv_feature_layers=((48, 2, 2),) * 4)
    model = build_model(same, 1, ModelConfig())
    assert not any("post_extract_proj" in name for name in model.state_dict())
    assert model(torch.randn(2, 12, 500)).shape == (2, 1)


def test_logits_stay_float32_under_autocast():
    """In bf16 they would have 8 bits: many ECGs would tie."""
    model = build_model(TINY, 1, ModelConfig()).eval()
    ecg = torch.randn(64, 12, 500)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ecg)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()


@pytest.mark.parametrize("seeds_B", [None, torch.tensor([3, -5])], ids=["generator", "seeds"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_checkpointed_layers_give_bitwise_the_same_gradients(seeds_B, is_padded):
    config = ModelConfig(dropout=0.2, activation_dropout=0.2, attention_dropout=0.2)
    model = build_model(TINY, 1, config).train()
    model.freeze("none", num_layers=1)
    ecg_BCS = torch.randn(2, 12, 500)
    mask_BS = (torch.arange(500) >= torch.tensor([[500], [300]])) if is_padded else None
    found, kept = [], []
    for again in (False, True):
        model.backbone.encoder.checkpoint_layers = again
        model.zero_grad()
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model(ecg_BCS, mask_BS, seeds_B)
        logits.sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        kept.append(sum(sizes.values()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0] / 2


def test_narrow_groups_of_the_positional_convolution_avoid_bfloat16_on_a_cpu():
    """oneDNN's bfloat16 kernel for them is wrong on processors with AMX."""
    conv = PositionalConv(48, kernel=8, groups=4)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_BTD = torch.randn(2, 20, 48)
    expected = conv(x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x_BTD)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    in_bf16 = conv.bfloat16()(x_BTD.bfloat16())
    assert in_bf16.dtype == torch.bfloat16
    torch.testing.assert_close(in_bf16.float(), expected, rtol=0.05, atol=0.05)
