"""Where the check runs: card, driver, clocks, memory, and the versions of what matters."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpu.parts import Clock, Emit
from hpc_ecg.model.flops import peak_flops
from hpc_ecg.version import __version__

PACKAGES = ("torch", "triton", "accelerate", "deepspeed", "numpy", "safetensors", "nvidia-ml-py")
QUERY = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,power.draw"
QUERY += ",power.limit,temperature.gpu,mig.mode.current,ecc.mode.current,pstate"


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    emit("versions", _versions())
    machine = {"cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    emit("machine", machine | {"processor": _processor(), "memory_gb": memory})
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch sees none" if built else f"torch {torch.__version__} is built without CUDA"
        emit("card", {"not measured": f"no GPU here: {why}"})
        return
    about = torch.cuda.get_device_properties(0)
    emit(
        "card",
        {
            "name": about.name,
            "count": torch.cuda.device_count(),
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_gb": about.total_memory / 2**30,
            "peak_bf16_tflops": (peak_flops(about.name, "bf16") or 0) / 1e12,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": torch.backends.cudnn.version(),
        },
    )
    emit("nvidia-smi", _nvidia_smi())


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"hpc_ecg": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"CUDA": torch.version.cuda, "kernel": platform.release()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if "model name" in line), "")


def _nvidia_smi() -> dict[str, Any]:
    """The first card as nvidia-smi describes it, idle."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"not measured": str(error).splitlines()[0]}
    values = text.stdout.splitlines()[0].split(",")
    return dict(zip(QUERY.split(","), map(str.strip, values), strict=True))
