"""Find out which kernels run on this device, and whether they are right, before a run starts."""
# B batch, C leads, S samples, T tokens, D width, H heads, E head width

import copy
import platform
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from hpc_ecg.model.attention import SelfAttention, attend, choose_kind
from hpc_ecg.model.dropout import RecordDropout
from hpc_ecg.model.layers import PositionalConv
from hpc_ecg.model.transformer import ECGClassifier

TOLERANCE = {torch.float32: 0.005, torch.float16: 0.005, torch.bfloat16: 0.03}
"""Largest error of one layer, relative to the norm of its output. Measured on CPUs, at tiny and at
the published size, with and without padding: 4e-7 in fp32, 0.0005 in fp16, 0.0041 in bf16. A GPU
may round the inputs of fp32 to TF32, which has the 10 bits of fp16."""
ALL_LAYERS = 5
"""Tolerance of the pooled features, in tolerances of a layer. Measured: 1e-7 in fp32, 0.0007 in
fp16, 0.0075 in bf16."""
GRADIENT = 4
"""Tolerance of gradients, in tolerances of a layer: 0.02 in fp32, 0.12 in bf16. Measured: 3e-6 in
fp32; in bf16 0.027 in a layer, and 0.024 of the pooled features by all matrices of weights."""
OUTPUT, GRADIENTS = "output", "gradients"
WHOLE = ("the model", "the compiled model")


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
        except (RuntimeError, ImportError, AttributeError) as error:
            raise ValueError(
                f"model.attention={attention.kind} cannot run {case}: {reason_of(error, caught)}; "
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


def reason_of(error: Exception, caught: list[warnings.WarningMessage]) -> str:
    """Why a kernel cannot run, in a line: torch's first warning says more than its error."""
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    reasons = [text for text in texts if "not used because" not in text]
    lines = [re.split(r"\n|\. | \(Triggered", text.strip())[0] for text in (*reasons, str(error))]
    return next((line.strip(" .") for line in lines if line), type(error).__name__)


def check_kernels(
    model: ECGClassifier,
    num_samples: int,
    device: torch.device,
    dtype: torch.dtype,
    has_mask: bool,
    compiled: bool = False,
    backward: bool = False,
) -> str:
    """Compare the model as it will run with the plain fp32 reference on the CPU, in eval mode.

    Two made-up records [2, C, S] go through copies of the model, so that neither the model nor a
    random state changes. Each layer gets the input that it has in the run, so its error is its own;
    with `backward`, also a made-up gradient of its output, and the gradients of its input and
    weights are compared. `dtype` is that of the autocast; with `compiled`, compiled layers are
    compared, too. Returns one line for the log. ValueError names the first layer whose error
    exceeds the tolerance, and what to set.
    """
    kinds: dict[type, Any] = {type(m): getattr(m, "kind", "") for m in model.modules()}
    plain = kinds[SelfAttention] == "math" and kinds[PositionalConv] in ("auto", "direct")
    if (device.type, dtype, plain, compiled) == ("cpu", torch.float32, True, False):
        return "kernels: those of the plain fp32 reference"
    records = _made_up_records(model.architecture.in_d, num_samples, has_mask)
    errors = _compare(model, records, device, dtype, compiled, backward)
    name = str(dtype).removeprefix("torch.")
    for (layer, what), error in errors.items():
        limit = TOLERANCE[dtype] * (GRADIENT if what == GRADIENTS else 1)
        limit *= ALL_LAYERS if (layer in WHOLE and what == OUTPUT) else 1
        if not error <= limit:
            module = dict(model.named_modules()).get(layer)
            remedy = _remedy(layer == WHOLE[1], module, dtype)
            raise ValueError(
                f"{layer} is off by {100 * error:.3g} % of its {what} (allowed: {100 * limit:.3g} "
                f"%) from the plain fp32 reference, in {name} on {device.type} of "
                f"{platform.node()}: torch {torch.__version__} has a wrong kernel for it; {remedy}"
            )
    worst = {what: max(e for (_, w), e in errors.items() if w == what) for _, what in errors}
    text = f"kernels in {name}: each layer within {worst[OUTPUT]:.1g} of the fp32 reference"
    return text + (f", its gradients within {worst[GRADIENTS]:.1g}" if backward else "")


def _compare(
    model: ECGClassifier,
    records: tuple[Tensor, Tensor | None],
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    backward: bool,
) -> dict[tuple[str, str], float]:
    """The error of each layer's output and gradients, in the order of the forward pass, and last
    that of the pooled features."""
    reference, run = (copy.deepcopy(model).eval().requires_grad_(backward) for _ in range(2))
    reference.cpu().use_kernels("math", "direct", "plain")
    errors: dict[tuple[str, str], float] = {}
    layers = dict(reference.named_modules())
    hooks = [
        module.register_forward_hook(_comparing(name, layers[name], errors))
        for name, module in run.to(device).named_modules()
        if isinstance(module, SelfAttention)
        or (not list(module.children()) and list(module.parameters()))
    ]
    ecg_BCS = records[0].to(device).requires_grad_(backward)
    mask_BS = None if records[1] is None else records[1].to(device)
    with torch.set_grad_enabled(backward):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pooled_BD = run.features(ecg_BCS, mask_BS)
            head_hook = _comparing("head", reference.head, errors)
            head_hook(run.head, (pooled_BD,), run.classify(pooled_BD))
            for hook in hooks:
                hook.remove()
            if compiled:
                run.compile()
                pooled_BD = run.features(ecg_BCS, mask_BS)
        with torch.autocast("cpu", enabled=False):
            expected_BD = reference.features(*records)
        whole = WHOLE[compiled]
        errors[whole, OUTPUT] = relative_error(pooled_BD, expected_BD)
        if backward:
            errors[whole, GRADIENTS] = _gradient_error(
                pooled_BD, _weights(run.backbone), expected_BD, _weights(reference.backbone)
            )
    if compiled:
        torch._dynamo.reset()  # the run compiles for its own batches, as if first
    return errors


def _weights(module: nn.Module) -> list[Tensor]:
    """The parameters of a layer, or the matrices of a module with layers: the gradient of a bias
    may be zero there (that of attention's keys is)."""
    return [p for p in module.parameters() if p.ndim > 1 or not list(module.children())]


def _comparing(
    name: str, reference: nn.Module, errors: dict[tuple[str, str], float]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """A hook that notes the error of a layer's output, without the padded tokens of attention, and
    of its gradients."""

    def compare(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        plain: list[Any] = [x if x is None else x.detach().cpu() for x in inputs]
        plain[0] = plain[0].float().requires_grad_(output.requires_grad)
        mask_BT = plain[1] if isinstance(module, SelfAttention) else None
        with torch.autocast("cpu", enabled=False):
            expected = reference(*plain)
        if mask_BT is not None:
            output, expected = output.cpu()[~mask_BT], expected[~mask_BT]
        errors[name, OUTPUT] = relative_error(output, expected)
        if output.requires_grad:
            ours, theirs = [inputs[0], *_weights(module)], [plain[0], *_weights(reference)]
            errors[name, GRADIENTS] = _gradient_error(output, ours, expected, theirs)

    return compare


def _gradient_error(
    output: Tensor, ours: list[Tensor], expected: Tensor, theirs: list[Tensor]
) -> float:
    """The largest error among the gradients, for one made-up gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(expected.shape, generator=generator).to(output.dtype)
    found = torch.autograd.grad(output, ours, noise.to(output.device), retain_graph=True)
    wanted = torch.autograd.grad(expected, theirs, noise.float())
    pairs = zip(found, wanted, strict=True)
    return float(
        torch.tensor([relative_error(*pair) for pair in pairs]).max()
    )  # NaN counts as largest


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to that of `expected` (an output of about 0 counts little);
    0 where weights overflow fp32, which the first step reports."""
    found = found.detach().to(expected.device).double()
    expected = expected.detach().double()
    if not bool(expected.isfinite().all()):
        return 0.0
    scale = expected.norm() + 1e-3 * expected.numel() ** 0.5
    return float((found - expected).norm() / scale)


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


def _remedy(is_compiled: bool, module: nn.Module | None, dtype: torch.dtype) -> str:
    if is_compiled:
        return "set engine.compile=false"
    if isinstance(module, SelfAttention) and module.kind != "math":
        return "set model.attention=math"
    if isinstance(module, PositionalConv) and module.kind not in ("auto", "direct"):
        return "set model.positional_conv=direct"
    if dtype != torch.float32:
        return "set engine.precision=fp32"
    return "use engine.device=cpu, other hardware or another version of torch"
