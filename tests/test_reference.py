"""configs/reference.yaml against the original trainer: its 20-step runs, through our own loop.

The arrays are what the original program logged and ended with (all dropout 0, tiny model, CPU).
`self_attn.k_proj.bias` is left out: its true gradient is 0 (softmax does not see it), so that Adam
makes steps of rounding noise in both programs, without effect on the output.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES
from ranks import run_on_ranks
from safetensors.torch import load_file

from hpc_ecg.config.load import load_config
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.format import FORMAT, ShardWriter, key_of_row, shard_name
from hpc_ecg.training.checkpoint import complete_checkpoints
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.mapping import map_names

pytestmark = pytest.mark.slow  # three runs of 20 steps

REFERENCE = Path(__file__).parent.parent / "configs" / "reference.yaml"
RUNS = {
    "bce_lr5e-5": [],  # the recipe itself
    "bce_lr1e-3": ["optim.lr=1e-3"],
    "bce_lr1e-3_linear": ["optim.lr=1e-3", "train.freeze=backbone"],
}


@pytest.fixture(scope="module")
def counts(tmp_path_factory) -> Path:
    """The recordings that the original trained on (int16, 4.88 µV a count) as a set of shards."""
    data, out = np.load(FIXTURES / "traj_data.npz"), tmp_path_factory.mktemp("counts")
    arrays = np.concatenate([data["x_train"], data["x_valid"]]).transpose(0, 2, 1)
    labels = np.concatenate([data["y_train"], data["y_valid"]])[:, 0]
    splits = ["train"] * len(data["x_train"]) + ["valid"] * len(data["x_valid"])
    signal = SignalSpec()
    path = out / shard_name(0)
    with path.open("wb") as stream, ShardWriter(stream, signal, 4.88) as writer:
        keys = [key_of_row(row) for row in range(len(arrays))]
        pairs = zip(keys, arrays, strict=True)
        offsets = [writer.write(key, np.ascontiguousarray(array)) for key, array in pairs]
    index = pd.DataFrame({"key": keys, "shard": 0, "offset": offsets})
    index["record"], index["patient"], index["split"] = keys, keys, splits
    index["label.af"] = labels.astype(float)
    index["samples"], index["amplitude_mv"], index["flags"] = 2500, 1.0, ""
    index["sha256"] = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    index.to_parquet(out / "index.parquet")
    description = {
        "format": FORMAT,
        "signal": asdict(signal),
        "microvolts_per_count": 4.88,
        "labels": ["af"],
        "records": {split: splits.count(split) for split in ("train", "valid", "test")},
        "shards": [
            {
                "name": path.name,
                "records": len(index),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        ],
        "index_sha256": sha256_of(out / "index.parquet"),
    }
    (out / "dataset.json").write_text(json.dumps(description))
    return out


def start_of(log, path: Path) -> Path:
    """The original's initial weights, head included, as a file in its layout."""
    content = torch.load(FIXTURES / "tiny_wcr_afib_5y.pt", weights_only=True)
    start = {name[5:]: torch.from_numpy(log[name]) for name in log if name.startswith("init/")}
    assert start.keys() == content["model"].keys()
    torch.save({"cfg": content["cfg"], "model": start}, path)
    return path


def words_for(log, counts, tmp_path, run):
    start = start_of(log, tmp_path / "start.pt")
    words = [f"init.checkpoint={start}", f"data.shards={counts}", f"run_dir={tmp_path / 'run'}"]
    words += ["data.batch_size=8", "model.activation_dropout=0", "train.max_epochs=5"]
    return [*words, "train.log_every=1", "engine.cpu_threads=1", *RUNS[run]]


def events(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def check_against(log, folder: Path) -> None:
    steps = events(folder, "step")
    assert len(steps) == len(log["loss"]) == 20
    sizes = log["sample_size"]
    ours = np.array([step["loss"] for step in steps]) * sizes  # the original logs the sum
    np.testing.assert_allclose(ours, log["loss"], rtol=0, atol=5e-6)
    norms = [step["grad_norm"] for step in steps]
    np.testing.assert_allclose(norms, log["gnorm"], rtol=1e-5)
    assert [step["lr"] for step in steps] == log["lr"].tolist()
    validation = [round(line["loss"] / math.log(2), 3) for line in events(folder, "eval")]
    assert validation == log["valid_loss"].tolist()
    final = load_file(complete_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")
    theirs = {name[6:]: log[name] for name in log if name.startswith("final/")}
    names = map_names(theirs, "classifier")
    for name, tensor in final.items():
        if not name.endswith("k_proj.bias"):
            np.testing.assert_allclose(tensor, theirs[names[name]], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("run", RUNS)
def test_the_runs_of_the_original_trainer_are_repeated_step_by_step(counts, tmp_path, run):
    log = np.load(FIXTURES / f"traj_{run}.npz")
    words = words_for(log, counts, tmp_path, run)
    check_against(log, finetune(load_config(FinetuneConfig, [str(REFERENCE)], words)).path)


@pytest.mark.slow
def test_a_probe_without_cached_features_gives_the_originals_run_too(counts, tmp_path):
    run = "bce_lr1e-3_linear"
    log = np.load(FIXTURES / f"traj_{run}.npz")
    words = [*words_for(log, counts, tmp_path, run), "train.feature_cache=null"]
    check_against(log, finetune(load_config(FinetuneConfig, [str(REFERENCE)], words)).path)


@pytest.mark.slow
def test_two_processes_repeat_the_originals_run(counts, tmp_path):
    run = "bce_lr5e-5"
    log = np.load(FIXTURES / f"traj_{run}.npz")
    words = words_for(log, counts, tmp_path, run)
    run_on_ranks(2, ["finetune", str(REFERENCE), *words])
    check_against(log, tmp_path / "run")


@pytest.mark.slow
def test_another_epsilon_is_detected(counts, tmp_path):
    """The tests above can fail: with epsilon where torch puts it, the weights end 4e-4 apart."""
    log = np.load(FIXTURES / "traj_bce_lr1e-3.npz")
    words = words_for(log, counts, tmp_path, "bce_lr1e-3")
    words += ["optim.eps_before_correction=false"]
    folder = finetune(load_config(FinetuneConfig, [str(REFERENCE)], words))
    with pytest.raises(AssertionError):
        check_against(log, folder.path)
