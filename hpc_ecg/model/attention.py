"""Softmax attention: torch's fused kernels, a plain reference beside them, and the module.

`attend` takes the same arguments for all kinds; tests/test_attention.py compares them. The linears
have the names of the checkpoints.
"""
# B batch, T tokens (queries and keys alike), D width, H heads, E head width

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpc_ecg.model.dropout import RecordDropout

FUSED = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "fa3": SDPBackend.FLASH_ATTENTION,
    "fa4": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "varlen": SDPBackend.FLASH_ATTENTION,  # for batches without padding
}


def attend(
    q_BHTE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    mask_BT: Tensor | None,
    kind: str,
    dropout: RecordDropout,
    seeds_BT: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(E)) v -> [B, H, T, E]. Keys where `mask_BT` is True are not attended to;
    a row with every key masked is undefined. `dropout` acts on the attention weights; only `math`
    draws it from the seeds. RuntimeError, ImportError, AttributeError: it cannot run."""
    p = dropout.p if dropout.training else 0.0
    if kind == "auto":
        kind, _ = choose_kind(q_BHTE.device, q_BHTE.dtype, p > 0 and seeds_BT is not None)
    if kind == "math":  # leaves alone which flash attention a model beside it has chosen
        return _attend_plainly(q_BHTE, k_BHTE, v_BHTE, mask_BT, dropout, seeds_BT)
    if not torch.compiler.is_compiling():  # a run has tried its kernels before
        _choose_flash(kind)
    if kind == "varlen" and mask_BT is not None:
        return _attend_by_lengths(q_BHTE, k_BHTE, v_BHTE, mask_BT)
    keep_B11T = None if mask_BT is None else ~mask_BT[:, None, None, :]
    with sdpa_kernel(FUSED[kind]) if kind in FUSED else contextlib.nullcontext():
        return F.scaled_dot_product_attention(
            q_BHTE, k_BHTE, v_BHTE, attn_mask=keep_B11T, dropout_p=p
        )


def _choose_flash(kind: str) -> None:
    """Let torch's flash attention, which is one for the whole process, be that of this kind."""
    wanted = kind.upper() if kind in ("fa3", "fa4") else None
    current = getattr(torch_attention, "current_flash_attention_impl", lambda: None)()
    if wanted and wanted != current:
        torch_attention.activate_flash_attention_impl(wanted)
    elif current and not wanted:
        torch_attention.restore_flash_attention_impl()


def choose_kind(
    device: torch.device, dtype: torch.dtype, has_dropout_by_record: bool
) -> tuple[str, str]:
    """The kind that `auto` resolves to, and the reason."""
    if has_dropout_by_record:
        return "math", "attention dropout by record"
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        return "math", "faster than a CPU's fused kernel in half precision"
    return "sdpa", "torch's own choice"


def _attend_plainly(
    q_BHTE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    mask_BT: Tensor | None,
    dropout: RecordDropout,
    seeds_BT: Tensor | None,
) -> Tensor:
    scores_BHTT = (q_BHTE @ k_BHTE.transpose(-2, -1)).float() / math.sqrt(q_BHTE.shape[-1])
    if mask_BT is not None:
        scores_BHTT = scores_BHTT.masked_fill(mask_BT[:, None, None, :], -math.inf)
    weights_BHTT = torch.softmax(scores_BHTT, dim=-1)
    if dropout.training and dropout.p > 0:
        weights_BTHT = weights_BHTT.transpose(1, 2)
        dropped = dropout(weights_BTHT.flatten(2), seeds_BT).view(weights_BTHT.shape)
        weights_BHTT = dropped.transpose(1, 2)
    return weights_BHTT.to(v_BHTE.dtype) @ v_BHTE


def _attend_by_lengths(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask_BT: Tensor) -> Tensor:
    """Attention for padding at the end: the batch becomes one row of sequences, alternately the
    valid and the padded tokens of a record, each attending to itself. No tokens are moved, and the
    device is never waited for."""
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10

    num_records, _, num_tokens, _ = q_BHTE.shape
    start_B = torch.arange(num_records, device=mask_BT.device) * num_tokens
    ends_B2 = torch.stack([start_B + (~mask_BT).sum(1), start_B + num_tokens], 1)
    ends = F.pad(ends_B2.flatten(), (1, 0)).to(torch.int32)
    q, k, v = (x_BHTE.transpose(1, 2).flatten(0, 1) for x_BHTE in (q_BHTE, k_BHTE, v_BHTE))
    out = varlen_attn(q, k, v, ends, ends, num_tokens, num_tokens)
    assert isinstance(out, Tensor)
    return out.unflatten(0, (num_records, num_tokens)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate q, k, v and out projections, [B, T, D] -> [B, T, D];
    head h holds the columns h*E to (h+1)*E. Attention weights are dropped in training mode only."""

    def __init__(self, width: int, num_heads: int, dropout: float, kind: str) -> None:
        super().__init__()
        self.num_heads, self.kind = num_heads, kind
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.dropout = RecordDropout(dropout, stream=1)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor | None = None, seeds_BT: Tensor | None = None
    ) -> Tensor:
        q, k, v = (
            project(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_BHTE = attend(q, k, v, mask_BT, self.kind, self.dropout, seeds_BT)
        return self.out_proj(out_BHTE.transpose(1, 2).flatten(2))
