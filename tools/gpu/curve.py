"""20 steps of a small model against the same steps on the CPU in fp32."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu.bench import Bench, make_bench
from gpu.parts import Clock, Emit
from gpu.verdicts import CURVES
from hpc_ecg.training.finetune import finetune

STEPS = 20
WORDS = ("optim.lr=0.0002", "train.log_every=1", "data.batch_size=16")


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    with make_bench(options) as bench, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = _losses(bench, "cpu", "engine.device=cpu", "engine.precision=fp32")
        emit("cpu", {"losses": expected.tolist()})
        for precision in CURVES:
            found = _losses(bench, precision, f"engine.precision={precision}")
            largest = float((np.abs(found - expected) / np.abs(expected)).max())
            emit(precision, {"largest": largest, "losses": found.tolist()})


def _losses(bench: Bench, name: str, *more: str) -> np.ndarray:
    run = finetune(bench.config(f"curve-{name}", STEPS, *WORDS, *more, small=True))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["event"] == "step"])
