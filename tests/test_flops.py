"""The formula for operations against torch's own count of what the model does."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_ecg.model.architecture import Architecture, num_tokens
from hpc_ecg.model.flops import forward_flops, peak_flops, training_flops
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_empty

PUBLISHED = Architecture()
SMALL = Architecture(
    encoder_layers=3,
    encoder_embed_dim=48,
    encoder_ffn_embed_dim=100,
    encoder_attention_heads=4,
    conv_feature_layers=((16, 10, 5), (24, 3, 2)),
    conv_pos=9,
    conv_pos_groups=4,
    in_d=8,
)
WITHOUT_PROJECTION = dataclasses.replace(SMALL, encoder_embed_dim=24, conv_pos=8)
PLAIN = ModelConfig(attention="math")


def counted(architecture, num_samples, freeze=None, freeze_layers=0):
    model = build_empty(architecture, 1, PLAIN).train()
    ecg_BCS = torch.zeros(1, architecture.in_d, num_samples)
    if freeze:
        model.freeze(freeze, freeze_layers)
    with torch.set_grad_enabled(freeze is not None), FlopCounterMode(display=False) as counter:
        logits_BK = model(ecg_BCS)
        if freeze:
            logits_BK.sum().backward()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [PUBLISHED, SMALL, WITHOUT_PROJECTION])
@pytest.mark.parametrize("num_samples", [1250, 2501])
def test_the_forward_pass_costs_what_torch_counts(architecture, num_samples):
    assert forward_flops(architecture, num_samples) == counted(architecture, num_samples)


@pytest.mark.slow
# One group: for more, torch counts the gradient of the weights once too often for each.
@pytest.mark.parametrize("architecture", [SMALL, WITHOUT_PROJECTION])
@pytest.mark.parametrize(
    "frozen", [("none", 0), ("stem", 0), ("backbone", 0), ("none", 2), ("stem", 3), ("backbone", 1)]
)
def test_training_costs_what_torch_counts_whatever_is_frozen(architecture, frozen):
    architecture = dataclasses.replace(architecture, conv_pos_groups=1)
    assert training_flops(architecture, 1000, *frozen) == counted(architecture, 1000, *frozen)


def test_an_ecg_of_ten_seconds_costs_29_billion_operations():
    assert num_tokens(PUBLISHED, 2500) == 156
    forward = forward_flops(PUBLISHED, 2500)
    assert round(forward / 1e9, 1) == 29.2
    assert forward < training_flops(PUBLISHED, 2500, "backbone") < 1.001 * forward
    assert 2.9 * forward < training_flops(PUBLISHED, 2500, "stem") < 3 * forward


def test_too_few_samples_for_a_token_give_none():
    assert num_tokens(PUBLISHED, 15) == 0


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "fp16", 756.5),
        ("NVIDIA H100 NVL", "fp32", 60),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L40", "bf16", 181),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA GeForce RTX 4090", "fp16", 165.2),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp32", 14),
        ("AMD Instinct MI250X", "bf16", 191.5),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("CPU", "fp32", None),
    ],
)
def test_peaks_are_those_of_the_data_sheet_or_unknown(device, precision, tera):
    peak = peak_flops(device, precision)
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))
