"""The engine: what it promises about processes, precision and devices."""

import json
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
from conftest import words_for
from gpu_runs import allow_fp16_on_a_cpu, nan_at_step

from hpc_ecg.config.load import load_config
from hpc_ecg.distributed import process_group
from hpc_ecg.distributed.ranks import Ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig

NO_DROPOUT = "model.activation_dropout=0"


def curve(shards, run_dir, *more) -> list[float]:
    folder = finetune(
        load_config(FinetuneConfig, [], words_for(shards, run_dir, NO_DROPOUT, *more))
    )
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.fixture
def engine():
    engine = Engine(EngineConfig(device="cpu"))
    yield engine
    engine.close()


@pytest.mark.slow
def test_bf16_stays_close_to_fp32(shards, tmp_path):
    full = curve(shards, tmp_path / "fp32", "optim.lr=0.0002")
    half = curve(shards, tmp_path / "bf16", "optim.lr=0.0002", "engine.precision=bf16")
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_both_kinds_of_attention_give_the_same_curve(shards, tmp_path):
    fused = curve(shards, tmp_path / "sdpa")
    plain = curve(shards, tmp_path / "math", "model.attention=math")
    np.testing.assert_allclose(plain, fused, rtol=1e-4)


def test_what_the_first_process_finds_wrong_is_wrong_for_all(engine):
    def refuse():
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        engine.run_on_rank_zero(refuse)
    assert engine.run_on_rank_zero(lambda: 3) == 3


def test_a_world_that_accelerate_does_not_see_is_an_error(monkeypatch):
    real = process_group.Accelerator

    class Blind(real):
        num_processes = 3

    monkeypatch.setattr(process_group, "Accelerator", Blind)
    with pytest.raises(RuntimeError, match="promises 1 processes, but Accelerate runs with 3"):
        Engine(EngineConfig(device="cpu"))


def test_half_a_launch_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK and LOCAL_RANK not set"):
        Engine(EngineConfig(device="cpu"))


@pytest.mark.slow
def test_a_step_that_is_skipped_in_fp16_is_known_to_the_loss_scale(shards, tmp_path, monkeypatch):
    nan_at_step(monkeypatch, 3)
    allow_fp16_on_a_cpu(monkeypatch)
    words = ("engine.precision=fp16", "train.skip_nonfinite=1", "train.max_steps=5")
    losses = curve(shards, tmp_path / "run", *words)
    assert losses[2] is None and all(loss > 0 for loss in losses[:2] + losses[3:])
    saved = json.loads((tmp_path / "run/checkpoints/step-0000005/progress.json").read_text())
    assert saved["progress"]["skipped"] == 1
    assert saved["progress"]["scaler"]["scale"] == 2.0**15, "half of what it began with"


@pytest.mark.parametrize(("visible", "number"), [(1, "0"), (4, "1"), (2, "1")])
def test_a_task_takes_a_gpu_that_it_sees(monkeypatch, tmp_path, visible, number):
    """With --gpus-per-task=1 the second task of a node sees one GPU, and it is number 0."""
    ranks = Ranks(rank=1, local_rank=1, world_size=2, local_world_size=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(process_group, "join_rendezvous", lambda *_: (ranks, None))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    process_group._init_process_group(tmp_path, timedelta(1), on_cpu=False, needs_group=False)
    assert os.environ["LOCAL_RANK"] == number
