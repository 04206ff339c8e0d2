"""AdamW and its learning rate, a pure function of the step, so a resumed run restores nothing.

Parameters are grouped by weight decay and by their multiple of the learning rate: the head may have
another rate, and layers train more slowly the further they are from the head.
"""

import math
import re

import torch
from torch import nn

from hpc_ecg.training.settings import OptimConfig


def build_optimizer(
    model: nn.Module, config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; fused into one kernel on a GPU."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    num_layers = 1 + max([_layer_of(name) for name, _ in model.named_parameters()], default=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # weight_g is the gain of weight normalization
            is_matrix = parameter.ndim > 1 and not name.endswith("weight_g")
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
    """The learning rate of a parameter, by its name in our model, as a multiple of optim.lr."""
    if name.startswith("head."):
        return (config.head_lr or config.lr) / config.lr
    return config.layer_decay ** (num_layers - _layer_of(name))


def _layer_of(name: str) -> int:
    """The encoder layer, counted from 0; -1 for parameters before the first."""
    match = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def set_rates(
    optimizer: torch.optim.Optimizer, step: int, total_steps: int, config: OptimConfig
) -> float:
    """Set the rate of every group for `step` (counted from 0); returns the rate before scaling.

    fairseq's Adam divides by sqrt(v) + eps and corrects the bias of v afterwards, which equals
    AdamW with an epsilon of eps / sqrt(1 - beta2^t).
    """
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
