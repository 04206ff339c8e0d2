"""Dropout whose mask depends on the record, not on its rank, micro-batch or place in the batch.

Whether an element is dropped is a function of its record's seed, the layer, the token and the
column alone, in integer arithmetic that is the same on every device; no generator has a state to
save.

Each token has two random numbers a, s of 32 bits and each column one, c; an element is dropped if
a c + s mod 2^32 is below p 2^32. So two elements of a token are dropped as if independently, up to
2^(k-32) where their columns' numbers agree in the last k bits (multiply-shift hashing;
Dietzfelbinger 1996), and a mask costs three passes over the elements.

The plain kernel keeps the mask for the backward pass, a byte per element. `compiled` and `triton`
make it in one pass, fused with GELU if that comes before, and make it again in the backward pass.
"""
# B batch, L layers, T tokens, D width

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_ecg.hashing import multiply_shift


class RecordDropout(nn.Module):
    """Dropout on [B, T, D] in training, by a seed for each token (`token_seeds`) or, without seeds,
    from torch's generator. `stream` tells apart the dropouts that get the same seeds; `kind` is
    model.record_dropout."""

    def __init__(self, p: float, stream: int, kind: str = "auto") -> None:
        super().__init__()
        self.p, self.stream, self.kind = p, stream, kind

    def forward(
        self, x_BTD: Tensor, seeds_BT: Tensor | None = None, after_gelu: bool = False
    ) -> Tensor:
        """Dropout of x, or of GELU(x). What a compiled layer calls is fused there."""
        is_on = self.training and self.p > 0
        if not is_on or seeds_BT is None:
            x_BTD = F.gelu(x_BTD) if after_gelu else x_BTD
            return F.dropout(x_BTD, self.p) if is_on else x_BTD
        seeds_BT = seeds_BT ^ (self.stream << 32)
        if self.kind in ("auto", "plain") or torch.compiler.is_compiling():
            return drop_plainly(x_BTD, seeds_BT, self.p, after_gelu)
        kernel = _kernel(self.kind)
        return cast(Tensor, _Recomputed.apply(x_BTD, seeds_BT, self.p, after_gelu, kernel))

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


def drop_plainly(
    x_BTD: Tensor, seeds_BT: Tensor, p: float, after_gelu: bool, gradient_BTD: Tensor | None = None
) -> Tensor:
    """The forward pass or, with a gradient of its output, the backward pass."""
    is_kept_BTD = _keep_mask(seeds_BT, x_BTD.shape[-1], p)
    if gradient_BTD is None:
        return (F.gelu(x_BTD) if after_gelu else x_BTD) * is_kept_BTD * (1 / (1 - p))
    gradient_BTD = gradient_BTD * (1 / (1 - p)) * is_kept_BTD
    return torch.ops.aten.gelu_backward(gradient_BTD, x_BTD) if after_gelu else gradient_BTD


@functools.cache
def _kernel(kind: str) -> Callable[..., Tensor]:
    """A function with the arguments of `drop_plainly`. ImportError: its compiler is not there."""
    if kind == "compiled":
        return torch.compile(drop_plainly)
    from hpc_ecg.model.triton_dropout import drop_by_triton

    columns = functools.cache(_column_numbers)
    return lambda x_BTD, seeds_BT, p, *others: drop_by_triton(
        x_BTD, seeds_BT, columns(x_BTD.shape[-1], x_BTD.device), _threshold(p), p, *others
    )


class _Recomputed(torch.autograd.Function):
    """Dropout that keeps the seeds for its backward pass and, after GELU, the input; no mask."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, *arguments: Any) -> Tensor:
        seeds_BT, *ctx.arguments, kernel = arguments
        ctx.kernel, (p, after_gelu) = kernel, ctx.arguments
        ctx.save_for_backward(seeds_BT, *([x_BTD] if after_gelu else []))
        return cast(Tensor, kernel(x_BTD, seeds_BT, p, after_gelu, None))

    @staticmethod
    def backward(ctx: Any, gradient_BTD: Tensor) -> Any:
        seeds_BT, x_BTD = (*ctx.saved_tensors, gradient_BTD)[:2]
        return ctx.kernel(x_BTD, seeds_BT, *ctx.arguments, gradient_BTD), *[None] * 4


def _threshold(p: float) -> int:
    """The int32 number below which the hash of an element is dropped."""
    return min(round(p * 2**32), 2**32 - 1) - 2**31


def _keep_mask(seeds_BT: Tensor, width: int, p: float) -> Tensor:
    token_BT1 = multiply_shift(seeds_BT)[..., None]
    column_D = _column_numbers(width, seeds_BT.device)
    # Not addcmul: it takes three times as long on a CPU.
    hash_BTD = ((token_BT1 >> 32).to(torch.int32) * column_D).add_(token_BT1.to(torch.int32))
    return hash_BTD >= _threshold(p)


def _column_numbers(width: int, device: torch.device) -> Tensor:
    """An int32 number for each column. Nothing overflows: torch.compile writes C++ for a CPU, whose
    compiler may assume that a constant expression does not overflow; masks then differed."""
    column_D = (torch.arange(width, device=device) ^ 1640531527) * 739982445
    column_D = ((column_D ^ (column_D >> 29)) & (2**31 - 1)) * 1395872825
    return (column_D >> 20).to(torch.int32)
