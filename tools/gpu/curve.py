"""20 steps of a small model against the same steps on the CPU in fp32."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu.bench import Bench, reason_of
from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.training.finetune import finetune

WORDS = ("optim.lr=0.0002", "train.log_every=1", "data.batch_size=16")


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    bench = Bench(options, "curve")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = _losses(bench, "cpu", "engine.device=cpu", "engine.precision=fp32")
        emit("cpu", {"losses": expected.tolist()})
        for precision in ("fp32", "bf16"):
            try:
                found = _losses(bench, precision, f"engine.precision={precision}")
            except (ValueError, RuntimeError) as error:  # a kernel that is wrong in it
                emit(precision, {UNKNOWN: reason_of(error)})
                continue
            largest = (np.abs(found - expected) / np.abs(expected)).max()
            emit(precision, {"share": float(largest), "losses": found.tolist()})


def _losses(bench: Bench, name: str, *more: str) -> np.ndarray:
    steps = 20 if bench.on_gpu else 3
    run = finetune(bench.config(name, steps, *WORDS, *more, small=True))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["event"] == "step"])
