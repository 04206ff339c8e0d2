"""AdamW and its learning rate: a pure function of the step, so resume has nothing to restore.

Parameters lie in groups by how they decay and by their share of the learning rate: the head may
have a rate of its own, and a layer a smaller one the further it is from the head.
"""

import math
import re
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
    eps_before_correction: bool = False
    """Add eps before the bias correction of the squared gradient, as fairseq's Adam does."""
    head_lr: float | None = None
    """Peak learning rate of the head; null = lr."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one below it, from the head down: with 0.75 the top
    encoder layer has 0.75 of lr, what lies before the first layer 0.75 to the number of layers + 1
    (as in BEiT)."""
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
        if self.head_lr is not None and not self.head_lr > 0:
            raise ValueError(f"optim.head_lr must be positive or null, got {self.head_lr}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
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
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    num_layers = 1 + max([_layer_of(name) for name, _ in model.named_parameters()], default=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and not name.endswith("weight_g")  # that is a gain
            decay = config.weight_decay if is_matrix else 0.0
            key = lr_scale(name, num_layers, config), decay
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type == "cuda",
    )


def lr_scale(name: str, num_layers: int, config: OptimConfig) -> float:
    """The rate of a parameter (our name) as a multiple of the run's rate."""
    if name.startswith("head."):
        return (config.head_lr or config.lr) / config.lr
    return config.layer_decay ** (num_layers - _layer_of(name))


def _layer_of(name: str) -> int:
    """Encoder layer, counted from 0; -1 for what lies before the first."""
    match = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def set_rates(
    optimizer: torch.optim.Optimizer, step: int, total_steps: int, config: OptimConfig
) -> float:
    """Give every group what it has at `step` (counted from 0); returns the rate before scaling.

    fairseq's Adam divides by sqrt(v) + eps and corrects the bias of v afterwards, which is AdamW
    with an epsilon of eps / sqrt(1 - beta2^t)."""
    lr, eps = lr_at(step, total_steps, config), config.eps
    if config.eps_before_correction:
        eps /= math.sqrt(1 - config.betas[1] ** (step + 1))
    for group in optimizer.param_groups:
        group["lr"], group["eps"] = lr * group["lr_scale"], eps
    return lr


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of `step` (counted from 0) in a run of `total_steps`."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(total_steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
