"""Find out which attention kernel runs on this device, before a training starts."""
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
    """One line for the log: what `model.attention` resolves to, with or without a padding mask, and
    why. Runs a small batch forward and backward; `dtype` is that of the matrix products.
    ValueError: the requested kind cannot run on this device."""
    heads, width = attention.num_heads, attention.q_proj.out_features
    q_BHTE = torch.ones(2, heads, num_tokens, width // heads, dtype=dtype, device=device)
    q_BHTE.requires_grad_()
    mask_BT = None
    if has_mask:
        mask_BT = torch.zeros(2, num_tokens, dtype=torch.bool, device=device)
        mask_BT[1, max(1, num_tokens // 2) :] = True
    dropout = RecordDropout(attention.dropout.p, stream=1)
    seeds_BT = torch.zeros(2, num_tokens, dtype=torch.int64, device=device)
    case = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    case += f" {'with' if has_mask else 'without'} padding"
    case += " and attention dropout" * (dropout.p > 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch warns why it rules a kernel out
        try:
            out = attend(q_BHTE, q_BHTE, q_BHTE, mask_BT, attention.kind, dropout, seeds_BT)
            out.sum().backward()
        except (RuntimeError, ImportError) as error:
            reasons = [str(w.message) for w in caught if "not used because" not in str(w.message)]
            reason = re.split(r"\n|\. | \(Triggered", [*reasons, str(error)][0])[0].strip(" .")
            raise ValueError(
                f"model.attention={attention.kind} cannot run {case}: {reason}; "
                "model.attention=auto takes one that can"
            ) from None
    kind, why = attention.kind, "requested"
    if kind == "auto":
        kind, why = choose_kind(device, dtype, dropout.p > 0)
    if kind == "sdpa":
        keep_B11T = None if mask_BT is None else ~mask_BT[:, None, None, :]
        choice = torch._fused_sdp_choice(q_BHTE, q_BHTE, q_BHTE, keep_B11T, dropout.p)
        kind, why = SDPBackend(choice).name.lower(), "torch's own choice"
    return f"attention {case}: {kind} ({why})"
