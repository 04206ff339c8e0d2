"""The learning rate is a pure function of the step; only what trains is in the optimizer."""

import pytest
import torch
from torch import nn

from hpc_ecg.training.optimizer import OptimConfig, build_optimizer, lr_at


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
