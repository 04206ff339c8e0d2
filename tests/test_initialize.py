"""From a checkpoint to a model ready to train: heads, freezing, seeds, the report."""

import json

import pytest
import torch
from conftest import FIXTURES

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.losses import loss_sum
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.model.transformer import ModelConfig
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights import load_model
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.initialize import initialize
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.weights.settings import InitConfig

BASE, AFIB = str(FIXTURES / "tiny_base_ssl.pt"), str(FIXTURES / "tiny_wcr_afib_5y.pt")
TINY = ModelConfig(
    encoder_layers=2,
    encoder_embed_dim=48,
    encoder_ffn_embed_dim=96,
    encoder_attention_heads=4,
    conv_feature_layers="[(16, 2, 2)] * 4",
    conv_pos=8,
    conv_pos_groups=4,
)


def start(checkpoint=None, head="auto", freeze="auto", seed=0, labels=("af",)):
    config = ModelConfig() if checkpoint else TINY
    init = InitConfig(checkpoint=checkpoint or "random", head=head)
    return initialize(init, config, len(labels), list(labels), freeze, seed)


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed_by_one_step(model):
    before = copy_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    ecg_BCS = torch.randn(4, 12, 500, generator=torch.Generator().manual_seed(0))
    loss_sum(model(ecg_BCS), torch.tensor([[0.0], [1.0], [1.0], [0.0]]), LossConfig()).backward()
    optimizer.step()
    return {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}


STRATEGIES = {
    "ssl_new_head": ({"checkpoint": BASE}, "new", "stem"),
    "afib_keep_head": ({"checkpoint": AFIB, "head": "keep"}, "keep", "stem"),
    "afib_reset_head": ({"checkpoint": AFIB, "head": "new"}, "new", "stem"),
    "linear_probe": ({"checkpoint": BASE, "freeze": "backbone"}, "new", "backbone"),
    "everything": ({"checkpoint": AFIB, "freeze": "none"}, "keep", "none"),
    "random": ({}, "new", "none"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_step_changes_exactly_the_tensors_that_a_strategy_trains(strategy):
    settings, head, frozen = STRATEGIES[strategy]
    initialized = start(**settings)
    frozen_prefix = {
        "none": "nothing",
        "stem": "backbone.feature_extractor.",
        "backbone": "backbone.",
    }[frozen]
    names = initialized.model.state_dict().keys()
    expected = {name for name in names if not name.startswith(frozen_prefix)}
    assert changed_by_one_step(initialized.model) == expected
    assert initialized.report["head"]["taken"] == head
    assert initialized.report["freeze"]["taken"] == frozen


@pytest.mark.parametrize("strategy", ["ssl_new_head", "afib_keep_head", "afib_reset_head"])
def test_loaded_weights_equal_the_files_bit_for_bit(strategy):
    settings, head, _ = STRATEGIES[strategy]
    initialized = start(**settings)
    file = read_checkpoint(settings["checkpoint"]).parameters()
    for name, tensor in initialized.model.state_dict().items():
        if head == "keep" or not name.startswith("head."):
            assert torch.equal(tensor, file[name].to_torch())
    if "head.weight" in file:
        kept = torch.equal(initialized.model.head.weight, file["head.weight"].to_torch())
        assert kept == (head == "keep")


def test_a_fresh_head_depends_on_the_seed_and_not_on_the_start():
    heads = []
    for settings in ({"checkpoint": BASE}, {"checkpoint": AFIB, "head": "new"}, {}):
        torch.rand(len(heads) + 1)  # the global state must not matter
        heads.append(start(**settings, seed=7).model.head.weight)
    assert all(torch.equal(heads[0], head) for head in heads)
    assert not torch.equal(heads[0], start(BASE, seed=8).model.head.weight)
    assert torch.equal(heads[0], load_model(BASE, num_labels=1, seed=7).head.weight)
    assert heads[0].abs().max() <= (6 / 49) ** 0.5
    assert not start(BASE).model.head.bias.any()


def test_torchs_random_state_is_left_alone():
    state = torch.get_rng_state()
    start(BASE), start(AFIB), start()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": BASE, "head": "keep"}, "has no head; use init.head=new"),
        ({"head": "keep"}, "random weights have no head"),
        ({"checkpoint": AFIB, "labels": ("af", "acs")}, "has 1 labels, this run has 2 (af, acs)"),
        ({"checkpoint": AFIB, "head": "keep", "labels": ("af", "acs")}, "use init.head=new"),
        ({"checkpoint": AFIB, "head": "reset"}, "init.head must be one of auto, keep, new"),
        ({"checkpoint": AFIB, "freeze": "head"}, "train.freeze must be one of auto, none, stem"),
    ],
)
def test_a_setting_that_does_not_fit_the_file_is_an_error_with_advice(settings, message):
    with pytest.raises(ValueError, match=r"init|train") as error:
        start(**settings)
    assert message in str(error.value)


