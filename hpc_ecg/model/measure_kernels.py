"""Time the candidates of each kernel on one device, at a run's sizes, and choose the fastest.

All get the same made-up data and are compared with the plain fp32 reference: what cannot run, or
exceeds the tolerances of kernels.py, is out. The usual kernel stays unless another one is faster by
more than MARGIN.
"""
# B batch, T tokens, D width

import copy
import functools
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from hpc_ecg.model.attention import choose_kind
from hpc_ecg.model.kernels import ALL_LAYERS, GRADIENT, TOLERANCE, relative_error
from hpc_ecg.model.transformer import ECGClassifier

MARGIN, SECONDS_EACH, COMPILED = 0.03, 0.3, ("compiled", "triton")
ATTENTION = ("math", "sdpa", "flash", "fa3", "fa4", "cudnn", "efficient", "varlen")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run computes on one device: micro-batches of so many records and tokens."""

    num_records: int = 2
    num_tokens: int
    device: torch.device
    dtype: torch.dtype
    has_mask: bool = False
    backward: bool = True
    budget_s: float = 30.0
    """For all four kernels; first calls that compile come on top."""

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def noise(self, width: int, seed: int) -> Tensor:
        """[B, T, D]."""
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (self.num_records, self.num_tokens, width)
        return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

    def mask_and_seeds(self) -> tuple[Tensor | None, Tensor]:
        """[B, T] each. True = padded: the last quarter."""
        seeds_BT = torch.arange(self.num_records * self.num_tokens, device=self.device)
        seeds_BT = seeds_BT.view(self.num_records, self.num_tokens)
        mask_BT = (seeds_BT[:1] >= 3 * self.num_tokens // 4).expand_as(seeds_BT)
        return (mask_BT if self.has_mask else None), seeds_BT


def measure_kernel(
    name: str, model: ECGClassifier, load: Workload, only: Iterable[str] = ()
) -> dict[str, Any]:
    """`chosen`, and for each of the `candidates` (or `only` these) its `ms`, `ratio` to the
    reference, largest `error` and `first_call_s`, or why it is `out`; {} without a choice."""
    layer: Any = model.backbone.encoder.layers[0]
    conv: Any = model.backbone.conv_pos["pos_conv"]
    (mask_BT, seeds_BT), some = load.mask_and_seeds(), 2 if load.device.type == "cpu" else None
    module, kinds, usual, extra = {  # the first of the kinds is the reference
        "attention": (layer.self_attn, ATTENTION[:some], "", (mask_BT, seeds_BT)),
        "positional_conv": (conv[0], ("direct", "fft", "unfold"), "direct", ()),
        "record_dropout": (
            layer.activation_dropout, ("plain", *COMPILED)[:some], "plain", (seeds_BT, True),
        ),
        "compile": (layer, ("eager", "compiled"), "eager", (mask_BT, seeds_BT)),
    }[name]  # fmt: skip
    if (name == "attention" and module.dropout.p) or (name == "record_dropout" and not module.p):
        return {}  # attention dropout by record has only the plain kernel
    module = copy.deepcopy(module).to(load.device).train().requires_grad_(load.backward)
    compiled = torch.compile(module) if name == "compile" else module

    def forward(kind: str, x_BTD: Tensor) -> Tensor:
        module.kind = kind
        out = (compiled if kind in COMPILED else module)(x_BTD, *extra)
        return out if mask_BT is None else out.masked_fill(mask_BT[..., None], 0.0)

    width = layer.fc1.out_features if name == "record_dropout" else layer.fc1.in_features
    one_pass = functools.partial(
        _one_pass, forward, load, [p for p in module.parameters() if p.ndim > 1]
    )
    x_BTD, limit = load.noise(width, 0), TOLERANCE[load.dtype]
    expected = one_pass(kinds[0], x_BTD.float())
    runs = {kind: functools.partial(one_pass, kind, x_BTD) for kind in only or kinds}
    found = _race(runs, expected, limit * (ALL_LAYERS if name == "compile" else 1), load.budget_s)
    Workload.noise.cache_clear()  # it may be large
    took = {kind: about["ms"] for kind, about in found.items() if "ms" in about}
    for kind, ms in took.items():
        found[kind]["ratio"] = ms / took.get(kinds[0], ms)
    usual = usual or choose_kind(load.device, load.dtype, False)[0]
    best = min(took, key=took.__getitem__, default=usual)
    is_close = usual in took and took[best] > (1 - MARGIN) * took[usual]
    return {"chosen": usual if is_close else best, "candidates": found}


def _one_pass(
    forward: Callable[..., Tensor], load: Workload, matrices: list[Tensor], kind: str, x: Tensor
) -> list[Tensor]:
    """The output and, with a backward pass, the gradients by the input and the matrices."""
    x, is_half = x.detach().requires_grad_(load.backward), x.dtype != torch.float32
    with torch.set_grad_enabled(load.backward):
        with torch.autocast(load.device.type, load.dtype if is_half else None, is_half):
            out = forward(kind, x)
        if not load.backward:
            return [out]
        gradient = load.noise(out.shape[-1], 1).to(out.dtype)
        return [out, *torch.autograd.grad(out, [x, *matrices], gradient)]


def _race(
    runs: dict[str, Any], expected: list[Tensor], limit: float, budget_s: float
) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + budget_s / 4
    found: dict[str, dict[str, Any]] = {}
    for kind, run in runs.items():
        began = time.monotonic()
        if found and began > deadline:
            found[kind] = {"out": "not tried: no time was left"}
            continue
        found[kind] = {**_try(run, expected, limit), "first_call_s": time.monotonic() - began}
        deadline += found[kind]["first_call_s"] if kind in COMPILED else 0
        if "out" not in found[kind]:
            timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
            found[kind]["ms"] = 1000 * timer.blocked_autorange(min_run_time=SECONDS_EACH).median
    return found


def _try(run: Callable[[], list[Tensor]], expected: list[Tensor], limit: float) -> dict[str, Any]:
    try:
        errors = [relative_error(*pair) for pair in zip(run(), expected, strict=True)]
    except Exception as error:  # whatever a kernel or a compiler raises where it cannot run
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return {"out": f"cannot run: {reason[:160]}"}
    for number, off in enumerate(errors):
        if not off <= limit * (GRADIENT if number else 1):
            what = "gradients" if number else "output"
            return {"out": f"wrong: {100 * off:.3g} % off the reference in its {what}"}
    return {"error": max(errors)}


def check_dropout(model: ECGClassifier, load: Workload) -> None:
    """ValueError if model.record_dropout cannot run on this machine, or gives other numbers."""
    name, kind = "record_dropout", model.final_dropout.kind
    found = measure_kernel(name, model, load, [kind]) if kind in COMPILED else {}
    if reason := found and found["candidates"][kind].get("out"):
        host = f"{load.device.type} of {platform.node()}"
        raise ValueError(f"model.{name}={kind} {reason}, on {host}; use model.{name}=plain")
