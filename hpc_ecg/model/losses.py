"""The loss as two pure functions: a sum over labels, and what the sum is divided by.

They are apart because a global batch is spread over ranks and micro-batches: each adds its
`loss_sum`, and all are divided by the `normalizer` of the whole batch. A missing label is NaN in
the targets; it gives no loss and no gradient. Names, formulas and values are those of the criteria
of fairseq-signals (DeepECG's fork); tests/test_losses.py compares with arrays computed by it.
"""
# B batch, K labels

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_ecg.model.settings import LossConfig


def check_loss(config: LossConfig, num_labels: int) -> None:
    """Raise ValueError if loss.pos_weight does not fit the number of labels."""
    if config.pos_weight is not None and len(config.pos_weight) not in (1, num_labels):
        raise ValueError(
            f"loss.pos_weight must have {' or '.join(dict.fromkeys(('1', str(num_labels))))} "
            f"values, got {len(config.pos_weight)}"
        )


def loss_sum(
    logits_BK: Tensor, targets_BK: Tensor, config: LossConfig, weights_BK: Tensor | None = None
) -> Tensor:
    """Sum of the loss over the labels that are present, a float32 scalar; with loss.ipcw weighted
    by `weights_BK`."""
    missing_BK = torch.isnan(targets_BK)
    # Missing places are replaced on both sides before the loss, so that no NaN reaches a gradient.
    # (Not by torch.where with a number, which would wait for a GPU.)
    logits_BK = logits_BK.float().masked_fill(missing_BK, 0.0)
    targets_BK = targets_BK.float().masked_fill(missing_BK, 0.0)
    loss_BK = FUNCTIONS[config.name](logits_BK, targets_BK, config)
    if config.ipcw and weights_BK is not None:
        loss_BK = loss_BK * weights_BK
    return loss_BK.masked_fill(missing_BK, 0.0).sum()


def normalizer(targets_BK: Tensor, config: LossConfig, weights_BK: Tensor | None = None) -> float:
    """What the sum over the *global* batch is divided by: the number of labels present (for mlsml:
    over K) or, with `positives`, of positive labels; at least 1. Give it the targets of all ranks
    together: as each value is at least 1, those of single ranks do not add up. With
    loss.ipcw a label counts as its weight, and the sum has no least value."""
    by_positives = config.reduction == "positives" and config.name != "mse"
    part_BK = targets_BK.double().trunc() if by_positives else (~torch.isnan(targets_BK)).double()
    if config.ipcw and weights_BK is not None:
        part_BK = part_BK * weights_BK
    total = torch.nansum(part_BK).item()
    total = total if config.ipcw and total > 0 else max(total, 1.0)
    return total / targets_BK.shape[1] if config.name == "mlsml" and not by_positives else total


def _bce(logits_BK: Tensor, targets_BK: Tensor, config: LossConfig) -> Tensor:
    given = config.pos_weight
    pos_weight = None if given is None else torch.tensor(given).to(logits_BK, non_blocking=True)
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


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {
    "bce": _bce,
    "as": _asymmetric,
    "bf": _focal,
    "mlsml": _soft_margin,
    "mse": _squared,
    "mse2": _squared,
}
