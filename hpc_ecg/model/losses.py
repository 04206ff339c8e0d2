"""The loss as two pure functions: a sum over labels, and what the sum is divided by.

They are apart because a global batch is spread over ranks and micro-batches: each adds its
`loss_sum`, and all are divided by the `normalizer` of the whole batch. A missing label is NaN in
the targets; it gives no loss and no gradient. Values as in the original (fixture losses.npz).
"""
# B batch, K labels

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: str = "bce"
    """bce = binary cross-entropy on logits; mse = squared error (regression)."""
    reduction: str = "mean"
    """mean = over labels present; positives = divide by the number of positive labels in the global
    batch, as the original does (for mse it divides by the number of labels either way)."""
    pos_weight: list[float] | None = None
    """Weight of positives for bce: one number for all labels or one per label."""


def check_loss(config: LossConfig, num_labels: int) -> None:
    """ValueError that names the key if a `loss` setting is wrong for so many labels."""
    if config.name not in ("bce", "mse"):
        raise ValueError(f"loss.name must be bce or mse, got {config.name!r}")
    if config.reduction not in ("mean", "positives"):
        raise ValueError(f"loss.reduction must be mean or positives, got {config.reduction!r}")
    if config.pos_weight is None:
        return
    if config.name != "bce":
        raise ValueError(f"loss.pos_weight belongs to loss.name=bce, got loss.name={config.name}")
    if len(config.pos_weight) not in (1, num_labels):
        raise ValueError(
            f"loss.pos_weight must have 1 or {num_labels} values, got {len(config.pos_weight)}"
        )
    if not all(0 < weight < float("inf") for weight in config.pos_weight):
        raise ValueError(f"loss.pos_weight must be positive, got {config.pos_weight}")


def loss_sum(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    """Sum of the loss over the labels that are present, a float32 scalar."""
    present_BK = ~torch.isnan(targets_BK)
    # Missing places are replaced on both sides before the loss, so that no NaN reaches a gradient.
    logits_BK = torch.where(present_BK, logits_BK.float(), 0.0)
    targets_BK = torch.where(present_BK, targets_BK.float(), 0.0)
    if config.name == "mse":
        loss_BK = (logits_BK - targets_BK).square()
    else:
        pos_weight = None if config.pos_weight is None else logits_BK.new_tensor(config.pos_weight)
        loss_BK = F.binary_cross_entropy_with_logits(
            logits_BK, targets_BK, pos_weight=pos_weight, reduction="none"
        )
    return torch.where(present_BK, loss_BK, 0.0).sum()


def normalizer(targets_BK: Tensor, config: LossConfig) -> float:
    """What the sum over the *global* batch is divided by: its labels present or, for bce with
    `positives`, its positive labels; at least 1. Give it the targets of all ranks together: the
    at-least-1 makes the values of single ranks impossible to add."""
    if config.reduction == "positives" and config.name == "bce":
        count = int(torch.nansum(targets_BK.double()).item())
    else:
        count = int((~torch.isnan(targets_BK)).sum().item())
    return float(max(count, 1))
