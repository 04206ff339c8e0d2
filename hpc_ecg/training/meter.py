"""What a run costs: time, ECGs per second, waiting for data, arithmetic done, memory.

Clocks are monotonic: one that is set while a run goes on changes nothing. A step is timed from the
end of the one before; the device may lag a step behind, which evens out.
"""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.energy import gpu_kwh

SECONDS_BETWEEN_FAILURES = 24 * 3600.0


class Meter:
    """Of the run over all its starts, and of the steps between two log lines."""

    def __init__(self, before: Progress, processes: int, device: torch.device) -> None:
        self._began, self._before, self._processes = time.monotonic(), before, processes
        self._device, self._kwh = device, gpu_kwh(device)
        self._flops_per_ecg: float | None = None
        self._peak_flops: float | None = None
        self._stepping, self._ecgs = 0.0, 0
        self.restart()

    def works_at(self, flops_per_ecg: float, peak_flops: float | None) -> None:
        """From now on: of a training step; and in a second, of one process's device."""
        self._flops_per_ecg, self._peak_flops = flops_per_ecg, peak_flops

    def at_step(self, step: int, progress: Progress) -> Progress:
        """The progress with this step and the time that it took."""
        seconds, energy = time.monotonic() - self._began, None
        if self._kwh is not None and (now := gpu_kwh(self._device)) is not None:
            energy = (self._before.energy_kwh or 0) + (now - self._kwh) * self._processes
        return replace(
            progress,
            step=step,
            seconds=self._before.seconds + seconds,
            process_seconds=self._before.process_seconds + seconds * self._processes,
            energy_kwh=energy,
        )

    def restart(self) -> None:
        """Begin a new interval: what came before (an evaluation) is not part of the rate."""
        self._since = self._last = time.monotonic()
        self._recent, self._waited = 0, 0.0
        self._steps: list[float] = []

    @contextmanager
    def waits(self) -> Iterator[None]:
        """For data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def count(self, num_ecgs: int) -> None:
        """A step is over, of so many ECGs on all processes together."""
        now = time.monotonic()
        self._steps.append(now - self._last)
        self._last, self._recent = now, self._recent + num_ecgs

    def values(self) -> dict[str, float]:
        """Of the steps since the last call, for a line of metrics.jsonl. `mfu` is the share of the
        device's peak: ECG/s x arithmetic per ECG / (processes x peak)."""
        seconds, ecgs = max(time.monotonic() - self._since, 1e-9), self._recent
        self._stepping, self._ecgs = self._stepping + seconds, self._ecgs + ecgs
        rate = ecgs / seconds
        p50, p95 = np.quantile(self._steps, [0.5, 0.95]) if self._steps else (math.nan,) * 2
        values = {
            "ecg_per_s": rate,
            "ecg_per_s_per_process": rate / self._processes,
            "data_wait": self._waited / seconds,
            "step_s_p50": float(p50),
            "step_s_p95": float(p95),
            "memory_gb": memory_gb(),
        }
        if self._flops_per_ecg:
            flops = rate * self._flops_per_ecg
            values["tflops_per_s"] = flops / 1e12
            if self._peak_flops:
                values["mfu"] = flops / (self._processes * self._peak_flops)
        self.restart()
        return values

    def mean(self) -> float | None:
        """ECG/s over all intervals of this start; None before the first."""
        return self._ecgs / self._stepping if self._stepping else None


class SaveTimer:
    """When a checkpoint is due by time: the first process's clock decides for all."""

    def __init__(self, every_min: float | None) -> None:
        self._every_s = None if every_min is None else 60 * every_min
        self._last = time.monotonic()
        self._save_s = 1.0

    def is_due(self) -> bool:
        every_s = self._every_s
        if every_s is None:
            every_s = math.sqrt(2 * self._save_s * SECONDS_BETWEEN_FAILURES)
        return every_s > 0 and time.monotonic() - self._last >= every_s

    @contextmanager
    def saves(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._save_s = max(self._last - began, 0.1)


def memory_gb() -> float:
    """The most that this process has used: of its GPU, or of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
