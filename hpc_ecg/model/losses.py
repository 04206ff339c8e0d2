"""The loss as two pure functions: a sum over labels, and what the sum is divided by.

They are apart because a global batch is spread over ranks and micro-batches: each adds its
`loss_sum`, and all are divided by the `normalizer` of the whole batch. A missing label is NaN in
the targets; it gives no loss and no gradient. Names, formulas and values are those of the criteria
of fairseq-signals (DeepECG's fork); tests/test_losses.py compares with arrays computed by it.
"""
# B batch, K labels

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "positives")
REGRESSION = ("mse", "mse2")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: str = "bce"
    """bce = binary cross-entropy on logits; as = asymmetric; bf = binary focal; mlsml = multilabel
    soft margin (bce over the number of labels); for regression mse, and mse2, which differs from it
    under `positives` alone. as and bf follow the original in float32, saturation included: beyond
    logits of about ±17, and up to ±120 and more, they have hardly a gradient left, wrong as the
    model may be."""
    reduction: str = "mean"
    """mean = over labels present; positives = divide by the number of positive labels in the global
    batch, as the original does (for mse it divides by the number of labels either way)."""
    pos_weight: list[float] | None = None
    """Weight of positives for bce: one number for all labels or one per label."""
    gamma_neg: float = 4.0
    """as: focusing exponent for negative labels."""
    gamma_pos: float = 0.0
    """as: focusing exponent for positive labels."""
    clip: float = 0.05
    """as: what is added to the probability of a negative, which is then cut at 1; 0 = nothing."""
    alpha: float = 0.25
    """bf: weight of positives; negatives have 1 - alpha."""
    gamma: float = 2.0
    """bf: focusing exponent."""


def check_loss(config: LossConfig, num_labels: int) -> None:
    """Raise ValueError, naming the key, if a `loss` setting is wrong for this number of labels."""
    if config.name not in LOSSES:
        raise ValueError(f"loss.name must be one of {', '.join(LOSSES)}, got {config.name!r}")
    if config.reduction not in REDUCTIONS:
        raise ValueError(f"loss.reduction must be mean or positives, got {config.reduction!r}")
    for name in ("gamma_neg", "gamma_pos", "gamma", "clip"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"loss.{name} must not be negative, got {getattr(config, name)}")
    if not 0 <= config.alpha <= 1:
        raise ValueError(f"loss.alpha must be in [0, 1], got {config.alpha}")
    if config.pos_weight is None:
        return
    if config.name != "bce":
        raise ValueError(f"loss.pos_weight belongs to loss.name=bce, got loss.name={config.name}")
    if len(config.pos_weight) not in (1, num_labels):
        raise ValueError(
            f"loss.pos_weight must have {' or '.join(dict.fromkeys(('1', str(num_labels))))} "
            f"values, got {len(config.pos_weight)}"
        )
    if not all(0 < weight < float("inf") for weight in config.pos_weight):
        raise ValueError(f"loss.pos_weight must be positive, got {config.pos_weight}")


def loss_sum(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    """Sum of the loss over the labels that are present, a float32 scalar."""
    present_BK = ~torch.isnan(targets_BK)
    # Missing places are replaced on both sides before the loss, so that no NaN reaches a gradient.
    logits_BK = torch.where(present_BK, logits_BK.float(), 0.0)
    targets_BK = torch.where(present_BK, targets_BK.float(), 0.0)
    loss_BK = LOSSES[config.name](logits_BK, targets_BK, config)
    return torch.where(present_BK, loss_BK, 0.0).sum()


def normalizer(targets_BK: Tensor, config: LossConfig) -> float:
    """What the sum over the *global* batch is divided by: the number of labels present (for mlsml:
    over K) or, with `positives`, of positive labels; at least 1. Give it the targets of all ranks
    together: as each value is at least 1, those of single ranks do not add up."""
    present = int((~torch.isnan(targets_BK)).sum().item())
    if config.reduction == "positives" and config.name != "mse":
        return float(max(torch.nansum(targets_BK.double().trunc()).item(), 1))
    if config.name == "mlsml":
        return max(present, 1) / targets_BK.shape[1]
    return float(max(present, 1))


def _bce(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    pos_weight = None if config.pos_weight is None else logits_BK.new_tensor(config.pos_weight)
    return F.binary_cross_entropy_with_logits(
        logits_BK, targets_BK, pos_weight=pos_weight, reduction="none"
    )


def _asymmetric(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    """Ridnik et al. 2021; like the original, the gradient flows through the focusing weight."""
    p_BK = torch.sigmoid(logits_BK)
    q_BK = 1 - p_BK
    if config.clip > 0:
        q_BK = (q_BK + config.clip).clamp(max=1)
    log_BK = targets_BK * p_BK.clamp(min=1e-8).log()
    log_BK = log_BK + (1 - targets_BK) * q_BK.clamp(min=1e-8).log()
    sure_BK = p_BK * targets_BK + q_BK * (1 - targets_BK)
    exponent_BK = config.gamma_pos * targets_BK + config.gamma_neg * (1 - targets_BK)
    return -log_BK * torch.pow(1 - sure_BK, exponent_BK)


def _focal(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    """Lin et al. 2017, on probabilities, whose logarithm torch cuts at -100."""
    p_BK = torch.sigmoid(logits_BK)
    bce_BK = F.binary_cross_entropy(p_BK, targets_BK, reduction="none")
    sure_BK = p_BK * targets_BK + (1 - p_BK) * (1 - targets_BK)
    alpha_BK = config.alpha * targets_BK + (1 - config.alpha) * (1 - targets_BK)
    return alpha_BK * (1 - sure_BK) ** config.gamma * bce_BK


def _soft_margin(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    return _bce(logits_BK, targets_BK, config) / logits_BK.shape[1]


def _squared(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    return (logits_BK - targets_BK).square()


LOSSES: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {
    "bce": _bce,
    "as": _asymmetric,
    "bf": _focal,
    "mlsml": _soft_margin,
    "mse": _squared,
    "mse2": _squared,
}
