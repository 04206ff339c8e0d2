"""A record's dropout depends on its seed alone, not on its batch, order or rank."""
# B batch, T tokens, D width

import dataclasses
import itertools
import math

import pytest
import torch
from conftest import TINY

from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model

EVERYWHERE = ModelConfig(dropout=0.2, activation_dropout=0.2, dropout_input=0.2, final_dropout=0.2)


def seeds(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (number,), generator=generator)


def dropped(seeds_B, p=0.1, stream=1, shape=(50, 257)):
    """Mask of the elements that are dropped."""
    seeds_BT = seeds_B if seeds_B.ndim == 2 else token_seeds(seeds_B, shape[0])
    return RecordDropout(p, stream)(torch.ones(len(seeds_B), *shape), seeds_BT) == 0


def deviation(first, second, p=0.1):
    """Correlation of two masks in standard deviations of the one that independence gives."""
    first, second = ((mask.double() - p) / math.sqrt(p * (1 - p)) for mask in (first, second))
    return abs((first * second).mean().item()) * math.sqrt(first.numel())


def test_a_mask_is_the_same_in_any_batch_and_any_order():
    seeds_B = seeds(4)
    whole = dropped(seeds_B)
    alone = torch.cat([dropped(seed_1) for seed_1 in seeds_B.split(1)])
    assert torch.equal(whole, alone)
    assert torch.equal(dropped(seeds_B.flip(0)), whole.flip(0))


def test_a_longer_record_begins_with_the_mask_of_a_shorter_one():
    assert torch.equal(dropped(seeds(2), shape=(80, 257))[:, :50], dropped(seeds(2)))


def test_a_model_gives_a_record_the_same_gradient_in_any_batch():
    model = build_model(TINY, 1, EVERYWHERE).train()
    ecg_BCS, seeds_B = torch.randn(4, 12, 500), seeds(4)

    def gradients(pieces):
        model.zero_grad()
        for piece in pieces:
            model(ecg_BCS[piece], None, seeds_B[piece]).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    whole = gradients([[0, 1, 2, 3]])
    for pieces in ([[0], [1], [2], [3]], [[3, 1], [2, 0]]):
        for ours, theirs in zip(gradients(pieces), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_model_uses_the_seeds_in_every_dropout_and_leaves_torchs_generator_alone():
    model = build_model(TINY, 1, EVERYWHERE).train()
    ecg_BCS, state = torch.randn(2, 12, 500), torch.get_rng_state()
    first, again, other = (model(ecg_BCS, None, seeds(2, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["dropout", "activation_dropout", "dropout_input"])
def test_each_setting_drops_by_the_seeds_given(name):
    off = ModelConfig(activation_dropout=0.0)
    model = build_model(TINY, 1, dataclasses.replace(off, **{name: 0.3})).train()
    ecg_BCS, plain = torch.randn(2, 12, 500), build_model(TINY, 1, off)
    logits = model(ecg_BCS, None, seeds(2))
    assert not torch.equal(logits, plain(ecg_BCS))
    assert torch.equal(logits, model(ecg_BCS, None, seeds(2)))
    assert torch.equal(model.eval()(ecg_BCS, None, seeds(2)), plain(ecg_BCS))


def test_no_two_dropouts_of_a_model_have_the_same_mask():
    model = build_model(TINY, 1, dataclasses.replace(EVERYWHERE, attention_dropout=0.2)).train()
    masks = []
    for module in model.modules():
        if isinstance(module, RecordDropout):
            module.register_forward_hook(
                lambda module, inputs, output: masks.append(
                    dropped(inputs[1], 0.1, module.stream, (31, 257))
                )
            )
    model(torch.randn(16, 12, 500), None, torch.arange(16))
    assert len(masks) == 2 * 4 + 3
    pairs = itertools.combinations(masks, 2)
    assert all(deviation(first, second) < 4.5 for first, second in pairs)
    assert not any("dropout" in name for name in model.state_dict())


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_fraction_dropped_is_p(p):
    mask = dropped(seeds(32), p)
    assert abs(mask.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / mask.numel())


def test_counts_per_token_column_and_record_spread_as_binomial_counts_do():
    mask_BTD = dropped(seeds(64), shape=(100, 512)).double()
    for axes in ((2,), (0, 1), (1, 2)):
        rates = mask_BTD.mean(axes)
        expected = 0.1 * 0.9 / (mask_BTD.numel() / rates.numel())
        assert abs(rates.var().item() / expected - 1) < 4 * math.sqrt(2 / rates.numel())


def test_masks_of_neighbours_records_streams_and_steps_are_unrelated():
    mask = dropped(seeds(32))
    for lag in (1, 2, 3, 8):
        assert deviation(mask[..., lag:], mask[..., :-lag]) < 4
        assert deviation(mask[:, lag:], mask[:, :-lag]) < 4
        assert deviation(mask[lag:], mask[:-lag]) < 4
    assert deviation(mask, dropped(seeds(32), stream=2)) < 4
    assert deviation(mask, dropped(seeds(32, seed=1))) < 4
    counted = dropped(torch.arange(32))  # seeds that are not random numbers
    assert deviation(counted[1:], counted[:-1]) < 4


def test_no_two_columns_are_dropped_together():
    mask_ND = dropped(seeds(64), shape=(156, 768)).flatten(0, 1).double()
    z_ND = (mask_ND - 0.1) / 0.3
    size_DD = (z_ND.T @ z_ND / len(z_ND) - torch.eye(768)).abs() * math.sqrt(len(z_ND))
    size_DD.fill_diagonal_(0)
    assert size_DD.max() < 6.5  # of 294,528 pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_elements_are_scaled_in_their_dtype_and_so_is_the_gradient(dtype):
    dropout, x_BTD = RecordDropout(0.2, 1), torch.randn(3, 5, 7).to(dtype).requires_grad_()
    out_BTD = dropout(x_BTD, token_seeds(seeds(3), 5))
    out_BTD.sum().backward()
    is_kept = out_BTD != 0
    assert out_BTD.dtype == dtype
    assert torch.equal(out_BTD, torch.where(is_kept, x_BTD * 1.25, 0.0))
    assert torch.equal(x_BTD.grad, is_kept * torch.tensor(1.25, dtype=dtype))


def test_without_seeds_torchs_generator_decides_and_evaluation_drops_nothing():
    dropout, x_BTD = RecordDropout(0.5, 1), torch.ones(2, 3, 64)
    torch.manual_seed(0)
    first = dropout(x_BTD)
    torch.manual_seed(0)
    assert torch.equal(first, torch.nn.functional.dropout(x_BTD, 0.5))
    assert torch.equal(dropout.eval()(x_BTD, token_seeds(seeds(2), 3)), x_BTD)


@pytest.mark.parametrize("p", [0.0, 1 - 2**-53])
def test_both_ends_of_the_range_work(p):
    assert dropped(seeds(2), p).double().mean() == round(p)
