"""What the parts that measure share: shards of noise, settings of runs, and timing on a device.

At full size on a GPU; in a rehearsal a tiny model on the CPU, whose figures mean nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from _costs import FULL, SMALL, settings_for

from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.config.load import load_config
from hpc_ecg.distributed.ddp_backend import DDPBackend
from hpc_ecg.training.choose_kernels import kept_kernels
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import PreparedRun, prepare_run
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.try_kernels import try_kernels_of_run

BLOCK_S, REPEATS, WARM_UP = 0.3, 5, 3


class Bench:
    """A device, and shards of noise for it in a folder of its own."""

    def __init__(self, options: Mapping[str, Any], part: str) -> None:
        self.on_gpu = not options["rehearse"]
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.architecture = FULL if self.on_gpu else SMALL
        self.batches = (128, 32, 512) if self.on_gpu else (4, 2)
        self.block, self.pairs = (8, 8) if self.on_gpu else (2, 3)
        self.row_s = 5.0 if self.on_gpu else 0.2  # what a figure is expected to take at most
        self.folder = Path(options["folder"]) / part
        write_shards(self.folder, num_train=1152 if self.on_gpu else 24)

    def config(self, name: str, steps: int, *more: str, small: bool = False) -> FinetuneConfig:
        """A run that validates and saves only at its end, in bf16 on a GPU."""
        words = settings_for(self.folder, name, SMALL if small else self.architecture, steps)
        words += [f"engine.device={self.device.type}", f"data.batch_size={self.batches[0]}"]
        words += [f"engine.precision={'bf16' if self.on_gpu else 'fp32'}", *more]
        return load_config(FinetuneConfig, [], words)

    @contextmanager
    def prepared(self, *more: str) -> Iterator[tuple[Engine, PreparedRun]]:
        run = prepare_run(self.config("never-started", 1, *more))
        with closing(Engine(run.config.engine)) as engine:
            if run.config.engine.kernels == "measure":
                try_kernels_of_run(engine, run)
            else:
                engine.kernels = kept_kernels(run.config, engine.device)
                engine.kernels.apply(run.start.model)
            yield engine, run

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, step: Callable[[], object]) -> float:
        """Median seconds of a step over blocks of steps, after a warm-up."""
        for _ in range(WARM_UP if self.on_gpu else 1):
            step()
        size = min(math.ceil(BLOCK_S / self._block_of(step, 1)), 100) if self.on_gpu else 1
        return median(self._block_of(step, size) for _ in range(REPEATS))

    def _block_of(self, step: Callable[[], object], size: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(size):
            step()
        self.wait()
        return (time.perf_counter() - began) / size


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def start_training(engine: Engine, run: PreparedRun, moments: Any = None) -> DDPBackend:
    optim = run.config.optim
    build = partial(build_optimizer, config=optim, device=engine.device)
    return engine.prepare_training(run.start.model, build, optim.clip_norm, moments)


def write_shards(folder: Path, num_train: int) -> None:
    """`folder`/shards: records of noise, `num_train` of them for training."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(num_train + 16):
        np.save(folder / f"{number}.npy", rng.normal(0, 300, (12, 2500)).astype(np.int16))
        split = "train" if number < num_train else ("valid", "test")[number % 2]
        rows.append((number, f"{number}.npy", number, number // 2 % 2, split))
    names = ["record", "file", "patient", "af", "split"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "table.csv", index=False)
    command = f"data shard {folder}/table.csv --signals {folder} --out {folder}/shards --workers 1"
    command += " --label af --patient patient --split split --rate 250 --unit uV"
    if hpc_ecg(command.split()) != 0:
        raise ValueError("the shards could not be written")
