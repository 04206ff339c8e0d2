"""Dropout whose mask depends on the record, not on its rank, micro-batch or place in the batch.

Whether an element is dropped is a function of its record's seed, the layer, the token and the
column alone, in integer arithmetic that is the same on every device; no generator has a state to
save.

Each token has two random numbers a, s of 32 bits and each column one, c; an element is dropped if
a c + s mod 2^32 is below p 2^32. So two elements of a token are dropped as if independently, up to
2^(k-32) where their columns' numbers agree in the last k bits (multiply-shift hashing;
Dietzfelbinger 1996), and a mask costs three passes over the elements.
"""
# B batch, L layers, T tokens, D width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_ecg.hashing import multiply_shift


class RecordDropout(nn.Module):
    """Dropout on [B, T, D] in training, by a seed for each token (`token_seeds`) or, without seeds,
    from torch's generator. `stream` tells apart the dropouts that get the same seeds."""

    def __init__(self, p: float, stream: int) -> None:
        super().__init__()
        self.p, self.stream = p, stream

    def forward(self, x_BTD: Tensor, seeds_BT: Tensor | None = None) -> Tensor:
        if not self.training or self.p == 0.0:
            return x_BTD
        if seeds_BT is None:
            return F.dropout(x_BTD, self.p)
        is_kept_BTD = _keep_mask(seeds_BT ^ (self.stream << 32), x_BTD.shape[-1], self.p)
        return x_BTD * is_kept_BTD * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, stream={self.stream}"


def token_seeds(seeds_B: Tensor | None, num_tokens: int) -> Tensor | None:
    """Seeds of the tokens, int64 [B, T], from one seed per record and step (any int64 values)."""
    if seeds_B is None:
        return None
    token_T = torch.arange(num_tokens, device=seeds_B.device)
    return multiply_shift(multiply_shift(seeds_B)[:, None] + token_T)


def layer_seeds(seeds_BT: Tensor, num_layers: int) -> Tensor:
    """Seeds of the tokens in each layer, [L, B, T]. Computed outside the layers: so layers are
    alike, and one that torch.compile has fused does not compute them again for every element."""
    layer_L = torch.arange(num_layers, device=seeds_BT.device)
    return multiply_shift(seeds_BT + layer_L[:, None, None])


def _keep_mask(seeds_BT: Tensor, width: int, p: float) -> Tensor:
    token_BT1 = multiply_shift(seeds_BT)[..., None]
    column_D = _column_numbers(torch.arange(width, device=seeds_BT.device))
    # Not addcmul: it takes three times as long on a CPU.
    hash_BTD = ((token_BT1 >> 32).to(torch.int32) * column_D).add_(token_BT1.to(torch.int32))
    return hash_BTD >= min(round(p * 2**32), 2**32 - 1) - 2**31


def _column_numbers(column_D: Tensor) -> Tensor:
    """An int32 number for each column. Nothing overflows: torch.compile writes C++ for a CPU, whose
    compiler may assume that a constant expression does not overflow; masks then differed."""
    column_D = (column_D ^ 1640531527) * 739982445
    column_D = ((column_D ^ (column_D >> 29)) & (2**31 - 1)) * 1395872825
    return (column_D >> 20).to(torch.int32)
