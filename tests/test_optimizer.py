"""The learning rate is a pure function of the step; only what trains is in the optimizer."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import FIXTURES
from torch import nn

from hpc_ecg.training.optimizer import build_optimizer, lr_at, lr_scale, set_rates
from hpc_ecg.training.settings import OptimConfig
from hpc_ecg.weights import load_model


def test_the_rate_rises_linearly_and_falls_as_a_cosine_to_nothing():
    config = OptimConfig(lr=1.0, warmup_fraction=0.1)
    rates = [lr_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.001


def test_a_constant_rate_stays():
    config = OptimConfig(lr=0.3, schedule="constant", warmup_fraction=0)
    assert {lr_at(step, 50, config) for step in range(50)} == {0.3}


def test_one_step_runs_at_a_rate_above_nothing():
    assert lr_at(0, 1, OptimConfig(lr=0.3)) == 0.3


def test_matrices_decay_and_biases_do_not_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5), torch.device("cpu"))
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.5: 1, 0.0: 2}


NAMES = {
    "backbone.feature_extractor.conv_layers.0.0.weight": 0.5**3,
    "backbone.encoder.layer_norm.weight": 0.5**3,
    "backbone.encoder.layers.0.fc1.weight": 0.5**2,
    "backbone.encoder.layers.1.fc1.weight": 0.5,
    "head.weight": 4.0,
}


@pytest.mark.parametrize("name", NAMES)
def test_layers_learn_more_slowly_the_further_they_are_from_the_head(name):
    config = OptimConfig(lr=0.1, layer_decay=0.5, head_lr=0.4)
    assert lr_scale(name, 2, config) == pytest.approx(NAMES[name])


def test_every_group_gets_its_share_of_the_rate():
    model = load_model(FIXTURES / "tiny_wcr_afib_5y.pt")
    config = OptimConfig(lr=0.1, layer_decay=0.5, head_lr=0.4, schedule="constant")
    optimizer = build_optimizer(model, config, torch.device("cpu"))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 49
    assert set_rates(optimizer, 50, 100, config) == 0.1
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, scale in NAMES.items():
        assert rates[id(model.get_parameter(name))] == pytest.approx(0.1 * scale)


def test_epsilon_before_the_correction_is_fairseqs_adam():
    """Written out from its formula: denominator sqrt(v) + eps, both corrections in the step."""
    config = OptimConfig(
        lr=0.1, schedule="constant", warmup_fraction=0, eps=1e-3, eps_before_correction=True
    )
    linear = nn.Linear(1, 1, bias=False)
    expected, m, v = linear.weight.item(), 0.0, 0.0
    optimizer = build_optimizer(linear, replace(config, weight_decay=0), torch.device("cpu"))
    for step in range(5):
        set_rates(optimizer, step, 5, config)
        gradient = 1e-3 * (step + 1)
        linear.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        (beta1, beta2), t = config.betas, step + 1
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        size = 0.1 * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        expected -= size * m / (math.sqrt(v) + 1e-3)
    assert linear.weight.item() == pytest.approx(expected, rel=1e-6)
