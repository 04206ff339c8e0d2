"""What a run can be asked for gives on a GPU what it gives on a CPU."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, reseal
from gpu_runs import CPU, SLOWLY, curve, needs_cuda, start

from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.model.kernels import check_kernels
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.safe_reading import read_json

pytestmark = pytest.mark.gpu
FP32 = ("engine.precision=fp32", SLOWLY)
PATHS = {
    "map": (),
    "stream": ("data.read=stream", "data.stream_lanes=2"),
    "staged": ("data.stage_dir=STAGE",),
    "features": ("train.freeze=backbone",),
    "no cache": ("train.freeze=backbone", "train.feature_cache=null"),
    "augmented": ("augment.noise_mv=0.1", "augment.lead_mask=0.2", "augment.shift_s=0.5"),
    "pieces": ("engine.micro_batch_size=5",),
    "checkpointing": ("engine.activation_checkpointing=true",),
    "ema": ("train.average=ema",),
    "swa": ("train.average=swa", "train.swa_start=0.5"),
    "stages": ("train.stages.probe.freeze=backbone", "train.stages.all.freeze=stem"),
    "layers": ("train.freeze_layers=1", "optim.layer_decay=0.7"),
    "balanced": ("data.sampling=balanced", "loss.pos_weight=[2.0]"),
    "calibrated": ("train.calibration=temperature",),
    "dropout": ("model.dropout=0.1", "model.attention_dropout=0.1", "model.final_dropout=0.1"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_setting_has_the_curve_and_predictions_of_the_cpu(gpu, shards, tmp_path, name):
    folders = []
    for device in (gpu, CPU):
        place = tmp_path / f"run-{len(folders)}"
        Path(f"{place}-staged").mkdir()
        words = [word.replace("STAGE", f"{place}-staged") for word in PATHS[name]]
        words.append(f"train.feature_cache={place}-features")
        words += PATHS[name][1:] if name == "no cache" else ()
        folders.append(start(shards, place, device, *FP32, "train.max_epochs=1", *words))
    losses = [curve(folder) for folder in folders]
    assert len(losses[0]) == len(losses[1]) > 0
    np.testing.assert_allclose(*losses, rtol=1e-3)
    ours, theirs = (read_predictions(f.predictions / "valid.parquet") for f in folders)
    assert list(ours.record_N) == list(theirs.record_N)
    np.testing.assert_allclose(ours.logit_NK, theirs.logit_NK, rtol=0.01, atol=0.005)
    scores = [read_json(folder.finished)["best_step"] for folder in folders]
    assert scores[0] == scores[1]


def test_padded_records_have_the_curve_of_the_cpu(gpu, shards, tmp_path):
    own = shutil.copytree(shards, tmp_path / "shards")
    index = pd.read_parquet(own / "index.parquet")
    index["samples"] = np.where(np.arange(len(index)) % 3 == 0, 1700, 2500)
    reseal(own, index)
    folders = [start(own, tmp_path / d.type / "run", d, *FP32) for d in dict.fromkeys([gpu, CPU])]
    whole = curve(start(shards, tmp_path / "whole", gpu, *FP32))
    assert not np.allclose(curve(folders[0]), whole, rtol=1e-4), "the padding was masked"
    for folder in folders:
        np.testing.assert_allclose(curve(folder), curve(folders[-1]), rtol=1e-3)


# torch.compile and activation checkpointing


@pytest.fixture
def fresh_compiler(gpu):
    if gpu.type == "cuda":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_layers_pass_the_check_before_a_run(gpu, fresh_compiler):
    model = build_model(TINY, 1, ModelConfig(), seed=1)
    line = check_kernels(model, 500, gpu, torch.bfloat16, False, compiled=True, backward=True)
    assert line.startswith("kernels in")


@pytest.mark.slow
def test_a_compiled_run_has_the_curve_of_the_cpu(gpu, fresh_compiler, shards, tmp_path):
    words = (*FP32, "train.max_steps=3")
    compiled = start(shards, tmp_path / "run", gpu, *words, "engine.compile=true")
    eager = start(shards, tmp_path / "cpu", CPU, *words)
    np.testing.assert_allclose(curve(compiled), curve(eager), rtol=1e-3)


def test_checkpointed_layers_take_less_memory(gpu):
    needs_cuda(gpu, "only a GPU counts its peak")
    peaks = []
    for checkpoints in (False, True):
        model = build_model(TINY, 1, ModelConfig(), seed=1).to(gpu).train()
        model.backbone.encoder.checkpoint_layers = checkpoints
        ecg_BCS, before = torch.randn(64, 12, 2500, device=gpu), torch.cuda.memory_allocated(gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
        model(ecg_BCS, None, torch.arange(64, device=gpu)).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated(gpu) - before)
    assert peaks[1] < 0.8 * peaks[0]
