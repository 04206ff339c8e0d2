"""Which attention kernel runs here: tried before a training starts, and said in one line."""
# B batch, T tokens, H heads, E head width

import re
import warnings

import torch
from torch.nn.attention import SDPBackend

from hpc_ecg.model.attention import SelfAttention, attend, choose_kind
from hpc_ecg.model.dropout import RecordDropout


def explain_attention(
    attention: SelfAttention,
    num_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    has_mask: bool,
) -> str:
    """What `model.attention` comes to for batches with or without a padding mask, and why; `dtype`
    is what the matrix products are computed in. It is done once on a small batch, forward and
    backward. ValueError: the kind that is asked for cannot run here."""
    heads, width = attention.num_heads, attention.q_proj.out_features
    q_BHTE = torch.ones(2, heads, num_tokens, width // heads, dtype=dtype, device=device)
    q_BHTE.requires_grad_()
    mask_BT = torch.zeros(2, num_tokens, dtype=torch.bool, device=device)
    mask_BT[1, max(1, num_tokens // 2) :] = True
    dropout = RecordDropout(attention.dropout.p, stream=1)
    seeds_BT = torch.zeros(2, num_tokens, dtype=torch.int64, device=device)
    case = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    case += f" {'with' if has_mask else 'without'} padding"
    case += " and dropout of weights" * (dropout.p > 0)
    mask = mask_BT if has_mask else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch says there why a kernel is out of the question
        try:
            attend(q_BHTE, q_BHTE, q_BHTE, mask, attention.kind, dropout, seeds_BT).sum().backward()
        except (RuntimeError, ImportError) as error:
            reasons = [str(w.message) for w in said if "not used because" not in str(w.message)]
            reason = re.split(r"\n|\. | \(Triggered", [*reasons, str(error)][0])[0].strip(" .")
            raise ValueError(
                f"model.attention={attention.kind} cannot run {case}: {reason}; "
                "model.attention=auto takes what can"
            ) from None
    kind, why = attention.kind, "asked for"
    if kind == "auto":
        kind, why = choose_kind(device, dtype, dropout.p > 0)
    if kind == "sdpa":
        keep_B11T = ~mask_BT[:, None, None, :] if has_mask else None
        choice = torch._fused_sdp_choice(q_BHTE, q_BHTE, q_BHTE, keep_B11T, dropout.p)
        kind, why = SDPBackend(choice).name.lower(), "torch's own choice"
    return f"attention {case}: {kind} ({why})"
