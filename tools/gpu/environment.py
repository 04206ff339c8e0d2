"""Where the check runs: card, driver, clocks, memory, and the versions of what matters."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.model.flops import peak_flops
from hpc_ecg.version import __version__

PACKAGES = {"torch", "triton", "accelerate", "deepspeed", "numpy", "safetensors", "nvidia-ml-py"}
QUERY = "driver_version,memory.used,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit"
QUERY += ",temperature.gpu,mig.mode.current,ecc.mode.current,pstate"


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    installed = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    python = {"hpc_ecg": __version__, "Python": platform.python_version(), **installed}
    emit("versions", python | {"CUDA": torch.version.cuda, "kernel": platform.release()})
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    emit("machine", {"cores": len(os.sched_getaffinity(0)), "memory_gb": memory_gb})
    if not torch.cuda.is_available():
        is_cpu_build = not (torch.version.cuda or torch.version.hip)
        why = f"torch {torch.__version__} is built without CUDA" if is_cpu_build else "see doctor"
        emit("card", {UNKNOWN: f"no GPU here ({why})"})
        return
    about = torch.cuda.get_device_properties(0)
    card = {"name": about.name, "count": torch.cuda.device_count()}
    card |= {"memory_gb": about.total_memory / 2**30, "capability": f"{about.major}.{about.minor}"}
    card |= {
        "multiprocessors": about.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
    }
    emit("card", card | {"peak_bf16_flops": peak_flops(about.name, "bf16")})
    emit("nvidia-smi", _nvidia_smi())


def _nvidia_smi() -> dict[str, str]:
    """The cards as nvidia-smi describes them, idle."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {UNKNOWN: str(error)[:200]}
    return {"csv": answer.stdout}
