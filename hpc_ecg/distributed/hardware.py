"""Which device and arithmetic the engine's settings come to on this machine."""

import torch

from hpc_ecg.distributed.settings import EngineConfig


def choose_hardware(config: EngineConfig) -> tuple[bool, str]:
    """(run on the CPU?, precision). ValueError if an explicit setting is not possible here."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu")
    on_cpu = config.device == "cpu" or not has_gpu
    if config.precision == "auto":
        return on_cpu, "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "fp32"
    if on_cpu and config.precision == "fp16":
        raise ValueError("engine.precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    return on_cpu, config.precision
