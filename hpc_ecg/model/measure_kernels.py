"""Time the candidates of each kernel on one device, at a run's sizes, and choose the fastest.

All get the same made-up data and are compared with the plain fp32 reference: what cannot run, or
exceeds the tolerances of kernels.py, is out. The usual kernel stays unless another one is faster by
more than MARGIN.
"""
# B batch, T tokens, D width

import copy
import functools
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark.utils.timer import timer

from hpc_ecg.model.attention import choose_kind
from hpc_ecg.model.kernels import ALL_LAYERS, GRADIENT, TOLERANCE, reason_of, relative_error
from hpc_ecg.model.transformer import ECGClassifier

MARGIN, SECONDS_EACH, COMPILED = 0.03, 0.3, ("compiled", "triton")
KINDS = {
    "attention": ("math", "sdpa", "flash", "fa3", "fa4", "cudnn", "efficient", "varlen"),
    "positional_conv": ("direct", "fft", "unfold"),
    "record_dropout": ("plain", *COMPILED),
    "compile": ("eager", "compiled"),
}
"""The candidates of each kernel, the plain reference first."""
SHARES = {"attention": 0.15, "positional_conv": 0.4, "record_dropout": 0.1, "compile": 0.35}
"""Of the time for measuring."""
FOR_GPUS = {*KINDS["attention"][2:], "triton"}


@dataclass(frozen=True, kw_only=True)
class KernelLoad:
    """What a run computes on one device: micro-batches of so many records and tokens. `budget_s` is
    for all four kernels; first calls that compile come on top."""

    num_records: int = 2
    num_tokens: int
    device: torch.device
    dtype: torch.dtype
    has_mask: bool = False
    backward: bool = True
    budget_s: float = 30.0


def measure_kernel(
    name: str, model: ECGClassifier, load: KernelLoad, only: Iterable[str] = ()
) -> dict[str, Any]:
    """`chosen`, and for each of the `candidates` (or `only` these) its `ms`, `ratio` to the
    reference, largest `error` and `first_call_s`, or why it is `out`; {} without a choice."""
    layer: Any = model.backbone.encoder.layers[0]
    conv: Any = model.backbone.conv_pos["pos_conv"]
    parts = {"attention": layer.self_attn, "positional_conv": conv[0], "compile": layer}
    part = parts.get(name, layer.activation_dropout)
    if (name == "attention" and part.dropout.p) or (name == "record_dropout" and not part.p):
        return {}  # attention dropout by record has only the plain kernel
    module = copy.deepcopy(part).to(load.device).train().requires_grad_(load.backward)
    compiled = functools.cache(lambda: torch.compile(module) if name == "compile" else module)
    shape, fc1 = (load.num_records, load.num_tokens), layer.fc1
    width = fc1.out_features if name == "record_dropout" else fc1.in_features
    generator = torch.Generator(load.device).manual_seed(0)
    noise = torch.randn(2, *shape, width, generator=generator, device=load.device)
    x_BTD, gradient_BTD = noise.to(load.dtype)
    seeds_BT = torch.arange(shape[0] * shape[1], device=load.device).view(shape)
    mask_BT = (seeds_BT[:1] >= 3 * shape[1] // 4).expand(shape) if load.has_mask else None
    others = {"positional_conv": (), "record_dropout": (seeds_BT, True)}

    def one_pass(kind: str, x_BTD: Tensor) -> list[Tensor]:
        """The output and, with a backward pass, the gradients by the input and the matrices."""
        module.kind, is_half = kind, x_BTD.dtype != torch.float32
        x_BTD = x_BTD.detach().requires_grad_(load.backward)
        with torch.set_grad_enabled(load.backward):
            with torch.autocast(load.device.type, load.dtype if is_half else None, is_half):
                run = compiled() if kind in COMPILED else module
                out = run(x_BTD, *others.get(name, (mask_BT, seeds_BT)))
            out = out if mask_BT is None else out.masked_fill(mask_BT[..., None], 0.0)
            if not load.backward:
                return [out]
            by = [x_BTD, *(p for p in module.parameters() if p.ndim > 1)]
            return [out, *torch.autograd.grad(out, by, gradient_BTD.to(out.dtype))]

    kinds = [k for k in KINDS[name] if load.device.type == "cuda" or k not in FOR_GPUS]
    runs = {kind: functools.partial(one_pass, kind, x_BTD) for kind in only or kinds}
    attention: Any = getattr(module, "self_attn", module)
    chosen, attention.kind = attention.kind, "math"  # fused attention may lack fp32
    expected, attention.kind = one_pass(kinds[0], x_BTD.float()), chosen
    found = _race(name, runs, expected, load)
    took = {kind: about["ms"] for kind, about in found.items() if "ms" in about}
    for kind, ms in took.items():
        found[kind]["ratio"] = ms / took.get(kinds[0], ms)
    usual = kinds[0] if name != "attention" else choose_kind(load.device, load.dtype, False)[0]
    best = min(took, key=took.__getitem__, default=usual)
    is_close = usual in took and took[best] > (1 - MARGIN) * took[usual]
    return {"chosen": usual if is_close else best, "candidates": found}


def _race(
    name: str, runs: dict[str, Any], expected: list[Tensor], load: KernelLoad
) -> dict[str, dict[str, Any]]:
    limit = TOLERANCE[load.dtype] * (ALL_LAYERS if name == "compile" else 1)
    calls = 10 if load.device.type == "cuda" else 1  # in a row, so that launching does not count
    deadline, found = time.monotonic() + load.budget_s * SHARES[name], dict[str, dict[str, Any]]()
    for kind, run in runs.items():
        began, taken = time.monotonic(), list[float]()
        if found and began > deadline:
            found[kind] = {"out": "not tried: no time was left"}
            continue
        found[kind] = {**_try(run, expected, limit), "first_call_s": time.monotonic() - began}
        deadline += found[kind]["first_call_s"] if kind in COMPILED else 0
        while "out" not in found[kind] and sum(taken) * calls < SECONDS_EACH:
            before = timer()  # waits for a GPU
            for _ in range(calls):
                run()
            taken.append((timer() - before) / calls)
            found[kind]["ms"] = 1000 * statistics.median(taken)
    return found


def _try(run: Callable[[], list[Tensor]], expected: list[Tensor], limit: float) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            errors = [relative_error(*pair) for pair in zip(run(), expected, strict=True)]
        except Exception as error:  # whatever a kernel or a compiler raises where it cannot run
            return {"out": f"cannot run: {reason_of(error, caught)[:160]}"}
    for number, off in enumerate(errors):
        if not off <= limit * (GRADIENT if number else 1):
            what = "gradients" if number else "output"
            return {"out": f"wrong: {100 * off:.3g} % off the reference in its {what}"}
    return {"error": max(errors)}


def fault_of(name: str, kind: str, model: ECGClassifier, load: KernelLoad) -> str:
    """Why this kind cannot run on this machine, or how wrong it is; "" if it is right."""
    found = measure_kernel(name, model, load, [kind])
    out = found and found["candidates"][kind].get("out")
    return f"{out}, on {load.device.type} of {platform.node()}" if out else ""
