"""What the tests of a GPU share: runs, their curves, and what a rehearsal leaves out."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import words_for
from test_finetune import StoppedError, stop_at_step

from hpc_ecg.config.load import load_config
from hpc_ecg.distributed import process_group
from hpc_ecg.training import engine as engine_module
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

CPU = torch.device("cpu")
SLOWLY = "optim.lr=0.0002"
"""A rate at which rounding stays small over the steps of a test."""


def needs_cuda(device: torch.device, why: str) -> None:
    """Skip in a rehearsal what a CPU cannot do."""
    if device.type == "cpu":
        pytest.skip(f"not in a rehearsal: {why}")


class ScalingAccelerator(process_group.Accelerator):
    """Accelerate has no loss scale on a CPU, where torch has one."""

    def __init__(self, **kinds):
        super().__init__(**kinds)
        if self.state.mixed_precision == "fp16":
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu")


def allow_fp16_on_a_cpu(patch: pytest.MonkeyPatch) -> None:
    """Refused otherwise, since it is slow there; the arithmetic and the loss scale work."""
    real = engine_module.choose_hardware
    patch.setattr(process_group, "Accelerator", ScalingAccelerator)
    patch.setattr(
        engine_module,
        "choose_hardware",
        lambda config: (True, "fp16") if config.precision == "fp16" else real(config),
    )


def nan_at_step(patch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Make the loss of the n-th step NaN; returns a list to clear before another run."""
    real, seen = Engine.take_step, []

    def take_step(self, batch, loss_sum, *arguments, **named):
        seen.append(1)
        factor = torch.nan if len(seen) == step else 1.0
        return real(self, batch, lambda *x: loss_sum(*x) * factor, *arguments, **named)

    patch.setattr(Engine, "take_step", take_step)
    return seen


def config_of(shards: Path, run_dir: Path, device: torch.device, *more: str) -> FinetuneConfig:
    words = words_for(shards, run_dir, f"engine.device={device.type}", *more)
    return load_config(FinetuneConfig, [], words)


def start(shards: Path, run_dir: Path, device: torch.device, *more: str) -> RunFolder:
    """A run of two epochs of 4 steps on the device."""
    return finetune(config_of(shards, run_dir, device, *more))


def events(folder: RunFolder, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def curve(folder: RunFolder, *names: str) -> np.ndarray:
    """`names`, or the loss, of each step; of one that was taken twice, the second."""
    of_step = {line["step"]: line for line in events(folder, "step")}
    return np.array([[of_step[k][name] for name in names or ["loss"]] for k in sorted(of_step)])


def start_and_stop(shards: Path, run_dir: Path, device: torch.device, *more: str) -> None:
    """Six steps of a run that saves after every second one, and dies."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at_step(patch, 6)
        with pytest.raises(StoppedError):
            start(shards, run_dir, device, *more)


def held_bytes(device: torch.device) -> int:
    """Memory of the tensors that are alive: torch's count on a GPU, ours on a CPU."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to that of `expected`."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())
