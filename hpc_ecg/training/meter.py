"""The cost of a run: time, ECGs per second, waiting for data, arithmetic, memory and energy.

All clocks are monotonic, so changes of the system clock do no harm. A step is timed from the end of
the previous one; the device may lag a step behind, which evens out.
"""

import contextlib
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from hpc_ecg.training.checkpoint import Progress

SECONDS_BETWEEN_FAILURES = 24 * 3600.0
JOULES_PER_KWH = 3.6e6
ENERGY_EVERY_S = 1.0
"""How often the driver is asked for its counter, which may take milliseconds of a step."""


class Meter:
    """Totals over all starts of a run, and rates of the steps between two log lines."""

    def __init__(self, processes: int, device: torch.device) -> None:
        self._processes, self._device = processes, device
        self._flops_per_ecg: float | None = None
        self._peak_flops: float | None = None
        self._stepping_s, self._ecgs = 0.0, 0
        self.start_from(Progress())

    def start_from(self, before: Progress) -> None:
        """Start the clock, and count the time and energy of earlier starts."""
        self._before, self._began = before, time.monotonic()
        self._kwh_at_start = self._kwh = gpu_kwh(self._device)
        self._kwh_read = self._began
        self.restart()

    def set_workload(self, flops_per_ecg: float, peak_flops: float | None) -> None:
        """Set the FLOPs of a training step per ECG, and the peak FLOP/s of one device if known."""
        self._flops_per_ecg, self._peak_flops = flops_per_ecg, peak_flops

    def at_step(self, step: int, progress: Progress) -> Progress:
        """The progress at this step, with the time and energy used so far."""
        now, energy = time.monotonic(), None
        seconds = now - self._began
        if self._kwh_at_start is not None and now - self._kwh_read >= ENERGY_EVERY_S:
            self._kwh, self._kwh_read = gpu_kwh(self._device), now
        if self._kwh_at_start is not None and self._kwh is not None:
            used = (self._kwh - self._kwh_at_start) * self._processes
            energy = (self._before.energy_kwh or 0) + used
        return replace(
            progress,
            step=step,
            seconds=self._before.seconds + seconds,
            process_seconds=self._before.process_seconds + seconds * self._processes,
            energy_kwh=energy,
        )

    def restart(self) -> None:
        """Begin a new interval; the time before it (an evaluation) is not part of its rate."""
        self._interval_began = self._last_step = time.monotonic()
        self._interval_ecgs, self._waited_s = 0, 0.0
        self._step_s: list[float] = []

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._waited_s += time.monotonic() - began

    def count(self, num_ecgs: int) -> None:
        """Record the end of a step over `num_ecgs` ECGs of all processes together."""
        now = time.monotonic()
        self._step_s.append(now - self._last_step)
        self._last_step, self._interval_ecgs = now, self._interval_ecgs + num_ecgs

    def values(self) -> dict[str, float]:
        """The rates since the last call, for a line of metrics.jsonl.

        `mfu` (model FLOPs utilization) is ECG/s x FLOPs per ECG / (processes x peak FLOP/s).
        """
        seconds = max(time.monotonic() - self._interval_began, 1e-9)
        self._stepping_s += seconds
        self._ecgs += self._interval_ecgs
        rate = self._interval_ecgs / seconds
        p50, p95 = np.quantile(self._step_s, [0.5, 0.95]) if self._step_s else (math.nan,) * 2
        values = {
            "ecg_per_s": rate,
            "ecg_per_s_per_process": rate / self._processes,
            "data_wait": self._waited_s / seconds,
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

    def mean_rate(self) -> float | None:
        """ECG/s over all intervals since the start of this process; None before the first."""
        return self._ecgs / self._stepping_s if self._stepping_s else None


class SaveTimer:
    """When a checkpoint is due by time; the first rank for which it is asks all others to save."""

    def __init__(self, every_min: float | None) -> None:
        self._every_s = None if every_min is None else 60 * every_min
        self._last_save = time.monotonic()
        self._saving_s = 1.0

    def is_due(self) -> bool:
        every_s = self._every_s
        if every_s is None:  # the interval of Young (1974)
            every_s = math.sqrt(2 * self._saving_s * SECONDS_BETWEEN_FAILURES)
        return every_s > 0 and time.monotonic() - self._last_save >= every_s

    @contextmanager
    def saving(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._last_save = time.monotonic()
        self._saving_s = max(self._last_save - began, 0.1)


def memory_gb() -> float:
    """Peak memory of this process in GiB: on its GPU if it uses one, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_kwh(device: torch.device) -> float | None:
    """Energy in kWh that the GPU has used since its driver was loaded, by NVML (extra `energy`).

    None without a GPU or NVML, or for a GPU older than Volta. Includes other processes on the GPU.
    """
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # NVML raises many kinds
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000 / JOULES_PER_KWH
    return None
