# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917
"""Record dropout on a GPU in one pass, with GELU before it if asked: a kernel in Triton.

The mask has the bits of `dropout.drop_plainly`, and so has the output without GELU; GELU itself may
differ in the last bit of float32. Import this module only where Triton is installed.
"""
# B batch, T tokens, D width

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpc_ecg.hashing import GOLDEN_GAMMA, MULTIPLIERS

GAMMA, FIRST, SECOND = map(tl.constexpr, (GOLDEN_GAMMA, *MULTIPLIERS))
SQRT_HALF, DENSITY_AT_0 = map(tl.constexpr, (0.7071067811865476, 0.3989422804014327))
ROWS, COLUMNS = map(tl.constexpr, (4, 1024))  # 32 elements for each of 128 threads


@triton.jit
def _drop(  # type: ignore[no-untyped-def]
    x, gradient, seeds, columns, out, rows, width, threshold, scale,
    GELU: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    token = (tl.load(seeds + row, mask=row < rows, other=0) ^ GAMMA) * FIRST
    token = (token ^ (token >> 32)) * SECOND  # multiply_shift
    c = tl.load(columns + column, mask=column < width, other=0)
    hashed = (token >> 32).to(tl.int32)[:, None] * c[None, :] + token.to(tl.int32)[:, None]
    is_kept = (hashed >= threshold).to(tl.float32)
    place = row[:, None].to(tl.int64) * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    dtype = out.dtype.element_ty
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        below = 0.5 * (1.0 + tl.erf(value * SQRT_HALF))  # the normal distribution up to x
    if BACKWARD:
        result = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * scale
        result = result.to(dtype).to(tl.float32) * is_kept
        if GELU:
            result *= below + value * tl.exp(-0.5 * value * value) * DENSITY_AT_0
    else:
        if GELU:
            value = (value * below).to(dtype).to(tl.float32)
        result = value * is_kept * scale
    tl.store(out + place, result.to(dtype), mask=inside)


def drop_by_triton(
    x_BTD: Tensor,
    seeds_BT: Tensor,
    columns_D: Tensor,
    threshold: int,
    p: float,
    after_gelu: bool,
    gradient_BTD: Tensor | None,
) -> Tensor:
    """`dropout.drop_plainly` with the numbers of the columns and the threshold that it makes.
    RuntimeError: not on a GPU."""
    if x_BTD.device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise RuntimeError("it needs a GPU")
    x, seeds, width = x_BTD.contiguous(), seeds_BT.contiguous(), x_BTD.shape[-1]
    gradient = x if gradient_BTD is None else gradient_BTD.contiguous()
    out = torch.empty_like(x)
    grid = triton.cdiv(seeds.numel(), ROWS.value), triton.cdiv(width, COLUMNS.value)
    sizes = seeds.numel(), width, threshold, 1 / (1 - p)
    _drop[grid](x, gradient, seeds, columns_D, out, *sizes, after_gelu, gradient_BTD is not None)
    return out
