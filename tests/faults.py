"""Inject faults into a run from inside, at an exact step, and start the processes for that."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ranks import Ended, Fork, become, end_on_ranks

from hpc_ecg import log as log_module
from hpc_ecg.cli import main
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.distributed import failures, stop_signals, watchdog
from hpc_ecg.model.layers import EncoderLayer
from hpc_ecg.sweep import slurm_runs
from hpc_ecg.training import engine
from hpc_ecg.training.engine import Engine


def finetune_on_ranks(
    folder: Path, words: Sequence[Sequence[str]], *harms: Callable[[], None], patience_s: float = 60
) -> Ended:
    """Run `hpc-ecg finetune WORDS[rank]` on each rank."""
    arguments = [["finetune", *own] for own in words]
    return end_on_ranks(folder, arguments, *harms, patience_s=patience_s)


def sweep_in_a_fork(log: Path, words: Sequence[str]) -> Any:
    """Start `hpc-ecg sweep WORDS` in a process that polls the queue often; returns the process."""
    arguments = log, dict(os.environ), words
    process = Fork(target=_sweep, args=arguments, daemon=True)
    process.start()
    return process


def _sweep(log: Path, environment: dict[str, str], words: Sequence[str]) -> None:
    become(log, environment)
    slurm_runs.POLL_S, slurm_runs.MAX_POLL_S, slurm_runs.LOST_AFTER_S = 0.5, 2.0, 3.0
    slurm_runs.RETRY_AFTER_S, log_module.EVERY_S = (1,), 1.0
    sys.exit(main(["sweep", *words]))


def at_step(step: int, rank: int, action: Callable[[], object]) -> None:
    """Call `action` on this rank before the step (counted from 0)."""
    real = Engine.take_step

    def take_step(self, batch, *arguments, **named):
        if (batch.step, self.rank) == (step, rank):
            action()
        return real(self, batch, *arguments, **named)

    Engine.take_step = take_step


def refuse() -> None:
    raise ValueError("a planted mistake")


def read_failures_late(rank: int, seconds: float) -> None:
    """This rank takes its time between losing a peer and asking why."""
    real = failures._Exchange.read

    def read(self):
        if self._ranks.rank == rank:
            time.sleep(seconds)
        return real(self)

    failures._Exchange.read = read


def get(number: int) -> None:
    """Receive a signal, as if another process had sent it."""
    os.kill(os.getpid(), number)
    signal.sigpending()  # Python has run its handler when this returns


def fill_disk(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def look_often() -> None:
    """Check for request files (STOP, SAVE) at every step."""
    stop_signals.POLL_FILES_EVERY_S = 0.0


def hang_in_reading(rank: int) -> None:
    watchdog.GRACE_S = 2
    real = Dataset.read

    def read(self, positions, out=None):
        if os.environ["RANK"] == str(rank) and torch.distributed.is_initialized():
            time.sleep(1000)
        return real(self, positions, out)

    Dataset.read = read


def wait_for_what_never_comes() -> None:
    watchdog.GRACE_S = 2
    torch.distributed.recv(torch.zeros(1), src=0, tag=77)


def spoil_inputs(steps: Sequence[int], rank: int) -> None:
    """Turn the inputs of the model into NaN in these steps, only on this rank."""
    real = engine.model_inputs

    def model_inputs(micro, device, millivolts_per_count, change=None):
        ecg, *rest = real(micro, device, millivolts_per_count, change)
        if change and change.step in steps and os.environ["RANK"] == str(rank):
            ecg = ecg * float("nan")
        return ecg, *rest

    engine.model_inputs = model_inputs


def compute_wrongly(part: str) -> None:
    """Flip a bit, once, in what an encoder layer returns or in the gradient of it."""
    real = EncoderLayer.forward

    def flip(tensor):
        wrong = tensor.detach().clone()
        wrong.view(torch.int32).flatten()[7] ^= 1 << 12
        return wrong + (tensor - tensor.detach())

    def forward(self, *arguments, **named):
        EncoderLayer.forward = real
        out = real(self, *arguments, **named)
        if part == "output":
            return flip(out)
        out.register_hook(flip)
        return out

    EncoderLayer.forward = forward


def jump_a_day_back_and_forth() -> None:
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + 86400 * (calls[0] % 3 - 1)

    time.time = jumping
