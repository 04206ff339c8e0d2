"""torch.compile gives the eager numbers, forward and backward, in every kind of batch."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY
from torch._dynamo.utils import counters

from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model

DEEPER = replace(TINY, encoder_layers=3)
EVERYWHERE = ModelConfig(
    dropout=0.1, activation_dropout=0.2, dropout_input=0.1, final_dropout=0.1, attention_dropout=0.1
)
TOLERANCE = 1e-5
"""Largest difference of a logit or gradient, relative to the largest number of its tensor or to
1e-3 if that is above it (gradients of key biases are 0 in truth)."""


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch(size, is_padded):
    generator = torch.Generator().manual_seed(size)
    ecg_BCS = torch.randn(size, 12, 500, generator=generator)
    seeds_B = torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator)
    valid_B1 = torch.randint(200, 500, (size, 1), generator=generator)
    return ecg_BCS, torch.arange(500) >= valid_B1 if is_padded else None, seeds_B


def logits_and_gradients(model, inputs):
    model.zero_grad()
    logits = model(*inputs)
    logits.sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_close(found, expected):
    for ours, eager in zip(found, expected, strict=True):
        assert (ours - eager).abs().max() <= TOLERANCE * max(eager.abs().max(), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_a_compiled_model_gives_the_eager_numbers_from_one_graph_for_all_layers(
    fresh_compiler, checkpoint_layers
):
    eager, compiled = (build_model(DEEPER, 2, EVERYWHERE, seed=1).train() for _ in range(2))
    compiled.backbone.encoder.checkpoint_layers = checkpoint_layers
    compiled.compile()
    kinds = [(8, False), (8, True), (3, False), (1, True)]
    for number, kind in enumerate(kinds, start=1):
        inputs = batch(*kind)
        assert_close(logits_and_gradients(compiled, inputs), logits_and_gradients(eager, inputs))
        assert counters["stats"]["unique_graphs"] == number
    for kind in [(8, False), (5, False), (3, False)]:  # nothing new
        assert_close(
            logits_and_gradients(compiled, batch(*kind)), logits_and_gradients(eager, batch(*kind))
        )
    assert counters["stats"]["unique_graphs"] == len(kinds)
    assert not counters["graph_break"]
    with torch.inference_mode():
        ecg_BCS, mask_BS, _ = batch(4, True)
        for inputs in ((ecg_BCS,), (ecg_BCS, mask_BS)):
            assert_close([compiled.eval()(*inputs)], [eager.eval()(*inputs)])


@pytest.mark.slow
@pytest.mark.parametrize("num_records", [1, 2])
def test_a_compiled_mask_is_the_eager_one(fresh_compiler, num_records):
    dropout, seeds_BT = RecordDropout(0.3, 1), token_seeds(torch.arange(num_records), 31)

    def after_softmax(scores_BHTT):
        weights_BTHT = torch.softmax(scores_BHTT, -1).transpose(1, 2)
        return dropout(weights_BTHT.flatten(2), seeds_BT)

    for function in (after_softmax, lambda x_BHTT: dropout(x_BHTT.flatten(2) * 2, seeds_BT[:, :4])):
        scores_BHTT = torch.randn(num_records, 4, 31, 31)
        eager = function(scores_BHTT)
        assert torch.equal(torch.compile(function)(scores_BHTT) == 0, eager == 0)


@pytest.mark.slow
def test_compiling_raises_torchs_limit_of_graphs():
    model = build_model(DEEPER, 1, ModelConfig())
    model.compile()
    assert torch._dynamo.config.recompile_limit >= 32
    assert not any("_orig_mod" in name for name in model.state_dict())
