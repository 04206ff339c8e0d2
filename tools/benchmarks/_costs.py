"""What a run costs besides its steps: a second process, and saving and loading."""

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


def words_of(folder: Path, name: str, architecture: Architecture, steps: int) -> list[str]:
    """Of a run that logs as by default, and validates and saves at its end alone."""
    sizes = architecture_to_settings(architecture).items()
    return [
        f"run_dir={folder / name}",
        f"data.shards={folder / 'shards'}",
        f"data.batch_size={BATCH}",
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
    rates: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    for repeat in range(repeats):
        rates["one"].append(sum(_rates(folder, f"one-{repeat}", [1])))
        rates["two"].append(sum(_rates(folder, f"two-{repeat}", [2])))
        rates["apart"].append(sum(_rates(folder, f"apart-{repeat}", [1, 1])))
    ratios = {
        name: median(r / one for r, one in zip(found, rates["one"], strict=True))
        for name, found in rates.items()
    }
    return {
        "one_process_ecg_per_s": median(rates["one"]),
        "two_processes_ecg_per_s": median(rates["two"]),
        "weak_scaling_1_to_2": ratios["two"],
        "weak_scaling_limit": ratios["apart"],
    }


def _rates(folder: Path, name: str, worlds: list[int]) -> list[float]:
    """ECG/s of runs at the same time, of so many processes each."""
    runs = [f"{name}-{number}" for number in range(len(worlds))]
    processes = []
    for run, world in zip(runs, worlds, strict=True):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        words = [*words_of(folder, run, SMALL, 120), "engine.cpu_threads=1"]
        command = [sys.executable, "-m", "hpc_ecg", "finetune", *words]
        command.append(f"data.batch_size={BATCH * world}")
        for rank in range(world):
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(
                command, env=os.environ | place, stdout=quiet, stderr=subprocess.PIPE, text=True
            )
            processes.append(process)
    for process in processes:
        said = process.communicate()[1]
        if process.returncode:
            raise ValueError(f"a run in {folder} failed: {said.strip().splitlines()[-1]}")
    return [_rate(folder / run) for run in runs]


def _rate(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["ecg_per_s"] for line in lines if line["event"] == "step"]
    return median(rates[1:])


# Saving


def saving(folder: Path, repeats: int) -> dict[str, float]:
    """Weights and both moments of the published model; loading includes the digests' check."""
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
        found = newest_checkpoint(folder / "saved")
        assert found
        load_checkpoint(found[0], model)
        seconds["save"].append(saved - began)
        seconds["load"].append(time.perf_counter() - saved)
        size = sum(file.stat().st_size for file in found[0].iterdir())
    return {
        "save_seconds": median(seconds["save"]),
        "load_seconds": median(seconds["load"]),
        "checkpoint_mb": size / 1e6,
    }
