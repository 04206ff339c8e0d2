"""What the parts that measure share: shards of noise, settings of runs, and timing on a device.

At full size on a GPU; in a rehearsal a tiny model on the CPU, whose figures mean nothing.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _costs import FULL, SMALL, settings_for

from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.config.load import load_config
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.prepare import PreparedRun, prepare_run
from hpc_ecg.training.settings import FinetuneConfig

BLOCK_S, REPEATS, WARM_UP = 0.3, 5, 3


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device, a folder for runs, and shards of noise in it."""

    device: torch.device
    folder: Path
    batches: tuple[int, ...]
    """Sizes, the one that targets are about first."""
    block: int
    """Steps between two looks at the clock, in a comparison of loops."""
    pairs: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def architecture(self) -> Architecture:
        return FULL if self.on_gpu else SMALL

    def config(self, name: str, steps: int, *more: str, small: bool = False) -> FinetuneConfig:
        """A run that validates and saves only at its end, in bf16 on a GPU."""
        architecture = SMALL if small else self.architecture
        words = settings_for(self.folder, name, architecture, steps)
        words += [f"engine.device={self.device.type}", f"data.batch_size={self.batches[0]}"]
        words += [f"engine.precision={'bf16' if self.on_gpu else 'fp32'}", *more]
        return load_config(FinetuneConfig, [], words)

    @contextmanager
    def prepared(self, *more: str) -> Iterator[tuple[Engine, PreparedRun]]:
        run = prepare_run(self.config("never-started", 1, *more))
        with closing(Engine(run.config.engine)) as engine:
            yield engine, run

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, step: Callable[[], object]) -> float:
        """Median seconds of a step over blocks of steps, after a warm-up."""
        for _ in range(WARM_UP if self.on_gpu else 1):
            step()
        once = self._block_of(step, 1)
        size = max(1, min(math.ceil(BLOCK_S / once), 100)) if self.on_gpu else 1
        repeats = REPEATS if self.on_gpu else 3
        return statistics.median(self._block_of(step, size) for _ in range(repeats))

    def _block_of(self, step: Callable[[], object], size: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(size):
            step()
        self.wait()
        return (time.perf_counter() - began) / size


@contextmanager
def make_bench(options: Mapping[str, Any]) -> Iterator[Bench]:
    device = torch.device("cpu" if options["rehearse"] else "cuda")
    sizes = {"batches": (128, 32, 512), "block": 8, "pairs": 8}
    if options["rehearse"]:
        sizes = {"batches": (4, 2), "block": 2, "pairs": 3}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        write_shards(Path(name), num_train=24 if options["rehearse"] else 1152)
        yield Bench(device=device, folder=Path(name), **sizes)  # type: ignore[arg-type]


def write_shards(folder: Path, num_train: int) -> None:
    """`folder`/shards: records of noise, `num_train` of them for training."""
    rng, rows = np.random.default_rng(0), []
    (folder / "npy").mkdir()
    for number in range(num_train + 16):
        signal_LS = rng.normal(0, 300, (12, 2500)).astype(np.int16)
        np.save(folder / "npy" / f"{number}.npy", signal_LS)
        split = "train" if number < num_train else ("valid", "test")[number % 2]
        rows.append((number, f"{number}.npy", number, number // 2 % 2, split))
    names = ["record", "file", "patient", "af", "split"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "table.csv", index=False)
    command = f"data shard {folder}/table.csv --signals {folder}/npy --out {folder}/shards"
    command += " --label af --patient patient --split split --rate 250 --unit uV --workers 1"
    if hpc_ecg(command.split()) != 0:
        raise ValueError("the shards could not be written")
