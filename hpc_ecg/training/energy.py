"""The energy that this process's GPU has used, from NVML (extra `energy`); None where that cannot
be read: no GPU, no NVML, a GPU older than Volta.

The counter is the GPU's own, so it counts other processes on the same GPU too.
"""

import contextlib

import torch

JOULES_PER_KWH = 3.6e6


def gpu_kwh(device: torch.device) -> float | None:
    """Since the driver was loaded; meaningful as a difference."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # NVML has an error class for each way of not answering
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000 / JOULES_PER_KWH
    return None
