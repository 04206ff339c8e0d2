"""Measure what a run costs besides its steps: weak scaling to two processes, saving and loading."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from forks import free_port

from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.training.checkpoint import (
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

FULL, BATCH = Architecture(), 8
SMALL = Architecture(
    encoder_layers=2,
    encoder_embed_dim=48,
    encoder_ffn_embed_dim=96,
    encoder_attention_heads=4,
    conv_feature_layers=((16, 2, 2),) * 4,
    conv_pos=8,
    conv_pos_groups=4,
)


def settings_for(folder: Path, name: str, architecture: Architecture, steps: int) -> list[str]:
    """Settings of a run that logs as by default, but validates and saves only at its end."""
    sizes = architecture_to_settings(architecture).items()
    return [
        f"run_dir={folder / name}",
        f"data.shards={folder / 'shards'}",
        f"data.batch_size={BATCH}",
        "init.checkpoint=random",
        *(f"model.{key}={value}" for key, value in sizes),
        "optim.schedule=constant",
        "optim.warmup_fraction=0",
        "train.best_metric=loss",
        f"train.max_steps={steps}",
        f"train.eval_every={steps}",
        "train.save_every_min=0",
        "engine.device=cpu",
    ]


# Two processes


def weak_scaling(folder: Path, repeats: int) -> dict[str, float]:
    """ECG/s of one process, of two in one run, and of two separate runs at the same time."""
    rates: dict[str, list[float]] = {"one": [], "two": [], "separate": []}
    for repeat in range(repeats):
        rates["one"].append(sum(_rates(folder, f"one-{repeat}", [1])))
        rates["two"].append(sum(_rates(folder, f"two-{repeat}", [2])))
        rates["separate"].append(sum(_rates(folder, f"separate-{repeat}", [1, 1])))
    ratios = {
        name: median(r / one for r, one in zip(measured, rates["one"], strict=True))
        for name, measured in rates.items()
    }
    return {
        "one_process_ecg_per_s": median(rates["one"]),
        "two_processes_ecg_per_s": median(rates["two"]),
        "weak_scaling_1_to_2": ratios["two"],
        "weak_scaling_limit": ratios["separate"],
    }


def _rates(folder: Path, name: str, world_sizes: list[int]) -> list[float]:
    """ECG/s of each of several simultaneous runs with these numbers of processes."""
    runs = [f"{name}-{number}" for number in range(len(world_sizes))]
    processes = []
    for run, world_size in zip(runs, world_sizes, strict=True):
        rank_variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        rank_variables["WORLD_SIZE"] = str(world_size)
        settings = [*settings_for(folder, run, SMALL, 120), "engine.cpu_threads=1"]
        command = [sys.executable, "-m", "hpc_ecg", "finetune", *settings]
        command.append(f"data.batch_size={BATCH * world_size}")
        for rank in range(world_size):
            rank_variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                command,
                env=os.environ | rank_variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
    for process in processes:
        errors = process.communicate()[1]
        if process.returncode:
            raise ValueError(f"a run in {folder} failed: {errors.strip().splitlines()[-1]}")
    return [_rate(folder / run) for run in runs]


def _rate(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["ecg_per_s"] for line in lines if line["event"] == "step"]
    return median(rates[1:])


# Saving


def saving(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds to save and load weights and both moments of the published model. Loading includes
    verifying the digests."""
    model = build_model(FULL, 1, ModelConfig())
    moments = {
        f"{moment}/{name}": torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in model.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    seconds: dict[str, list[float]] = {"save": [], "load": []}
    size = 0
    for repeat in range(repeats):
        began = time.perf_counter()
        save_checkpoint(folder / "saved", Progress(step=repeat), model, moments, keep=1)
        saved = time.perf_counter()
        newest = newest_checkpoint(folder / "saved")
        assert newest
        load_checkpoint(newest[0], model)
        seconds["save"].append(saved - began)
        seconds["load"].append(time.perf_counter() - saved)
        size = sum(file.stat().st_size for file in newest[0].iterdir())
    return {
        "save_seconds": median(seconds["save"]),
        "load_seconds": median(seconds["load"]),
        "checkpoint_mb": size / 1e6,
    }