def test_a_new_head_may_have_any_number_of_labels():
    model = start(AFIB, head="new", labels=("af", "acs", "lvef")).model
    assert model(torch.randn(2, 12, 500)).shape == (2, 3)


def test_an_explicit_size_that_contradicts_the_file_is_refused():
    init = InitConfig(checkpoint=BASE)
    with pytest.raises(ValueError, match=r"model.encoder_layers=6, .* have 2; leave"):
        initialize(init, ModelConfig(encoder_layers=6), 1, ["af"], "auto", 0)


def test_the_report_accounts_for_every_tensor_on_both_sides():
    initialized = start(AFIB, head="new")
    report = json.loads(json.dumps(initialized.report))
    state = initialized.model.state_dict()
    assert report["parameters"].keys() == state.keys()
    file = read_checkpoint(AFIB).tensors.keys()
    taken = {p["file_key"] for p in report["parameters"].values() if p["origin"] == "loaded"}
    assert taken | report["ignored"].keys() == file
    assert report["ignored"] == {"proj.weight": "the head is new", "proj.bias": "the head is new"}
    assert report["parameters"]["head.weight"]["origin"] == "fresh"
    stem = report["parameters"]["backbone.feature_extractor.conv_layers.0.0.weight"]
    assert stem["origin"] == "loaded"
    assert not stem["trained"]
    counts = {"tensors_loaded": 47, "tensors_fresh": 2, "tensors_ignored": 2, "tensors_frozen": 6}
    assert counts.items() <= report["counts"].items()
    assert report["checkpoint"]["sha256"] == sha256_of(AFIB)


def test_the_signal_of_a_foreign_file_is_assumed_and_random_weights_have_none():
    foreign, random = start(BASE), start()
    assert foreign.signal == SignalSpec()
    assert foreign.report["signal"]["assumed"]
    assert random.signal is None
    assert not random.report["signal"]["assumed"]


def test_a_signal_with_another_number_of_leads_does_not_fit():
    init = InitConfig(checkpoint=BASE, signal=SignalSpec(leads=["I", "II"]))
    with pytest.raises(
        ValueError, match=r"init.signal.leads has 2 leads, the weights of .* take 12"
    ):
        initialize(init, ModelConfig(), 1, ["af"], "auto", 0)


def test_our_file_provides_its_signal_and_its_label_names(tmp_path):
    first, signal = start(AFIB), SignalSpec(sample_rate_hz=500)
    save_model(tmp_path / "model.safetensors", first.model, first.architecture, ["af"], signal)
    again = start(str(tmp_path))  # a run's best/
    assert again.signal == signal
    assert not again.report["signal"]["assumed"]
    assert again.report["head"]["taken"] == "keep"
    assert again.report["checkpoint"]["kind"] == "hpc_ecg"
    with pytest.raises(ValueError, match=r"predicts af, this run has acs; use init.head=new"):
        start(str(tmp_path), labels=("acs",))
    assert start(str(tmp_path), head="new", labels=("acs",)).report["counts"]["tensors_fresh"] == 2
