"""Find out which kernels run on this device, and whether they are right, before a run starts."""
# B batch, C leads, S samples, T tokens, D width, H heads, E head width

import copy
import platform
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from hpc_ecg.model.attention import SelfAttention, attend, choose_kind
from hpc_ecg.model.dropout import RecordDropout
from hpc_ecg.model.transformer import ECGClassifier

TOLERANCE = {torch.float32: 0.005, torch.float16: 0.005, torch.bfloat16: 0.03}
"""Largest error of one layer, relative to the norm of its output. Measured on CPUs, at tiny and at
the published size, with and without padding: 4e-7 in fp32, 0.0005 in fp16, 0.0041 in bf16. A GPU
may round the inputs of fp32 to TF32, which has the 10 bits of fp16."""
ALL_LAYERS = 5
"""Tolerance of the pooled features, in tolerances of a layer. Measured: 1e-7 in fp32, 0.0007 in
fp16, 0.0075 in bf16."""


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


def check_kernels(
    model: ECGClassifier,
    num_samples: int,
    device: torch.device,
    dtype: torch.dtype,
    has_mask: bool,
    compiled: bool = False,
) -> str:
    """Compare the model as it will run with the plain fp32 reference on the CPU, in eval mode.

    Two made-up records [2, C, S] go through copies of the model, so that neither the model nor a
    random state changes. Each layer gets the input that it has in the run, so its error is its own.
    `dtype` is that of the autocast; with `compiled`, compiled layers are compared, too. Returns one
    line for the log. ValueError names the first layer whose error exceeds `TOLERANCE`, and what to
    set.
    """
    attention: Any = model.backbone.encoder.layers[0].self_attn
    kind: str = attention.kind
    if (device.type, dtype, kind, compiled) == ("cpu", torch.float32, "math", False):
        return "kernels: those of the plain fp32 reference"
    reference, run = (copy.deepcopy(model).eval() for _ in range(2))
    for module in reference.cpu().modules():
        if isinstance(module, SelfAttention):
            module.kind = "math"
    errors: dict[str, float] = {}
    layers = dict(reference.named_modules())
    hooks = [
        module.register_forward_hook(_comparing(name, layers[name], errors))
        for name, module in run.to(device).named_modules()
        if isinstance(module, SelfAttention)
        or (not list(module.children()) and list(module.parameters()))
    ]
    ecg_BCS, mask_BS = _made_up_records(model.architecture.in_d, num_samples, has_mask)
    inputs = (ecg_BCS.to(device), None if mask_BS is None else mask_BS.to(device))
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        pooled_BD = run.features(*inputs)
        for hook in hooks:
            hook.remove()
        limit = TOLERANCE[dtype]
        wrong = next((name for name, error in errors.items() if not error <= limit), "")
        if compiled and not wrong:
            run.compile()
            pooled_BD = run.features(*inputs)
            torch._dynamo.reset()  # the run compiles for its own batches, as if first
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected_BD = reference.features(ecg_BCS, mask_BS)
    whole = "the compiled model" if compiled else "the model"
    errors[whole] = _error(pooled_BD, expected_BD) / ALL_LAYERS
    if not wrong and not errors[whole] <= limit:
        wrong, limit = whole, ALL_LAYERS * limit
        errors[whole] *= ALL_LAYERS
    name = str(dtype).removeprefix("torch.")
    if wrong:
        remedy = _remedy(wrong == whole and compiled, wrong.endswith(".self_attn"), kind, dtype)
        raise ValueError(
            f"{wrong} is off by {100 * errors[wrong]:.3g} % of its output (allowed: "
            f"{100 * limit:.3g} %) from the plain fp32 reference, in {name} on {device.type} of "
            f"{platform.node()}: torch {torch.__version__} has a wrong kernel for it; {remedy}"
        )
    return f"kernels in {name}: each layer within {max(errors.values()):.1g} of the fp32 reference"


def _comparing(name: str, reference: nn.Module, errors: dict[str, float]) -> Any:
    """A hook that notes the error of a layer's output, without the padded tokens of attention."""

    def compare(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        plain: list[Any] = [x if x is None else x.cpu() for x in inputs]
        mask_BT = plain[1] if isinstance(module, SelfAttention) else None
        with torch.autocast("cpu", enabled=False):
            expected = reference(plain[0].float(), *plain[1:])
        if mask_BT is not None:
            output, expected = output.cpu()[~mask_BT], expected[~mask_BT]
        errors.setdefault(name, _error(output, expected))

    return compare


def _error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to that of `expected` (an output of about 0 counts little);
    0 where weights overflow fp32, which the first step reports."""
    expected = expected.double()
    if not bool(expected.isfinite().all()):
        return 0.0
    scale = expected.norm() + 1e-3 * expected.numel() ** 0.5
    return float((found.cpu().double() - expected).norm() / scale)


def _made_up_records(
    num_leads: int, num_samples: int, has_mask: bool
) -> tuple[Tensor, Tensor | None]:
    """Noise in mV [2, C, S] and, with a mask, [2, S]: the second record is padded from half on."""
    generator = torch.Generator().manual_seed(0)
    ecg_BCS = 0.3 * torch.randn(2, num_leads, num_samples, generator=generator)
    if not has_mask:
        return ecg_BCS, None
    mask_BS = torch.zeros(2, num_samples, dtype=torch.bool)
    mask_BS[1, num_samples // 2 :] = True
    return ecg_BCS.masked_fill(mask_BS[:, None], 0.0), mask_BS


def _remedy(is_compiled: bool, is_attention: bool, kind: str, dtype: torch.dtype) -> str:
    if is_compiled:
        return "set engine.compile=false"
    if is_attention and kind != "math":
        return "set model.attention=math"
    if dtype != torch.float32:
        return "set engine.precision=fp32"
    return "use engine.device=cpu, other hardware or another version of torch"
