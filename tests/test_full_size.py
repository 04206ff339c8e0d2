"""Full-size checkpoints under every strategy: each key of the files is accounted for."""

import json
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES

from hpc_ecg.config.load import load_config
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import describe_stages, stages_of
from hpc_ecg.weights import load_model
from hpc_ecg.weights.initialize import initialize
from hpc_ecg.weights.reading import read_checkpoint

FOLDER = Path(__file__).parent.parent / "configs" / "strategies"
NUM_KEYS = {"base_ssl": 215, "wcr_afib_5y": 209}
ALL, STEM = 90_374_017, 399_872  # parameters: in all; of the conv stem
# file, tensors loaded, new, ignored, and parameters that train
EXPECTED = {
    "ssl_new_head": ("base_ssl", 207, 2, 8, ALL - STEM),
    "ssl_linear_probe": ("base_ssl", 207, 2, 8, 769),
    "ssl_probe_then_finetune": ("base_ssl", 207, 2, 8, 769),  # of its first stage
    "afib_keep_head": ("wcr_afib_5y", 209, 0, 0, ALL - STEM),
    "afib_reset_head": ("wcr_afib_5y", 207, 2, 2, ALL - STEM),
    "afib_linear_probe": ("wcr_afib_5y", 207, 2, 2, 769),
    "afib_recalibrate_only": ("wcr_afib_5y", 209, 0, 0, 769),
    "random": (None, 0, 209, 0, ALL),
    "random_frozen_stem": (None, 0, 209, 0, ALL - STEM),
}


def test_every_strategy_is_expected_below():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.slow
def test_full_size_files_are_read_and_fit_the_model(full_size):
    keys = json.loads((FIXTURES / "keys_base_ssl.json").read_text())
    assert list(read_checkpoint(full_size / "base_ssl.pt").tensors) == list(keys)
    model = load_model(full_size / "wcr_afib_5y.pt")
    assert sum(p.numel() for p in model.parameters()) == ALL


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXPECTED)
def test_a_strategy_accounts_for_every_key_at_full_size(full_size, strategy):
    file, loaded, fresh, ignored, trained = EXPECTED[strategy]
    words = [f"files.{name}={full_size / name}.pt" for name in NUM_KEYS]
    words += ["run_dir=r", "data.shards=s"]
    config = load_config(FinetuneConfig, [str(FOLDER / f"{strategy}.yaml")], words)
    stages = stages_of(config.train, config.optim, file is not None)
    freeze = stages[0].freeze
    start = initialize(config.init, config.model, 1, ["af"], freeze, config.seed)
    counts = start.report["counts"]
    assert counts["parameters"] == ALL
    seen = tuple(counts[f"tensors_{what}"] for what in ("loaded", "fresh", "ignored"))
    assert (*seen, counts["parameters_trained"]) == (loaded, fresh, ignored, trained)
    if file:
        taken = {p["file_key"] for p in start.report["parameters"].values()} - {None}
        keys = json.loads((FIXTURES / f"keys_{file}.json").read_text())
        assert taken | start.report["ignored"].keys() == keys.keys()
        assert len(keys) == NUM_KEYS[file]
        _check_equal(start, full_size / f"{file}.pt")
    describe_stages(start, stages)
    assert list(start.report["stages"]) == [stage.name for stage in stages]


def _check_equal(start, path) -> None:
    """The loaded tensors are those of the file, as torch reads it."""
    content = torch.load(path, weights_only=True, mmap=True)["model"]
    parameters = dict(start.model.named_parameters())
    for name, about in start.report["parameters"].items():
        if about["file_key"]:
            assert torch.equal(parameters[name], content[about["file_key"]])


@pytest.mark.slow
def test_full_size_files_are_read_with_all_their_keys(full_size):
    for file, number in NUM_KEYS.items():
        checkpoint = read_checkpoint(full_size / f"{file}.pt")
        keys = json.loads((FIXTURES / f"keys_{file}.json").read_text())
        assert {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()} == keys
        assert list(checkpoint.tensors) == list(keys) and len(keys) == number
