"""Softmax attention: torch's fused kernels, a plain reference beside them, and the module.

`attend` takes the same arguments for both kinds; tests/test_attention.py holds them against
each other. The linears are named as in the checkpoints.
"""
# B batch, T tokens (queries and keys alike), D width, H heads, E head width

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q_BHTE: Tensor,
    k_BHTE: Tensor,
    v_BHTE: Tensor,
    mask_BT: Tensor | None,
    dropout_p: float,
    kind: str,
) -> Tensor:
    """softmax(q k^T / sqrt(E)) v -> [B, H, T, E]. Keys where `mask_BT` is True are not attended to;
    a row with every key masked is undefined. `dropout_p` acts on the attention weights."""
    if kind == "math":
        return _attend_plainly(q_BHTE, k_BHTE, v_BHTE, mask_BT, dropout_p)
    keep_B11T = None if mask_BT is None else ~mask_BT[:, None, None, :]
    return F.scaled_dot_product_attention(
        q_BHTE, k_BHTE, v_BHTE, attn_mask=keep_B11T, dropout_p=dropout_p
    )


def _attend_plainly(
    q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask_BT: Tensor | None, dropout_p: float
) -> Tensor:
    scores_BHTT = (q_BHTE @ k_BHTE.transpose(-2, -1)).float() / math.sqrt(q_BHTE.shape[-1])
    if mask_BT is not None:
        scores_BHTT = scores_BHTT.masked_fill(mask_BT[:, None, None, :], -math.inf)
    weights_BHTT = F.dropout(torch.softmax(scores_BHTT, dim=-1), p=dropout_p)
    return weights_BHTT.to(v_BHTE.dtype) @ v_BHTE


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate q, k, v and out projections; head h holds the
    columns h*E to (h+1)*E. Drops attention weights only in training mode."""

    def __init__(self, width: int, num_heads: int, dropout: float, kind: str) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.kind = num_heads, dropout, kind
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        q, k, v = (
            project(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout_p = self.dropout if self.training else 0.0
        out_BHTE = attend(q, k, v, mask_BT, dropout_p, self.kind)
        return self.out_proj(out_BHTE.transpose(1, 2).flatten(2))
