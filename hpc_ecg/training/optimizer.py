"""AdamW and its learning rate: a pure function of the step, so resume has nothing to restore."""

import math
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 5e-5
    """Peak learning rate."""
    schedule: str = "cosine"
    """After the warm-up: cosine (towards 0 at the end) or constant."""
    warmup_fraction: float = 0.05
    """Share of all steps over which the rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging factors of gradient and squared gradient."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decoupled decay of weight matrices; biases and norms do not decay."""
    clip_norm: float | None = 1.0
    """Largest gradient norm; null = no clipping."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"optim.schedule must be {' or '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"optim.warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must not be negative, got {self.weight_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm must be positive or null, got {self.clip_norm}")
        if not self.eps > 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optim.eps must be positive and optim.betas in [0, 1), "
                f"got {self.eps} and {list(self.betas)}"
            )


def build_optimizer(
    model: nn.Module, config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the parameters that train; fused into one kernel on a GPU."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and not name.endswith("weight_g")  # that is a gain
            (matrices if is_matrix else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type == "cuda",
    )


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of `step` (counted from 0) in a run of `total_steps`."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(total_steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
