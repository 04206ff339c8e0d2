"""Means of weights: the formulas, and that training itself never sees them."""

import pytest
import torch
from torch import nn

from hpc_ecg.training.averaging import WeightAverager


def walk(average, model, values, validated=lambda _: True):
    for step, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        average.after_step(step / len(values), 0.5, validated(step))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def model():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    return model


def test_a_state_in_another_order_is_restored_by_name(model):
    model.bias.requires_grad_(True)
    average = WeightAverager(trained(model), "ema", ema_decay=0.5)
    walk(average, model, [1.0])
    average.restore(dict(sorted(average.state().items())))
    walk(average, model, [2.0])
    assert average.mean["weight"].shape == (1, 2)


def test_ema_falls_exponentially_and_starts_with_a_small_decay(model):
    average = WeightAverager(trained(model), "ema", ema_decay=0.5)
    walk(average, model, [1.0, 2.0, 4.0])
    expected = 1.0  # the first is taken whole
    for count, value in ((1, 2.0), (2, 4.0)):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(average.mean["weight"], torch.tensor(expected))
    assert set(average.mean) == {"weight"}  # what is frozen has no mean of its own


def test_swa_is_the_plain_mean_of_the_validated_weights_from_its_start_on(model):
    average = WeightAverager(trained(model), "swa", ema_decay=0.9)
    walk(average, model, [9.0, 8.0, 1.0, 2.0, 100.0, 6.0], validated=lambda step: step != 5)
    assert torch.allclose(average.mean["weight"], torch.tensor((1.0 + 2.0 + 6.0) / 3))


def test_the_mean_is_applied_inside_and_the_weights_come_back_to_the_bit(model):
    average = WeightAverager(trained(model), "swa", ema_decay=0.9)
    walk(average, model, [0.0, 1.0 / 3, 0.1])
    own = model.weight.clone()
    with average.applied():
        assert torch.allclose(model.weight, torch.tensor((1.0 / 3 + 0.1) / 2))
    assert torch.equal(model.weight, own)


def test_the_state_comes_back(model):
    average, again = (WeightAverager(trained(model), "ema", ema_decay=0.5) for _ in range(2))
    walk(average, model, [1.0, 2.0])
    again.restore({name: tensor.clone() for name, tensor in average.state().items()})
    for one in (average, again):
        walk(one, model, [5.0])
    assert torch.equal(average.mean["weight"], again.mean["weight"])
    assert again.count == 3


def test_without_an_average_nothing_is_kept(model):
    average = WeightAverager(trained(model), "none", ema_decay=0.5)
    walk(average, model, [1.0, 2.0])
    assert average.state() == {}
    with average.applied():
        assert model.weight[0, 0] == 2
