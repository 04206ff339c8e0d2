"""Dropout whose mask belongs to the record: not to its rank, its micro-batch or its place there.

A word per record and an activation go in, the activation with some elements dropped comes out. An
element is dropped by its record's word, the place in the model, its token and its column alone, in
integer arithmetic that is the same on every device; no generator has a state to keep.

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
    """Dropout on [B, T, D] in training: by a word for each token (`token_seeds`), or from torch's
    generator where none are given. `stream` numbers the dropouts that are given the same words."""

    def __init__(self, p: float, stream: int) -> None:
        super().__init__()
        self.p, self.stream = p, stream

    def forward(self, x_BTD: Tensor, seeds_BT: Tensor | None = None) -> Tensor:
        if not self.training or self.p == 0.0:
            return x_BTD
        if seeds_BT is None:
            return F.dropout(x_BTD, self.p)
        is_kept_BTD = _kept(seeds_BT ^ (self.stream << 32), x_BTD.shape[-1], self.p)
        return x_BTD * is_kept_BTD * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, stream={self.stream}"


def token_seeds(seeds_B: Tensor | None, num_tokens: int) -> Tensor | None:
    """Words of a record's tokens, int64 [B, T], of the record's own in this step (any values)."""
    if seeds_B is None:
        return None
    token_T = torch.arange(num_tokens, device=seeds_B.device)
    return multiply_shift(multiply_shift(seeds_B)[:, None] + token_T)


def layer_seeds(seeds_BT: Tensor, num_layers: int) -> Tensor:
    """Words of tokens in each of the layers, [L, B, T]. Made here and not in the layers: so layers
    are alike, and one that torch.compile has fused does not make them for every element again."""
    layer_L = torch.arange(num_layers, device=seeds_BT.device)
    return multiply_shift(seeds_BT + layer_L[:, None, None])


def _kept(seeds_BT: Tensor, width: int, p: float) -> Tensor:
    word_BT1 = multiply_shift(seeds_BT)[..., None]
    column_D = _columns(torch.arange(width, device=seeds_BT.device))
    # Not addcmul: it takes three times as long on a CPU.
    hash_BTD = ((word_BT1 >> 32).to(torch.int32) * column_D).add_(word_BT1.to(torch.int32))
    return hash_BTD >= min(round(p * 2**32), 2**32 - 1) - 2**31


def _columns(column_D: Tensor) -> Tensor:
    """An int32 number for each column. Nothing overflows: torch.compile writes C++ for a CPU, whose
    compiler may take a known number's overflow for impossible, and then masks differ (seen)."""
    column_D = (column_D ^ 1640531527) * 739982445
    column_D = ((column_D ^ (column_D >> 29)) & (2**31 - 1)) * 1395872825
    return (column_D >> 20).to(torch.int32)
